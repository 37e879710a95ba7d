// Elements from values. Everything that the device says becomes a text node: nothing here can make markup of it.

export const byId = (id) => document.getElementById(id);

const fill = (element, properties, children) => {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
};

export const h = (tag, properties = {}, ...children) => fill(document.createElement(tag), properties, children);

export const svg = (tag, properties = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);

// A table in a box that scrolls by itself, so that the page never does sideways.
export const table = (caption, head, rows) =>
  h("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": caption },
    h("table", {},
      h("caption", { class: "unseen" }, caption),
      h("thead", {}, h("tr", {}, head.map((cell) => h("th", { scope: "col" }, cell)))),
      h("tbody", {}, rows)));

export const fact = (name, value, more) =>
  h("div", {}, h("dt", {}, name), h("dd", {}, value, more ? h("span", { class: "quiet" }, ` ${more}`) : null));
