"use strict";
// Reads status.json every two seconds and writes text nodes only, so nothing that a device reports can become markup.
const byId = (id) => document.getElementById(id);
const size = (n) => {
  if (n == null) return "–";
  const units = ["B", "KiB", "MiB", "GiB"];
  let i = 0;
  while (n >= 1024 && i < 3) { n /= 1024; i += 1; }
  return `${n.toFixed(i ? 1 : 0)} ${units[i]}`;
};
const percent = (x) => (x == null ? "–" : `${(100 * x).toFixed(1)} %`);
const rows = (id, table) => {
  byId(id).replaceChildren(...table.map((cells) => {
    const tr = document.createElement("tr");
    for (const cell of cells) {
      const td = document.createElement("td");
      td.textContent = cell ?? "–";
      tr.append(td);
    }
    return tr;
  }));
};
const explain = (models) => {
  byId("why").replaceChildren(...Object.entries(models).flatMap(([name, m]) => {
    const told = (m.decision && m.decision.explanation) || [];
    if (!told.length) return [];
    const title = document.createElement("h3");
    title.textContent = `${name}: ${m.method}`;
    const list = document.createElement("ul");
    for (const sentence of told) {
      const item = document.createElement("li");
      item.textContent = sentence;
      list.append(item);
    }
    return [title, list];
  }));
};
const show = (s) => {
  const health = s.health;
  byId("device").textContent = `nibbled · ${s.device_id}`;
  byId("status").textContent = health.status;
  byId("status").className = `pill ${health.status}`;
  byId("reasons").textContent = (health.reasons || []).join(" · ");
  rows("models", Object.entries(s.models).map(([name, m]) => {
    const live = (health.models || {})[name] || {};
    const p50 = live.latency_ms && live.latency_ms.p50;
    return [name, m.version, m.method, size(m.artifact_bytes), size(m.resident_bytes), percent(m.agreement),
      live.requests, p50 == null ? "–" : `${p50.toFixed(1)} ms`, m.previous ? `${m.previous.version} ${m.previous.method}` : "–"];
  }));
  explain(s.models);
  rows("operations", s.operations.map((o) => [o.id, o.command, o.model, o.state, o.phase,
    o.error ? `${o.error.code}: ${o.error.detail}` : (o.decision && o.decision.reason)]));
  const memory = (health.device || {}).memory || {};
  rows("facts", [
    ["memory", `${size(memory.available_bytes)} available of ${size(memory.total_bytes)} (${memory.source})`],
    ["budget for models", size(memory.bytes)],
    ["supervisor", size(health.supervisor_rss_bytes)],
    ["server", size(health.server_rss_bytes)],
    ["disk free", size((health.disk || {}).free_bytes)],
    ["broker", s.broker],
    ["inference", s.inference],
    ["agent", s.agent],
  ]);
  byId("updated").textContent = `last update ${new Date().toLocaleTimeString()}`;
  document.body.classList.remove("stale");
};
const poll = async () => {
  try {
    const response = await fetch("status.json", { cache: "no-store" });
    if (!response.ok) throw new Error(String(response.status));
    show(await response.json());
  } catch {
    document.body.classList.add("stale");
  }
};
poll();
setInterval(poll, 2000);
