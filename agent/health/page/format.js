// Figures in words. What is not known is a dash.

export const NONE = "–";

export const size = (bytes) => {
  if (bytes === null || bytes === undefined) return NONE;
  let value = bytes;
  for (const unit of ["B", "KiB", "MiB"]) {
    if (value < 1024) return `${unit === "B" || value >= 100 ? value.toFixed(0) : value.toFixed(1)} ${unit}`;
    value /= 1024;
  }
  return `${value.toFixed(1)} GiB`;
};

export const percent = (share, digits = 1) =>
  share === null || share === undefined ? NONE : `${(100 * share).toFixed(digits)} %`;

export const ms = (value) =>
  value === null || value === undefined ? NONE : `${value < 10 ? value.toFixed(2) : value.toFixed(value < 100 ? 1 : 0)} ms`;

export const count = (value) => (value === null || value === undefined ? NONE : value.toLocaleString("en"));

export const rate = (value) =>
  value === null || value === undefined ? NONE : `${value < 10 ? value.toFixed(1) : value.toFixed(0)}/s`;

const CLOCK = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };

export const time = (text) => (text ? new Date(text).toLocaleTimeString("en-GB", CLOCK) : NONE);

export const moment = (text) => {
  if (!text) return NONE;
  const at = new Date(text);
  const isToday = at.toDateString() === new Date().toDateString();
  return isToday ? time(text) : `${at.toISOString().slice(0, 10)} ${time(text)}`;
};

const SOURCES = {
  nvml: "the GPU's driver (NVML)", cuda: "CUDA", meminfo: "the system (/proc/meminfo)",
  cgroup: "the agent's control group", profile: "the device's profile",
};

export const source = (name) => SOURCES[name] ?? name ?? NONE;
