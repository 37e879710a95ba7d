// A pad to draw on with mouse, pen or finger. Strokes are kept as points between 0 and 1, so that they can be drawn
// again at any size.

export const PEN = 5 / 64;

export const makePad = (canvas, onStroke) => {
  let strokes = [], current = null;
  const context = canvas.getContext("2d");

  const paint = () => {
    const style = getComputedStyle(canvas), side = canvas.width;
    context.fillStyle = style.getPropertyValue("--paper");
    context.fillRect(0, 0, side, canvas.height);
    guide(context, side, canvas.height, style.getPropertyValue("--line"));
    drawStrokes(context, strokes, side, canvas.height, style.getPropertyValue("--pen"));
  };

  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    current = [place(event)];
    strokes.push(current);
    paint();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!current) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) current.push(place(each));
    paint();
  });
  const end = () => {
    if (!current) return;
    current = null;
    onStroke();
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);

  return {
    get strokes() { return strokes; },
    size: (width, height) => { canvas.width = width; canvas.height = height; paint(); },
    clear: () => { strokes = []; paint(); },
    undo: () => { strokes.pop(); paint(); },
  };
};

// The middle of the paper, and the margin that a character is drawn within.
const guide = (context, width, height, colour) => {
  context.strokeStyle = colour;
  context.lineWidth = 1;
  context.setLineDash([4, 6]);
  context.strokeRect(width * 5 / 64, height * 5 / 64, width * 54 / 64, height * 54 / 64);
  context.beginPath();
  context.moveTo(width / 2, 0);
  context.lineTo(width / 2, height);
  context.moveTo(0, height / 2);
  context.lineTo(width, height / 2);
  context.stroke();
  context.setLineDash([]);
};

export const drawStrokes = (context, strokes, width, height, colour, [dx, dy] = [0, 0]) => {
  context.strokeStyle = context.fillStyle = colour;
  context.lineWidth = PEN * Math.min(width, height);
  context.lineCap = context.lineJoin = "round";
  for (const points of strokes) {
    context.beginPath();
    points.forEach(([x, y], index) => context[index ? "lineTo" : "moveTo"]((x + dx) * width, (y + dy) * height));
    if (points.length === 1) context.lineTo((points[0][0] + dx) * width, (points[0][1] + dy) * height);
    context.stroke();
  }
};
