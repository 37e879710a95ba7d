// From strokes or a picture to the values that the model takes: (1, channels, height, width).
//
// Both are painted four times as large as the input and averaged down, so that lines keep their greys. Drawn ink is
// moved to the middle and never scaled: its size tells characters apart, and training kept it too.

import { drawStrokes } from "./pad.js";

const FINE = 4;
const MEAN = [0.485, 0.456, 0.406], DEVIATION = [0.229, 0.224, 0.225];
const INK = 0.3;
const LARGEST_SIDE = 512;

// The image in a model's only input, or null where that is none.
export const imageOf = (inputs) => {
  if (inputs?.length !== 1) return null;
  const { name, datatype, shape } = inputs[0];
  if (shape.length !== 4 || !["FP32", "FP64"].includes(datatype) || ![-1, 1].includes(shape[0])) return null;
  const [, channels, height, width] = shape;
  const isSized = [height, width].every((side) => side > 0 && side <= LARGEST_SIDE);
  return isSized && [1, 3].includes(channels) ? { name, datatype, channels, height, width } : null;
};

const canvasOf = (image) => {
  const canvas = document.createElement("canvas");
  canvas.width = FINE * image.width;
  canvas.height = FINE * image.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  return [canvas, context];
};

// Light on black, in the colours of one or three channels.
export const ofStrokes = (strokes, image, isCentred) => {
  const [canvas, context] = canvasOf(image);
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  drawStrokes(context, strokes, canvas.width, canvas.height, "#fff", isCentred ? offset(strokes.flat()) : [0, 0]);
  return planes(context, image);
};

const offset = (points) => [0, 1].map((axis) => {
  const along = points.map((point) => point[axis]);
  return along.length ? 0.5 - (Math.min(...along) + Math.max(...along)) / 2 : 0;
});

export const ofPicture = async (file, image, isCentred, ink) => {
  const picture = await createImageBitmap(file);
  const scale = Math.min((FINE * image.width) / picture.width, (FINE * image.height) / picture.height);
  const [width, height] = [picture.width * scale, picture.height * scale];
  const paint = (dx, dy, paper) => {
    const [canvas, context] = canvasOf(image);
    context.fillStyle = paper;
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, (canvas.width - width) / 2 + dx, (canvas.height - height) / 2 + dy, width, height);
    return planes(context, image);
  };
  const isDark = ink === "dark" || (ink === "auto" && image.channels === 1 && isBright(paint(0, 0, "#fff")));
  const paper = isDark ? "#fff" : "#000";
  const turned = (values) => (isDark && image.channels === 1 ? values.map((value) => 1 - value) : values);
  const plain = turned(paint(0, 0, paper));
  if (!isCentred || image.channels !== 1) return plain;
  const [dx, dy] = inkOffset(plain, image);
  return turned(paint(dx * FINE, dy * FINE, paper));
};

const isBright = (values) => values.reduce((sum, value) => sum + value, 0) > values.length / 2;

const inkOffset = (values, { width, height }) => {
  const found = [...values.keys()].filter((index) => values[index] > INK);
  const columns = found.map((index) => index % width), rows = found.map((index) => Math.floor(index / width));
  const middle = (along, side) => {
    const [first, last] = along.reduce(([low, high], each) => [Math.min(low, each), Math.max(high, each)], [side, -1]);
    return last < 0 ? 0 : Math.round((side - 1 - first - last) / 2);
  };
  return [middle(columns, width), middle(rows, height)];
};

// Average the fine canvas down: values between 0 and 1, one plane a channel.
const planes = (context, { channels, width, height }) => {
  const fine = context.getImageData(0, 0, FINE * width, FINE * height).data;
  const values = new Float64Array(channels * width * height);
  const weights = channels === 1 ? [[0.299, 0.587, 0.114]] : [[1, 0, 0], [0, 1, 0], [0, 0, 1]];
  for (let y = 0; y < FINE * height; y += 1) {
    for (let x = 0; x < FINE * width; x += 1) {
      const from = 4 * (y * FINE * width + x), to = Math.floor(y / FINE) * width + Math.floor(x / FINE);
      weights.forEach((weight, channel) => {
        const grey = weight[0] * fine[from] + weight[1] * fine[from + 1] + weight[2] * fine[from + 2];
        values[channel * width * height + to] += grey / (255 * FINE * FINE);
      });
    }
  }
  return values;
};

export const scaled = (values, how, { channels, width, height }) => {
  if (how === "signed") return values.map((value) => 2 * value - 1);
  if (how !== "imagenet") return values;
  const plane = width * height;
  return values.map((value, index) => {
    const channel = channels === 1 ? 0 : Math.floor(index / plane);
    return (value - MEAN[channel]) / DEVIATION[channel];
  });
};

export const show = (canvas, values, { channels, width, height }) => {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d"), pixels = context.createImageData(width, height), plane = width * height;
  for (let index = 0; index < plane; index += 1) {
    for (let colour = 0; colour < 3; colour += 1) {
      pixels.data[4 * index + colour] = 255 * values[(channels === 3 ? colour * plane : 0) + index];
    }
    pixels.data[4 * index + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
};

export const request = (values, image, how) => {
  const data = Array.from(scaled(values, how, image), (value) => Math.round(value * 1e4) / 1e4);
  const shape = [1, image.channels, image.height, image.width];
  return { inputs: [{ name: image.name, datatype: image.datatype, shape, data }] };
};
