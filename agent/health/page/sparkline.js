// The last two minutes as a line; a gap where nothing was counted.

import { svg } from "./dom.js";

const WIDTH = 96, HEIGHT = 20, POINTS = 60;

export const sparkline = (values, what) => {
  const top = Math.max(...values.filter((value) => value !== null), 0) || 1;
  const step = WIDTH / (POINTS - 1);
  const first = POINTS - values.length;
  let path = "", isDown = false;
  values.forEach((value, index) => {
    if (value === null) {
      isDown = false;
      return;
    }
    const x = ((first + index) * step).toFixed(1), y = (HEIGHT - 1 - (value / top) * (HEIGHT - 2)).toFixed(1);
    path += `${isDown ? "L" : "M"}${x} ${y}`;
    if (!isDown) path += `h0.1`;
    isDown = true;
  });
  return svg("svg", { class: "line", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${what}, the last two minutes` },
    svg("path", { d: path || "M0 0", fill: "none" }));
};
