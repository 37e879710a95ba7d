// Operations, newest first: what they are at, how far, and what became of them.

import { compared } from "./decision.js";
import { byId, h } from "./dom.js";
import { size } from "./format.js";

const GOOD = ["succeeded"], OPEN = ["accepted", "running"];
let newest = [], progress = {};
const bars = new Map();

export const showOperations = (told) => { newest = told.newest; draw(); };

export const showProgress = (told) => {
  progress = told;
  for (const [id, place] of bars) fillIn(place, progress[id]);
};

const draw = () => {
  bars.clear();
  byId("operations").replaceChildren(...(newest.length ? newest.map(item) : [h("li", { class: "quiet" }, "None so far.")]));
  showProgress(progress);
};

const item = (operation) => {
  const isOpen = OPEN.includes(operation.state);
  const kind = GOOD.includes(operation.state) ? "ok" : isOpen ? "open" : "bad";
  const state = isOpen && operation.phase && operation.phase !== "queued" ? operation.phase : operation.state.replaceAll("_", " ");
  return h("li", { "data-id": operation.id, "data-state": operation.state },
    h("div", { class: "row" },
      h("strong", {}, operation.command.replaceAll("_", " ")),
      operation.model ? h("span", {}, operation.model) : null,
      h("code", { class: "quiet" }, operation.id),
      h("span", { class: `pill ${kind} end` }, state)),
    isOpen ? bar(operation) : null,
    ...what(operation));
};

const bar = (operation) => {
  const place = { line: h("progress", { max: 1, hidden: true, "aria-label": `Progress of ${operation.id}` }), text: h("span", { class: "quiet" }) };
  bars.set(operation.id, place);
  const attempt = operation.attempt > 1 ? h("span", { class: "quiet" }, `attempt ${operation.attempt}`) : null;
  return h("div", { class: "row" }, place.line, place.text, attempt);
};

const fillIn = (place, told) => {
  place.line.hidden = !told?.total;
  if (told?.total) place.line.value = told.done / told.total;
  const amount = (value) => (told.unit === "bytes" ? size(value) : value);
  place.text.textContent = told ? `${amount(told.done)}${told.total ? ` of ${amount(told.total)}` : ""}${told.unit === "bytes" ? "" : ` ${told.unit}`}` : "";
};

const what = (operation) => {
  const { error, decision, detail } = operation;
  const lines = [];
  if (detail) lines.push(h("p", {}, detail));
  if (error) {
    lines.push(h("p", { class: "bad" }, h("code", {}, error.code), ` ${error.detail}`));
    if (error.hint) lines.push(h("p", {}, `Next: ${error.hint}`));
    if (error.kept) lines.push(h("p", { class: "quiet" }, `still serving: ${error.kept}`));
  } else if (decision?.reason) {
    lines.push(h("p", { class: "quiet" }, decision.reason));
  }
  if (decision?.compare) lines.push(h("details", {}, h("summary", {}, "Table"), compared(decision.compare)));
  return lines;
};
