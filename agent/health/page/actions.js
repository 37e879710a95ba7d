// Commands, for who has a token. It stays in this tab's memory: a reload forgets it, and another box behind the same
// address and port never gets it.

import { byId } from "./dom.js";

let token = null;

export const authorized = (headers = {}) => (token ? { ...headers, Authorization: `Bearer ${token}` } : headers);

export const failure = async (response) => {
  try {
    return (await response.json()).error ?? `HTTP ${response.status}`;
  } catch {
    return `HTTP ${response.status}`;
  }
};

export const note = (text, isBad = false) => {
  const place = byId("note");
  place.hidden = !text;
  place.textContent = text;
  place.className = isBad ? "note bad" : "note";
};

// Ask in the page's dialog; resolves to what was entered (an empty text where nothing is), or null.
const ask = (title, text, { isSecret = false, yes = "OK", check = async () => "" }) => {
  const dialog = byId("ask"), secret = byId("ask-secret"), error = byId("ask-error");
  byId("ask-title").textContent = title;
  byId("ask-text").textContent = text;
  byId("ask-yes").textContent = yes;
  byId("ask-secret-label").hidden = !isSecret;
  error.textContent = secret.value = "";
  return new Promise((resolve) => {
    const submit = async (event) => {
      if (event.submitter?.value !== "yes") return;
      event.preventDefault();
      error.textContent = await check(secret.value);
      if (!error.textContent) dialog.close("yes");
    };
    dialog.addEventListener("submit", submit);
    dialog.addEventListener("close", () => {
      dialog.removeEventListener("submit", submit);
      resolve(dialog.returnValue === "yes" ? secret.value : null);
      secret.value = "";
    }, { once: true });
    dialog.returnValue = "no";
    dialog.showModal();
  });
};

// Let a token be entered, and checked before it is taken.
export const unlock = async (what) => {
  let rights = null;
  const check = async (entered) => {
    const response = await fetch("access", { headers: { Authorization: `Bearer ${entered.trim()}` } });
    if (!response.ok) return failure(response);
    rights = await response.json();
    return "";
  };
  const entered = await ask("Unlock actions", what, { isSecret: true, yes: "Unlock", check });
  if (entered !== null) token = entered.trim();
  return entered === null ? null : rights;
};

export const lock = () => { token = null; };

export const act = async (name, fields, title, text) => {
  if (await ask(title, text, { yes: "Do it" }) === null) return;
  try {
    const response = await fetch(`commands/${name}`, {
      method: "POST", headers: authorized({ "Content-Type": "application/json" }), body: JSON.stringify(fields),
    });
    if (!response.ok) throw new Error(await failure(response));
    note(`Sent as operation ${(await response.json()).id}.`);
  } catch (error) {
    note(`Not sent: ${error.message}`, true);
  }
};
