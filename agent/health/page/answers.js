// What a model answered: the best classes by name where the answer is classes, else its values.

import { h, table } from "./dom.js";
import { NONE, ms, percent } from "./format.js";

const BEST = 5, VALUES = 12;

// The first row's scores where there is one row of classes, else null.
const scores = (output, told) =>
  told.answer !== "embedding" && output?.shape.length === 2 && output.shape[0] === 1 && output.shape[1] > 1 ? output.data : null;

export const best = (output, told, count = BEST) => {
  const found = scores(output, told);
  if (!found || found.some((score) => score === null)) return null;
  const top = Math.max(...found), weights = found.map((score) => Math.exp(score - top));
  const sum = weights.reduce((total, weight) => total + weight, 0);
  return weights
    .map((weight, index) => ({ index, share: weight / sum, label: told.labels?.[index] ?? `class ${index}` }))
    .sort((one, other) => other.share - one.share)
    .slice(0, count);
};

export const shown = (answer, told, tookMs) => {
  const output = answer.outputs[0], classes = best(output, told);
  const how = `${answer.parameters?.method ?? ""}, version ${answer.model_version ?? NONE}, ${ms(tookMs)} there and back`;
  return [classes ? ranking(classes) : plain(answer.outputs), h("p", { class: "quiet" }, `Answered by ${how}`)];
};

const ranking = (classes) =>
  h("ol", { class: "ranking" }, classes.map(({ label, share, index }) => {
    const bar = h("span", { class: "share" });
    bar.style.width = `${100 * share}%`;
    return h("li", { "data-class": index },
      h("span", { class: "label" }, label), h("span", { class: "track", "aria-hidden": "true" }, bar), h("span", { class: "n" }, percent(share)));
  }));

const plain = (outputs) =>
  h("div", {}, outputs.map((output) => h("pre", {}, `${output.name} ${output.datatype} [${output.shape.join(", ")}]\n${few(output.data)}`)));

const few = (data) => {
  const values = data.flat(Infinity);
  return values.slice(0, VALUES).join(", ") + (values.length > VALUES ? `, … (${values.length} values)` : "");
};

export const comparison = (served, found, told) => {
  const rows = found.answers.map((answer) => {
    if (answer.error) return h("tr", {}, h("th", { scope: "row" }, answer.method), h("td", { colspan: 4, class: "quiet" }, answer.error));
    return h("tr", { "data-method": answer.method },
      h("th", { scope: "row" }, answer.method),
      h("td", {}, summary(answer.outputs[0], told)),
      h("td", {}, sameness(served.outputs[0], answer.outputs[0], told)),
      h("td", { class: "n" }, cosine(served.outputs[0].data, answer.outputs[0].data)),
      h("td", { class: "n" }, ms(answer.ms)));
  });
  const own = h("tr", { class: "kept" },
    h("th", { scope: "row" }, found.served), h("td", {}, summary(served.outputs[0], told)), h("td", {}, "serves"), h("td", { class: "n" }, "1.0000"), h("td", {}));
  return table("How each method answers", ["Method", "Answer", "Best answer", "Cosine", "Time"], [own, ...rows]);
};

const summary = (output, told) => {
  const classes = best(output, told, 3);
  return classes ? classes.map(({ label, share }) => `${label} ${percent(share)}`).join(", ") : few(output.data);
};

const sameness = (one, other, told) => {
  const [first, second] = [best(one, told, 1), best(other, told, 1)];
  return first && second ? (first[0].index === second[0].index ? "the same" : h("strong", { class: "bad" }, "another")) : NONE;
};

const cosine = (one, other) => {
  if (one.length !== other.length || [...one, ...other].some((value) => value === null)) return NONE;
  const dot = (a, b) => a.reduce((sum, value, index) => sum + value * b[index], 0);
  return (dot(one, other) / Math.sqrt(dot(one, one) * dot(other, other))).toFixed(4);
};
