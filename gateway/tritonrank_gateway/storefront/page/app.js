// What the page does: who looks, what they ask for, what they do, and the list that follows.

import { explain, exportUser, Failure, recommend, rememberKey, sendEvent, watchCommands } from "./api.js";
import { card, element, explained, failureOf, side, statusOf } from "./cards.js";
import { milliseconds, nameOf, textOf } from "./words.js";

const SIZE = 12;
const COMPARED = 15;
const MOST_VALUES = 14;
const PROBED = ["user-00001", "user-00002", "user-00003", "user-00004", "1", "2", "3", "10"];
const MOST_USERS = 4;
const VISITOR_ITEM = "tritonrank-visitor";
const DID = { click: "Your look at it", cart: "Your cart", purchase: "Your purchase", skip: "“Not for me”" };
const ORDERS = { retrieval: "Retrieval only", ranker: "Ranker", blend: "Ranker and blend" };

const form = document.getElementById("form");
const user = document.getElementById("user");
const other = document.getElementById("other");
const query = document.getElementById("query");
const compare = document.getElementById("compare");
const filterField = document.getElementById("filter-field");
const filterValue = document.getElementById("filter-value");
const filterMost = document.getElementById("filter-most");
const results = document.getElementById("results");
const status = document.getElementById("status");

const names = new Map(); // of items that were seen here, by id
const values = new Map(); // of fields that were seen here: what to filter by
let list = { items: [], page: "", cursor: "" };
let running = null;
let events = 0;

function visitor() {
  const kept = sessionStorage.getItem(VISITOR_ITEM) || `visitor-${crypto.getRandomValues(new Uint32Array(2)).join("-")}`;
  sessionStorage.setItem(VISITOR_ITEM, kept);
  return kept;
}

function userId() {
  if (user.value === "new") return visitor();
  return user.value === "other" ? other.value.trim() : user.value;
}

function filters() {
  const field = filterField.value;
  if (!field) return {};
  if (!filterMost.hidden) return filterMost.value === "" ? {} : { [field]: { lte: Number(filterMost.value) } };
  return filterValue.value ? { [field]: filterValue.value } : {};
}

function wish(more = {}) {
  const body = { user_id: userId(), size: SIZE, ...more };
  if (query.value.trim()) body.query = query.value.trim();
  if (Object.keys(filters()).length) body.filters = filters();
  return body;
}

// Everything that is asked takes the place of what was asked before.
async function latest(work) {
  running?.abort();
  const mine = (running = new AbortController());
  results.setAttribute("aria-busy", "true");
  try {
    await work(mine.signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (mine === running) status.replaceChildren(failureOf(error));
  } finally {
    if (mine === running) results.removeAttribute("aria-busy");
  }
}

function placesOf(items) {
  return new Map(items.map((item) => [item.item_id, item.position]));
}

function learn(items) {
  for (const item of items) {
    names.set(item.item_id, nameOf(item).name);
    for (const [field, value] of Object.entries(item.fields || {})) {
      if (field === nameOf(item).field) continue;
      if (!values.has(field)) values.set(field, new Set());
      for (const one of Array.isArray(value) ? value : [value]) if (one !== null && one !== "") values.get(field).add(one);
    }
  }
  const chosen = filterField.value;
  const offered = [...values].filter(([, found]) => isNumeric(found) || (found.size > 1 && found.size <= MOST_VALUES));
  filterField.replaceChildren(new Option("all items", ""), ...offered.map(([field]) => new Option(field.replaceAll("_", " "), field)));
  filterField.value = offered.some(([field]) => field === chosen) ? chosen : "";
}

function isNumeric(found) {
  return [...found].every((one) => typeof one === "number");
}

function offerValues() {
  const found = values.get(filterField.value);
  const numeric = found && isNumeric(found);
  filterMost.hidden = !numeric;
  filterValue.hidden = !found || numeric;
  filterMost.value = "";
  const options = found && !numeric ? [...found].map(textOf).sort() : [];
  filterValue.replaceChildren(new Option("any", ""), ...options.map((one) => new Option(one, one)));
}

function show(items, before, isMore = false) {
  const cards = items.map((item) => card(item, { before, act, why, known: names }));
  if (isMore) {
    results.querySelector("ol").append(...cards);
    cards[0]?.querySelector("button").focus();
  } else {
    results.replaceChildren(items.length ? element("ol", { class: "cards" }, ...cards) : element("p", { class: "empty" }, "Nothing fits. Ask for less."));
  }
  results.querySelector(".more")?.remove();
  if (list.cursor) results.append(element("button", { type: "button", class: "more", onclick: nextPage }, "Show more"));
}

function search(said = "") {
  return compare.checked ? compareOrders() : latest(async (signal) => {
    const { answer, total } = await recommend(wish(), signal);
    list = answer;
    learn(answer.items);
    status.replaceChildren(...statusOf(answer, total, said));
    show(answer.items, null);
  });
}

// The second page belongs to the list of the first, whatever happened meanwhile.
function nextPage() {
  return latest(async (signal) => {
    const { answer, total } = await recommend({ user_id: userId(), cursor: list.cursor, size: SIZE }, signal);
    const seen = list.items.length;
    list = { ...answer, items: [...list.items, ...answer.items] };
    learn(answer.items);
    status.replaceChildren(...statusOf(answer, total, `Items ${seen + 1} to ${list.items.length} of the same list.`));
    show(answer.items, null, true);
  });
}

// An event, and the list that follows from it.
async function act(type, item) {
  const started = performance.now();
  const event = {
    event_id: `${visitor()}-${Date.now()}-${++events}`,
    user_id: userId(), type, item_id: item.item_id, page: list.page, position: item.position,
  };
  if (query.value.trim()) event.query = query.value.trim();
  await latest(async (signal) => {
    const before = placesOf(list.items);
    await sendEvent(event);
    const { answer, total } = await recommend(wish({ size: Math.max(SIZE, Math.min(list.items.length, 48)) }), signal);
    const spent = performance.now() - started;
    list = answer;
    learn(answer.items);
    const fresh = answer.items.filter((one) => !before.has(one.item_id)).length;
    const moved = answer.items.filter((one) => before.has(one.item_id) && before.get(one.item_id) !== one.position).length;
    const what = `${DID[type]} (“${nameOf(item).name}”)`;
    const said = fresh + moved
      ? `${what} changed the list within ${milliseconds(spent)}: ${fresh} new, ${moved} moved.`
      : `${what} is known after ${milliseconds(spent)}; the list stays as it is.`;
    status.replaceChildren(...statusOf(answer, total, said));
    show(answer.items, before);
  });
}

async function why(item) {
  try {
    const body = { user_id: userId(), item_ids: [item.item_id], page: list.page };
    if (query.value.trim()) body.query = query.value.trim();
    const { answer } = await explain(body);
    const found = answer.items[0];
    const notes = (answer.degraded_reasons || []).map((reason) => element("p", { class: "hint" }, `Could not be asked: ${reason}.`));
    return found ? [...explained(found.explanation, names), ...notes] : [element("p", { class: "hint" }, "This item is not in the catalogue any more.")];
  } catch (error) {
    return [element("p", { class: "wrong", role: "alert" }, `${error.title || "The page failed"}: ${error.message}`)];
  }
}

function compareOrders() {
  return latest(async (signal) => {
    const orders = [document.getElementById("left").value, document.getElementById("right").value];
    const sides = [];
    // One after the other: side by side they would slow each other down, and the times would be nobody's.
    for (const order of orders) sides.push(await recommend(wish({ order, size: COMPARED }), signal));
    list = sides[1].answer;
    for (const { answer } of sides) learn(answer.items);
    const [left, right] = sides.map(({ answer }) => placesOf(answer.items));
    const shared = [...left.keys()].filter((id) => right.has(id)).length;
    const last = sides[1];
    status.replaceChildren(...statusOf(last.answer, last.total, `${shared} of ${COMPARED} items are in both lists.`));
    results.replaceChildren(
      element("div", { class: "sides" }, side(ORDERS[orders[0]], sides[0].answer, right), side(ORDERS[orders[1]], sides[1].answer, left)),
    );
  });
}

// The customers whom the store knows, among a few likely ids; without a store, or without a key, nobody.
async function offerUsers() {
  const chosen = user.value || "";
  const known = [];
  for (const id of PROBED) {
    if (known.length === MOST_USERS) break;
    try {
      const { answer } = await exportUser(id);
      const count = (answer.events || []).length;
      if (count) known.push([id, `${id} (${count} events)`]);
    } catch (error) {
      if (!(error instanceof Failure) || error.status !== 404) break;
    }
  }
  const fixed = [["new", "New visitor"], ["other", "Another customer …"]];
  user.replaceChildren(...[...known, ...fixed].map(([value, label]) => new Option(label, value)));
  user.value = [...known, ...fixed].some(([value]) => value === chosen) ? chosen : (known[0] || fixed[0])[0];
  other.hidden = user.value !== "other";
}

function showCommands(commands) {
  document.getElementById("requests").hidden = false;
  document.getElementById("curls").replaceChildren(
    ...commands.map(({ text }) => {
      const copy = element("button", { type: "button", class: "link" }, "copy");
      copy.addEventListener("click", async () => {
        await navigator.clipboard?.writeText(text);
        copy.textContent = "copied";
      });
      return element("li", {}, element("code", {}, text), copy);
    }),
  );
}

function prepare() {
  watchCommands(showCommands);
  rememberKey(async () => {
    await offerUsers();
    search();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  user.addEventListener("change", () => {
    other.hidden = user.value !== "other";
    if (other.hidden) search();
    else other.focus();
  });
  other.addEventListener("change", () => search());
  filterField.addEventListener("change", () => {
    const wasFiltered = !filterValue.hidden || !filterMost.hidden;
    offerValues();
    if (wasFiltered) search();
  });
  filterValue.addEventListener("change", () => search());
  filterMost.addEventListener("change", () => search());
  compare.addEventListener("change", () => {
    document.getElementById("sides").hidden = !compare.checked;
    search();
  });
  for (const name of ["left", "right"]) document.getElementById(name).addEventListener("change", () => search());
  // The first thing that a visitor sees is a list.
  offerUsers().then(() => search());
}

prepare();
