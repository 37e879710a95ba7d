// Ask a model: by a drawing, a picture, or any request of the Open Inference Protocol.

import { authorized, failure } from "./actions.js";
import { comparison, shown } from "./answers.js";
import { byId, h } from "./dom.js";
import { imageOf, ofPicture, ofStrokes, request, show } from "./image.js";
import { makePad } from "./pad.js";

const PAD = 256, AFTER_STROKE_MS = 250, EXAMPLE_LENGTH = 8, LONGEST_EXAMPLE = 4096;
let told = null, image = null, access = {}, models = {}, timer = null, last = null, asking = 0;
let pad = null;

export const startTrying = () => {
  pad = makePad(byId("pad"), () => {
    clearTimeout(timer);
    timer = setTimeout(ask, AFTER_STROKE_MS);
  });
  byId("clear").addEventListener("click", () => { pad.clear(); forget(); preview(); });
  byId("undo").addEventListener("click", () => { pad.undo(); pad.strokes.length ? ask() : (forget(), preview()); });
  byId("try-model").addEventListener("change", () => describe(byId("try-model").value));
  byId("file").addEventListener("change", ask);
  for (const id of ["ink", "values", "centre"]) byId(id).addEventListener("change", () => { forget(); preview(); });
  for (const radio of document.getElementsByName("mode")) radio.addEventListener("change", mode);
  byId("try").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  byId("compare").addEventListener("click", compare);
};

export const allowTrying = (about) => { access = about; visible(); };

export const showChoices = (served) => {
  models = served;
  const select = byId("try-model"), names = Object.keys(served), before = select.value;
  select.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
  if (names.includes(before)) select.value = before;
  visible();
  if (names.length) describe(select.value);
};

const visible = () => { byId("trying").hidden = !Object.keys(models).length || access.ask === "off"; };

const describe = async (name) => {
  const response = await fetch(`models/${name}`);
  if (!response.ok) return say(await failure(response), true);
  const before = told;
  told = await response.json();
  offerOthers();
  if (before && JSON.stringify([before.model, before.inputs]) === JSON.stringify([told.model, told.inputs])) return undefined;
  image = imageOf(told.inputs);
  if (image) pad.size(PAD * Math.min(1, image.width / image.height), PAD * Math.min(1, image.height / image.width));
  byId("json").value = JSON.stringify(example(told.inputs), null, 1).replace(/\[\s+([-\d.,\s]+?)\s+\]/g, (_, inner) => `[${inner.replace(/\s+/g, " ")}]`);
  for (const radio of document.getElementsByName("mode")) {
    radio.closest("label").hidden = !image && radio.value !== "json";
    radio.checked = radio.value === (image ? "draw" : "json");
  }
  byId("ink-label").hidden = byId("centre-label").hidden = image?.channels !== 1;
  forget();
  mode();
  return undefined;
};

const chosen = () => [...document.getElementsByName("mode")].find((radio) => radio.checked).value;

const mode = () => {
  const now = chosen();
  byId("by-image").hidden = now === "json";
  byId("by-json").hidden = now !== "json";
  byId("pad").hidden = byId("pad-buttons").hidden = now !== "draw";
  byId("file-label").hidden = now !== "image";
  forget();
  preview();
};

// An input as the metadata describes it: one row, few steps, and numbers that the model accepts.
const example = (inputs) => ({
  inputs: inputs.map(({ name, datatype, shape, minimum }) => {
    const sizes = shape.map((side, axis) => (side > 0 ? side : axis ? EXAMPLE_LENGTH : 1));
    const length = sizes.reduce((product, side) => product * side, 1);
    const value = datatype === "BOOL" ? true : /mask/.test(name) ? 1 : Math.max(minimum ?? 0, 0);
    return { name, datatype, shape: sizes, data: length <= LONGEST_EXAMPLE ? Array(length).fill(value) : [] };
  }),
});

const values = async () => {
  const isCentred = byId("centre").checked;
  if (chosen() === "draw") {
    if (!pad.strokes.length) return null;
    const drawn = ofStrokes(pad.strokes, image, isCentred);
    return byId("ink").value === "dark" ? drawn.map((value) => 1 - value) : drawn;
  }
  const [file] = byId("file").files;
  return file ? ofPicture(file, image, isCentred, byId("ink").value) : null;
};

const preview = async () => {
  if (!image || chosen() === "json") return null;
  let found = null;
  try {
    found = await values();
  } catch (error) {
    say(`The picture cannot be read: ${error.message}`, true);
  }
  show(byId("seen"), found ?? new Float64Array(image.channels * image.height * image.width), image);
  byId("seen-text").textContent = `${image.channels} × ${image.height} × ${image.width}, as the model gets it`;
  return found;
};

// The request's text, or null where there is nothing to ask yet.
const question = async () => {
  if (chosen() === "json") return byId("json").value;
  const found = await preview();
  return found && JSON.stringify(request(found, image, byId("values").value));
};

const forget = () => {
  last = null;
  clearTimeout(timer);
  byId("answer").replaceChildren();
  byId("others").replaceChildren();
  offerOthers();
};

const say = (text, isBad = false) => byId("answer").replaceChildren(h("p", { class: isBad ? "bad" : "quiet" }, text));

const post = async (verb, body) => {
  const response = await fetch(`models/${told.model}/${verb}`, {
    method: "POST", headers: authorized({ "Content-Type": "application/json" }), body,
  });
  if (!response.ok) throw new Error(await failure(response));
  return response.json();
};

const ask = async () => {
  clearTimeout(timer);
  const number = (asking += 1);
  try {
    const body = await question();
    if (!body) return say(chosen() === "draw" ? "Draw something first." : "Choose a picture first.");
    const began = performance.now();
    const answer = await post("infer", body);
    if (number !== asking) return undefined;  // something newer is on its way
    last = { body, answer };
    byId("answer").replaceChildren(...shown(answer, told, performance.now() - began));
    byId("others").replaceChildren();
  } catch (error) {
    if (number === asking) say(error.message, true);
  }
  offerOthers();
  return undefined;
};

const offerOthers = () => {
  const others = told?.others ?? [];
  byId("compare").disabled = !others.length || !last;
  byId("compare-text").textContent = others.length
    ? `in the store: ${others.join(", ")}` : `only ${told?.method ?? "one method"} is in the store`;
};

const compare = async () => {
  const { body, answer } = last, button = byId("compare");
  button.disabled = true;
  byId("others").replaceChildren(h("p", { class: "quiet" }, "A process of their own loads one after another…"));
  try {
    byId("others").replaceChildren(comparison(answer, await post("compare", body), told));
  } catch (error) {
    byId("others").replaceChildren(h("p", { class: "bad" }, error.message));
  }
  offerOthers();
};
