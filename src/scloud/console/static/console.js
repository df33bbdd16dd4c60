// Forms answer where they are; regions marked `data-live` follow what happens. Without this, pages can still be read.
"use strict";

const POLL_MS = 5000;
const GENTLE_MS = 400; // many changes at once are one refresh
const DONE_STAYS_MS = 8000;
const byId = (id) => document.getElementById(id);
const main = byId("main");
const cards = byId("operations");

// --- refreshing what is shown

let refreshing = false;
let again = false;

function busyInside(region) {
  const active = document.activeElement;
  const typing = active && region.contains(active) && active.matches("input, select, textarea");
  return typing || region.querySelector("details[open] :is(input:not([type=hidden]), select, textarea)") !== null
    || region.querySelector(".answer:not(:empty)") !== null;
}

function put(region, fresh) {
  if (region.innerHTML === fresh.innerHTML || busyInside(region)) return;
  const open = [...region.querySelectorAll("details[open][id]")].map((item) => item.id);
  const focused = region.contains(document.activeElement) ? document.activeElement.id : "";
  const log = region.matches("[data-tail]") ? region.querySelector("pre") : null;
  const place = log && { top: log.scrollTop, end: log.scrollTop + log.clientHeight >= log.scrollHeight - 8 };
  region.className = fresh.className;
  region.replaceChildren(...fresh.childNodes);
  for (const id of open) byId(id)?.setAttribute("open", "");
  if (focused) byId(focused)?.focus();
  if (region.matches("[data-tail]")) tail(region, place);
}

function tail(region, place) {
  const log = region.querySelector("pre");
  if (log) log.scrollTop = !place || place.end ? log.scrollHeight : place.top;
}

async function refresh(which) {
  if (refreshing) { again = true; return; }
  const regions = [...document.querySelectorAll(which || "[data-live]")];
  if (regions.length === 0) return;
  refreshing = true;
  try {
    const answer = await fetch(location.href, { headers: { "X-Requested-With": "fetch" } });
    if (answer.status === 401) { location.assign(answer.headers.get("X-Go") || "/login"); return; }
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (answer.status === 404) { // what the page is about is gone
      const gone = page.getElementById("main");
      gone.querySelector("#operations")?.remove();
      main.replaceChildren(cards, ...gone.childNodes);
    } else if (answer.ok) {
      for (const region of regions) {
        const fresh = page.getElementById(region.id);
        if (fresh) put(region, fresh);
      }
    }
  } catch {
    // no connection: the stream says so and asks again
  } finally {
    refreshing = false;
    if (again) { again = false; soon(); }
  }
}

let timer = 0;
function soon() {
  clearTimeout(timer);
  timer = setTimeout(refresh, GENTLE_MS);
}

// --- the stream of changes: one for each page that is looked at, because a browser has only six connections

let source = null;
let latest = document.body.dataset.since || "";
let begun = document.body.dataset.begun || "";

const running = () => [...cards.querySelectorAll("[data-operation]")]
  .filter((card) => card.dataset.state === "queued" || card.dataset.state === "running")
  .map((card) => card.dataset.operation);

function listen() {
  source?.close();
  source = null;
  if (document.hidden || !cards) return;
  const query = new URLSearchParams(running().map((id) => ["op", id]));
  if (latest) query.set("after", latest);
  query.set("begun", begun);
  for (const look of ["storage", "incidents"]) {
    if (document.querySelector(`[data-${look}]`)) query.set(look, "1");
  }
  source = new EventSource(`/live?${query}`);
  source.addEventListener("open", () => {
    if (!byId("offline").hidden) soon(); // what was missed
    byId("offline").hidden = true;
  });
  source.addEventListener("error", () => {
    byId("offline").hidden = false;
    if (source?.readyState !== EventSource.CLOSED) return; // it connects again by itself
    setTimeout(() => { listen(); soon(); }, 3000); // refused: the refresh finds out why
  });
  source.addEventListener("change", (event) => {
    latest = event.lastEventId || latest;
    begun = event.data || begun;
    soon();
  });
  source.addEventListener("operation", (event) => {
    const told = JSON.parse(event.data);
    const card = byId(told.id);
    if (!card) return;
    card.insertAdjacentHTML("afterend", told.html);
    card.remove();
    settle(byId(told.id));
    soon();
  });
}

function settle(card) {
  if (!card) return;
  const state = card.dataset.state;
  const ended = state === "done" || state === "failed" || state === "cancelled";
  card.querySelector("[data-dismiss]").hidden = !ended;
  if (state === "done") setTimeout(() => { if (!card.contains(document.activeElement)) card.remove(); }, DONE_STAYS_MS);
}

// --- forms

function clearProblems(form) {
  for (const item of form.querySelectorAll("[aria-invalid]")) {
    item.removeAttribute("aria-invalid");
    item.removeAttribute("aria-errormessage");
  }
  for (const item of form.querySelectorAll(".wrong")) item.remove();
}

// `spec.nics.0.ip` belongs to the field of that name, or the nearest one above it.
function fieldOf(form, path) {
  for (let parts = path.split("."); parts.length; parts.pop()) {
    const name = CSS.escape(parts.join("."));
    const found = form.querySelector(`[name="${name}"]:not([type=hidden]):not([type=checkbox]), [data-field="${name}"]`);
    if (found) return found;
  }
  return null;
}

function showProblems(form, slot) {
  let first = null;
  for (const item of slot.querySelectorAll("[data-field]")) {
    const field = fieldOf(form, item.dataset.field);
    if (!field) continue;
    const note = document.createElement("p");
    note.className = "wrong";
    note.id = `wrong-${field.id || item.dataset.field}`;
    note.textContent = item.querySelector("span").textContent;
    field.closest(".field, fieldset, form").append(note);
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-errormessage", note.id);
    for (let outer = field.closest("details"); outer; outer = outer.parentElement.closest("details")) outer.open = true;
    first ||= field;
    item.remove();
  }
  slot.querySelector(".fields:empty")?.remove();
  (first || slot).scrollIntoView({ block: "nearest" });
  first?.focus?.();
}

async function submit(form, button) {
  const action = button?.getAttribute("formaction") || form.getAttribute("action");
  const slot = form.querySelector(".answer");
  const buttons = form.querySelectorAll("button");
  clearProblems(form);
  slot.replaceChildren();
  const body = new URLSearchParams(new FormData(form));
  for (const item of buttons) item.disabled = true;
  try {
    const answer = await fetch(action, { method: "POST", body, headers: { "X-Requested-With": "fetch" } });
    const go = answer.headers.get("X-Go");
    if (go) { location.assign(go); return; }
    const text = await answer.text();
    if (answer.ok && answer.headers.get("X-Put") === "operations") {
      cards.insertAdjacentHTML("beforeend", text);
      if (form.matches("[data-upload]")) upload(form, cards.lastElementChild);
      form.closest("details.sure")?.removeAttribute("open");
      if (!form.closest("details, [data-live]") && !form.matches("[data-upload]")) form.reset();
      for (const card of cards.children) settle(card);
      listen();
      soon();
    } else {
      slot.insertAdjacentHTML("beforeend", text);
      if (!answer.ok) showProblems(form, slot);
      for (const item of slot.querySelectorAll("[data-copy]")) item.hidden = !navigator.clipboard;
    }
  } catch {
    slot.textContent = "The manager does not answer. Try again.";
  } finally {
    for (const item of buttons) item.disabled = false;
  }
}

// The image resource is there and waits for its bytes; they go to the API itself.
async function upload(form, card) {
  const file = form.querySelector("input[type=file]").files[0];
  const bar = form.querySelector("progress");
  const slot = form.querySelector(".answer");
  const operation = await (await fetch(`/api/v1/operations/${card.dataset.operation}`)).json();
  const request = new XMLHttpRequest();
  request.open("PUT", `/api/v1/images/${operation.resource.id}/data`);
  request.upload.onprogress = (event) => { bar.value = (100 * event.loaded) / event.total; };
  request.onloadend = () => {
    bar.hidden = true;
    if (request.status === 202) { form.reset(); return; }
    let detail = "The upload broke off.";
    try { detail = JSON.parse(request.responseText).detail; } catch { /* not our answer */ }
    slot.textContent = detail;
  };
  bar.hidden = false;
  request.send(file);
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post" || form.hasAttribute("data-plain")) return;
  event.preventDefault();
  submit(form, event.submitter);
});

document.addEventListener("click", (event) => {
  if (event.target.closest("[data-dismiss]")) event.target.closest(".op").remove();
  const copy = event.target.closest("[data-copy]");
  if (copy) navigator.clipboard.writeText(copy.closest(".reveal").querySelector("code").textContent);
  for (const open of document.querySelectorAll("details.sure[open]")) {
    if (!open.contains(event.target)) open.removeAttribute("open");
  }
});

document.addEventListener("keydown", (event) => {
  const open = event.key === "Escape" && document.querySelector("details.sure[open]");
  if (open) { open.removeAttribute("open"); open.querySelector("summary").focus(); }
});

// --- start

if (cards) {
  if (new URLSearchParams(location.search).has("op")) { // shown once; a reload must not bring it back
    const url = new URL(location.href);
    url.searchParams.delete("op");
    history.replaceState(null, "", url);
  }
  for (const form of document.querySelectorAll("form[data-upload]")) form.hidden = false;
  for (const card of cards.children) settle(card);
  for (const region of document.querySelectorAll("[data-tail]")) tail(region);
  const side = document.querySelector(".side");
  side.scrollLeft = (side.querySelector("[aria-current]")?.offsetLeft || 0) - side.clientWidth / 2;
  document.addEventListener("visibilitychange", () => { listen(); if (!document.hidden) soon(); });
  window.addEventListener("pagehide", () => source?.close());
  listen();
  setInterval(() => { if (!document.hidden) refresh("[data-poll]"); }, POLL_MS);
}
