// The audit trail as it is written, newest first.

import { byId, h } from "./dom.js";
import { time } from "./format.js";

const KEPT = 100, LONGEST = 240;
const LEFT_OUT = ["schema", "event", "at", "boot_id"];

export const clearEvents = () => byId("events").replaceChildren(h("li", { class: "quiet" }, "None since the agent started."));

export const showEvent = (told) => {
  const list = byId("events");
  if (list.firstElementChild?.className === "quiet") list.replaceChildren();
  const details = Object.entries(moved(told) ?? told).filter(([name, value]) => !LEFT_OUT.includes(name) && value !== null);
  list.prepend(h("li", {},
    h("time", { datetime: told.at }, time(told.at)), " ",
    h("strong", {}, String(told.event).replaceAll("_", " ")), " ",
    h("span", { class: "quiet" }, details.map(([name, value]) => `${name} ${text(value)}`.trim()).join(" · "))));
  while (list.childElementCount > KEPT) list.lastElementChild.remove();
};

// A transition says where from and where to: one field instead of three.
const moved = (told) => {
  if (told.from === undefined || told.phase === undefined) return null;
  const { from, phase, state, ...rest } = told;
  const hasEnded = state !== "running" && state !== "accepted";
  return { ...rest, "": `${from} → ${hasEnded ? state : phase}` };
};

const text = (value) => {
  const told = value.code ? `${value.code}: ${value.detail}` : typeof value === "object" ? JSON.stringify(value) : String(value);
  return told.length > LONGEST ? `${told.slice(0, LONGEST)}…` : told;
};
