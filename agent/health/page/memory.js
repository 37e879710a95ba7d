// The memory as a bar, and who said so.

import { byId, h } from "./dom.js";
import { size, source } from "./format.js";

let memory = {}, live = {}, models = {};

export const showMemory = (told) => { memory = told; draw(); };
export const showServer = (told) => { live = told; draw(); };
export const showHeld = (told) => { models = told; draw(); };

const parts = () => {
  const held = Object.values(models).reduce((sum, model) => sum + (model.resident_bytes ?? 0), 0);
  // A GPU's memory holds the models and not their process; where both share one memory, the process has the models in it.
  const isMain = ["meminfo", "cgroup"].includes(memory.source);
  const ours = isMain && live.server_rss_bytes ? live.server_rss_bytes : held;
  const used = Math.max(0, memory.total_bytes - memory.available_bytes - ours);
  const reserve = Math.min(memory.reserve_bytes, memory.available_bytes);
  const free = Math.max(0, Math.min(memory.bytes, memory.available_bytes - reserve));
  return [
    ["others", "other programs and the system", used],
    ["ours", isMain ? "inference server with its models" : "models", Math.min(ours, memory.total_bytes)],
    ["free", "free for models", free],
    ["barred", "free, and not for models by configuration", Math.max(0, memory.available_bytes - reserve - free)],
    ["reserve", "reserve, never given to a model", reserve],
  ].filter(([, , bytes]) => bytes > 0);
};

const draw = () => {
  if (!memory.total_bytes) {
    byId("memory").replaceChildren(h("p", { class: "quiet" }, "Not looked at yet."));
    return;
  }
  const shares = parts();
  const told = `${size(memory.available_bytes)} of ${size(memory.total_bytes)} available according to ${source(memory.source)}`;
  const bar = h("div", { class: "bar", role: "img", "aria-label": told }, shares.map(([kind, , bytes]) => {
    const part = h("span", { class: kind });
    part.style.flexGrow = bytes / memory.total_bytes;
    return part;
  }));
  const held = Object.entries(models).map(([name, model]) => `${name} ${size(model.resident_bytes)}`).join(", ");
  byId("memory").replaceChildren(bar,
    h("p", {}, told),
    h("ul", { class: "legend" }, shares.map(([kind, text, bytes]) =>
      h("li", {}, h("span", { class: `swatch ${kind}` }), ` ${size(bytes)} `, h("span", { class: "quiet" }, text)))),
    held ? h("p", { class: "quiet" }, `Weights: ${held}`) : null);
};
