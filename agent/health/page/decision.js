// Why a method serves: the decision record as a table, and in sentences.

import { fact, h, table } from "./dom.js";
import { NONE, ms, percent, size, source } from "./format.js";

const verdict = (method, candidate, measured, decision) => {
  if (method === decision.method) return h("strong", {}, method === decision.planned ? "kept, as planned" : "kept");
  if (measured && !measured.passes) return `refused: ${measured.complaints.join("; ")}`;
  if (measured) return "passes, not needed";
  if (candidate && !candidate.fits) return `no: ${candidate.why}`;
  return candidate ? "fits, not needed" : NONE;
};

// The rows of everything that was weighed or measured, in the order of preference.
const rows = (decision) => {
  const candidates = new Map((decision.candidates ?? []).map((each) => [each.method, each]));
  const evidence = new Map((decision.evidence ?? []).map((each) => [each.method, each]));
  const methods = new Set([...candidates.keys(), ...evidence.keys(), ...(decision.method ? [decision.method] : [])]);
  return [...methods].map((method) => {
    const candidate = candidates.get(method);
    const measured = evidence.get(method) ?? chosen(method, decision);
    const needs = candidate?.estimated_bytes ?? estimate(decision, method);
    return h("tr", { class: method === decision.method ? "kept" : null },
      h("th", { scope: "row" }, method),
      h("td", { class: "n" }, size(needs)),
      h("td", { class: "n" }, size(measured?.resident_bytes)),
      h("td", { class: "n" }, percent(measured?.agreement)),
      h("td", { class: "n" }, percent(measured?.accuracy)),
      h("td", { class: "n" }, ms(measured?.latency_p50_ms)),
      h("td", {}, verdict(method, candidate, measured, decision)));
  });
};

const estimate = (decision, method) => {
  const found = decision.estimates?.[method];
  return found ? found.weights_bytes + found.working_bytes + found.overhead_bytes : null;
};

const chosen = (method, decision) => {
  const measured = decision.measured;
  if (method !== decision.method || !measured?.gate) return undefined;
  const gate = measured.gate;
  return { passes: true, agreement: gate.agreement, accuracy: gate.accuracy, resident_bytes: measured.resident_bytes,
    latency_p50_ms: gate.latency_ms?.p50 };
};

const budget = (told) => {
  const limit = told.limit_bytes === null || told.limit_bytes === undefined ? "" : `, limit ${size(told.limit_bytes)}`;
  return `of ${size(told.available_bytes)} available according to ${source(told.source)}, `
    + `reserve ${size(told.reserve_bytes)}${limit}`;
};

export const why = (model) => {
  const decision = model.decision;
  if (!decision) return h("p", { class: "quiet" }, "No decision record came with this release.");
  const gate = decision.measured?.gate;
  return h("div", {},
    h("dl", { class: "lines" },
      decision.scenario ? fact("Case of the matrix", decision.scenario, decision.rule) : null,
      decision.requested ? fact("Asked for", decision.requested) : null,
      decision.budget ? fact("Budget", size(decision.budget.room_bytes ?? decision.budget.bytes), budget(decision.budget)) : null,
      gate ? fact("Judged on", `${gate.rows} rows`, gate.inputs === "dataset" ? "of the data set given" : "made up") : null,
      decision.reason ? fact("Reason", decision.reason) : null),
    table("Methods that were weighed", ["Method", "Needs", "Resident", "Agreement", "Accuracy", "p50", "Verdict"], rows(decision)),
    (decision.explanation ?? []).length === 0 ? null
      : h("details", {}, h("summary", {}, "In sentences"),
        h("ul", {}, decision.explanation.map((sentence) => h("li", {}, sentence)))));
};

// The table of a `compare`, which measured methods without choosing one.
export const compared = (found) =>
  table("Methods that were compared", ["Method", "Resident", "Agreement", "Accuracy", "p50", "Verdict"], found.map((row) =>
    h("tr", {},
      h("th", { scope: "row" }, row.method),
      h("td", { class: "n" }, size(row.resident_bytes)),
      h("td", { class: "n" }, percent(row.agreement)),
      h("td", { class: "n" }, percent(row.accuracy)),
      h("td", { class: "n" }, ms(row.latency_p50_ms)),
      h("td", {}, row.passes && row.fits ? "passes and fits" : [...row.complaints, row.fits ? "" : row.why].filter(Boolean).join("; ")))));
