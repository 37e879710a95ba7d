// The page: one stream in, sections out.

import { lock, unlock } from "./actions.js";
import { byId } from "./dom.js";
import { clearEvents, showEvent } from "./events.js";
import { showBox, showHealth } from "./health.js";
import { showHeld, showMemory, showServer } from "./memory.js";
import { showAbout, showLive, showModels } from "./models.js";
import { showOperations, showProgress } from "./operations.js";
import { listen } from "./stream.js";
import { allowTrying, showChoices, startTrying } from "./trying.js";

const WORDS = { live: "live", lost: "no connection; what is shown is old" };
let about = null, rights = null;

const told = (now) => {
  about = now;
  document.title = `${now.device_id} · nibbled`;
  byId("device").textContent = now.device_id;
  const button = byId("unlock");
  button.hidden = now.access.command !== "token" && now.access.ask !== "token";
  button.textContent = rights ? "Lock actions" : "Unlock actions";
  showAbout({ ...now, isUnlocked: Boolean(rights?.command) });
  showBox(now);
  allowTrying(now.access);
};

byId("unlock").addEventListener("click", async () => {
  if (rights) {
    lock();
    rights = null;
  } else {
    rights = await unlock("A token of status.token_file lets you switch methods and roll back, one of serving.token_file ask models. It stays in this tab until it is closed or reloaded.");
  }
  told(about);
});

startTrying();
clearEvents();
listen({
  restarted: clearEvents,
  about: told,
  health: showHealth,
  memory: showMemory,
  models: (models) => { showModels(models); showHeld(models); showChoices(models); },
  operations: showOperations,
  progress: showProgress,
  live: (live) => { showLive(live); showServer(live); },
  event: showEvent,
}, (state) => {
  byId("link").textContent = WORDS[state];
  document.body.classList.toggle("lost", state === "lost");
});
