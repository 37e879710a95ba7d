// How the box is doing, each figure with its source where it has one.

import { byId, fact, h } from "./dom.js";
import { NONE, size } from "./format.js";

let about = {}, health = {};

export const showBox = (told) => { about = told; draw(); };

export const showHealth = (told) => {
  health = told;
  const status = byId("status");
  status.textContent = told.status;
  status.className = `pill ${told.status}`;
  const reasons = byId("reasons");
  reasons.hidden = !told.reasons?.length;
  reasons.replaceChildren(...(told.reasons ?? []).map((reason) => h("li", {}, reason)));
  draw();
};

const draw = () => {
  const device = health.device ?? {};
  byId("health").replaceChildren(...[...box(device), ...agent()]);
};

const box = (device) => {
  const board = device.board ?? {}, gpu = device.gpu, cpu = health.cpu ?? {}, memory = device.memory ?? {};
  const degrees = Object.entries(device.temperatures_c ?? {}).filter(([, value]) => value !== null);
  return [
    board.model ? fact("Board", board.model, board.jetpack ? `JetPack ${board.jetpack}` : board.l4t) : null,
    board.power_mode_name ? fact("Power mode", board.power_mode_name) : null,
    gpu ? fact("GPU", gpu.name ?? "unnamed", gpuText(gpu)) : fact("GPU", "none seen", device.gpu_source),
    fact("Processor", `load ${cpu.load_1 ?? NONE}`, `of ${cpu.cpus ?? NONE}; ${cpu.load_5 ?? NONE} over 5 min`),
    fact("Main memory", size(memory.ram_available_bytes), `of ${size(memory.ram_total_bytes)} available (${memory.ram_source ?? NONE})`),
    fact("Disk", size(health.disk?.free_bytes), `of ${size(health.disk?.total_bytes)} free`),
    degrees.length ? fact("Temperature", degrees.map(([zone, value]) => `${zone} ${value.toFixed(0)} °C`).join(", ")) : null,
    device.power?.total_w ? fact("Power", `${device.power.total_w.toFixed(1)} W`, device.power.total_rail) : null,
    fact("Clock", health.clock_synchronised ? "synchronised" : "not synchronised"),
    board.kernel ? fact("Kernel", board.kernel) : null,
  ].filter(Boolean);
};

const gpuText = (gpu) => [
  gpu.utilisation_percent === null || gpu.utilisation_percent === undefined ? null : `${gpu.utilisation_percent} % busy`,
  gpu.used_bytes && gpu.total_bytes ? `${size(gpu.used_bytes)} of ${size(gpu.total_bytes)} used` : null,
  gpu.temperature_c ? `${gpu.temperature_c} °C` : null,
  gpu.power_w ? `${gpu.power_w.toFixed(0)} W` : null,
  gpu.driver ? `driver ${gpu.driver}` : null,
].filter(Boolean).join(", ");

const agent = () => [
  fact("Broker", about.broker ?? NONE, about.connection?.connected ? "connected" : "not connected"),
  fact("Inference", about.inference ?? NONE),
  fact("Agent", size(health.supervisor_rss_bytes), `nibbled ${about.agent ?? NONE}`),
  fact("Server", size(health.server_rss_bytes), `${health.server_starts ?? NONE} starts`),
  health.mode && health.mode !== "current" ? fact("Mode", health.mode) : null,
].filter(Boolean);
