// What is served: a card a model. Live figures change in place, so that nothing a person has opened or chosen is lost.

import { act } from "./actions.js";
import { why } from "./decision.js";
import { byId, fact, h } from "./dom.js";
import { NONE, count, moment, ms, percent, rate, size } from "./format.js";
import { sparkline } from "./sparkline.js";

const shown = new Map();
const opened = new Set();
let served = {}, about = {}, live = { models: {} };

export const showModels = (models) => {
  served = models;
  draw();
};

export const showAbout = (told) => {
  const before = JSON.stringify([about.methods, about.isUnlocked]);
  about = told;
  if (JSON.stringify([about.methods, about.isUnlocked]) !== before) draw();
};

export const showLive = (told) => {
  live = told;
  for (const [name, places] of shown) fillIn(places, live.models[name]);
};

const draw = () => {
  shown.clear();
  const cards = Object.entries(served).map(([name, model]) => card(name, model));
  byId("models").replaceChildren(...(cards.length ? cards : [h("p", { class: "card quiet" }, "Nothing is served.")]));
  showLive(live);
};

const card = (name, model) => {
  const places = { rate: h("output"), rates: h("span"), mean: h("output"), means: h("span"), percentiles: h("output"), load: h("output") };
  shown.set(name, places);
  return h("article", { class: "card", "aria-label": `Model ${name}` },
    h("div", { class: "row" },
      h("h3", {}, name),
      h("span", { class: "pill method" }, model.method),
      h("span", { class: "quiet" }, `version ${model.version ?? NONE} · ${model.model_type ?? ""}`),
      h("span", { class: "quiet end" }, `since ${moment(model.since)}, chosen by ${model.chosen_by === "auto" ? "auto" : "an operator"}`)),
    h("dl", { class: "facts wide" },
      fact("Resident", size(model.resident_bytes)),
      fact("Artifact", size(model.artifact_bytes)),
      fact("Stored as codes", percent(model.coverage)),
      fact("Agreement", percent(model.agreement)),
      fact("Accuracy", percent(model.accuracy))),
    h("dl", { class: "facts wide live" },
      fact("Throughput", h("span", { class: "with-line" }, places.rate, places.rates)),
      fact("Mean latency", h("span", { class: "with-line" }, places.mean, places.means)),
      fact("p50 · p95 · p99", places.percentiles),
      fact("Requests since loaded", places.load)),
    controls(name, model),
    detailed(name, model));
};

const detailed = (name, model) => {
  const details = h("details", { open: !opened.has(name) }, h("summary", {}, `Why ${model.method}?`), why(model));
  details.addEventListener("toggle", () => (details.open ? opened.delete(name) : opened.add(name)));
  return details;
};

const controls = (name, model) => {
  const previous = model.previous;
  const told = h("span", { class: "quiet" }, previous ? `before: version ${previous.version}, ${previous.method}` : "nothing to roll back to");
  if (!about.isUnlocked) return h("p", { class: "row" }, told);
  const methods = ["auto", ...(about.methods ?? [])];
  const select = h("select", {}, methods.map((method) => h("option", { value: method, selected: method === model.method }, method)));
  const switching = () => act("set_method", { model: name, method: select.value },
    `Switch ${name} to ${select.value}?`, `${model.method} serves until ${select.value} has proved itself.`);
  const rolling = () => act("rollback", { model: name },
    `Roll ${name} back?`, `Version ${previous.version} by ${previous.method} will serve; ${model.method} of version ${model.version} is forgotten.`);
  return h("div", { class: "row actions" },
    h("label", {}, "Method ", select),
    h("button", { type: "button", onclick: switching }, "Switch"),
    h("button", { type: "button", onclick: rolling, disabled: !previous }, "Roll back"),
    told);
};

const fillIn = (places, told) => {
  const last = (values) => (values?.length ? values[values.length - 1] : null);
  places.rate.textContent = rate(last(told?.per_s));
  places.mean.textContent = ms(last(told?.mean_ms));
  places.rates.replaceChildren(sparkline(told?.per_s ?? [], "Requests a second"));
  places.means.replaceChildren(sparkline(told?.mean_ms ?? [], "Mean latency"));
  const latency = told?.latency_ms ?? {};
  const percentiles = [latency.p50, latency.p95, latency.p99].map(ms);
  places.percentiles.textContent = told ? percentiles.join(" · ").replace(/ ms(?= ·)/g, "") : NONE;
  places.load.textContent = told
    ? `${count(told.requests)}, ${count(told.failures)} failed, ${told.queue} waiting` : live.error ?? NONE;
};
