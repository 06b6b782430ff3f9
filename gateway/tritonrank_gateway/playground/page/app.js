// What the page does: reads the form, asks one gateway or two, and hands the answers to view.js.

import { EXAMPLES } from "./examples.js";
import { showBusy, showOutcomes, showServer } from "./view.js";

const HERE = new URL("..", location.href).href.replace(/\/$/, "");
const KEY_ITEM = "tritonrank-key";
const form = document.getElementById("form");
const compare = document.getElementById("compare");
const key = document.getElementById("key");
let running = null;
let hasAsked = false;

class Failure extends Error {
  constructor(title, message, hint = "") {
    super(message);
    this.title = title;
    this.hint = hint;
  }
}

function lines(text) {
  return text.split("\n").map((line) => line.trim());
}

// A line is a text. One that begins with a brace holds the fields of an item, and has to be JSON.
function itemsOf(text, name, keepBlank) {
  const found = [];
  lines(text).forEach((line, number) => {
    if (!line) {
      if (keepBlank) found.push("");
      return;
    }
    if (!line.startsWith("{")) {
      found.push(line);
      return;
    }
    try {
      found.push(JSON.parse(line));
    } catch (error) {
      throw new Failure(`${name}, line ${number + 1}`, `not a JSON object: ${error.message}`, "Write the text itself, or an object such as {\"title\": \"…\"}.");
    }
  });
  return found;
}

// Blank lines at the end are none; one in between is a candidate without text, to see what becomes of it.
function candidates() {
  const text = form.items.value.trimEnd();
  return text ? itemsOf(text, "Candidates", true) : [];
}

function settingsOf(side) {
  const found = {};
  for (const control of document.querySelectorAll(`#side-${side} [data-name]`)) {
    found[control.dataset.name] = control.type === "checkbox" ? control.checked : control.value.trim();
  }
  return found;
}

function bodyOf(settings) {
  const body = { query: form.query.value, items: candidates() };
  const history = settings.use_history ? itemsOf(form.history.value, "History", false) : [];
  if (history.length) body.history = history;
  for (const name of ["top_k", "max_item_tokens"]) if (Number(settings[name])) body[name] = Number(settings[name]);
  if (settings.truncate_left) body.truncation_direction = "left";
  if (settings.score_type) body.score_type = settings.score_type;
  return body;
}

function headers() {
  const found = { "Content-Type": "application/json" };
  if (key.value.trim()) found.Authorization = `Bearer ${key.value.trim()}`;
  return found;
}

function serverOf(settings) {
  if (!settings.server) return HERE;
  try {
    return new URL(settings.server).href.replace(/\/$/, "");
  } catch {
    throw new Failure("Gateway", `${settings.server} is not a URL`, "Write it as https://host:port, or leave it empty.");
  }
}

// The parts of a header such as `triton;dur=12.3, gateway;dur=14.0`, in milliseconds.
function timings(header) {
  const found = {};
  for (const part of (header || "").split(",")) {
    const match = part.trim().match(/^([\w-]+).*?;\s*dur=([\d.]+)/);
    if (match) found[match[1]] = Number(match[2]);
  }
  return found;
}

async function ask(settings, signal) {
  const server = serverOf(settings);
  const body = bodyOf(settings);
  if (!body.items.length) throw new Failure("Candidates", "there is none to rank", "Type one a line.");
  const started = performance.now();
  let response;
  let text;
  try {
    response = await fetch(`${server}/v1/rank`, { method: "POST", headers: headers(), body: JSON.stringify(body), signal });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const other = server !== HERE;
    throw new Failure(
      "No answer",
      `${server} cannot be reached`,
      other ? `Check the address, and that it was started with --cors ${location.origin}.` : "Check that the gateway still runs.",
    );
  }
  const total = performance.now() - started;
  if (!response.ok) throw refused(response, text);
  let answer;
  try {
    answer = JSON.parse(text);
  } catch {
    throw new Failure("Not an answer", `${server} answered with something that is no JSON`, "Check that a tritonrank gateway is there.");
  }
  return { server, body, total, answer, timing: timings(response.headers.get("Server-Timing")) };
}

function refused(response, text) {
  let message = text.slice(0, 300);
  try {
    const body = JSON.parse(text);
    message = body.error?.message || body.message || body.detail || body.error || message;
  } catch {
    // a proxy's page, say: its beginning has to do
  }
  const wait = response.headers.get("Retry-After");
  const hints = {
    401: "Open “API key” and type yours.",
    403: "This key may not do that.",
    413: "Send fewer or shorter candidates.",
    429: `The gateway has enough to do${wait ? `; try again in ${wait} s` : ""}.`,
    503: `Triton cannot be reached now${wait ? `; try again in ${wait} s` : ""}.`,
    504: "Send fewer candidates.",
  };
  if (response.status === 401) document.querySelector("details.key").open = true;
  return new Failure(`Refused with ${response.status}`, String(message), hints[response.status] || "");
}

async function run() {
  running?.abort();
  const mine = (running = new AbortController());
  const sides = compare.checked ? ["a", "b"] : ["a"];
  showBusy();
  try {
    const outcomes = [];
    // One after the other: side by side they would slow each other down, and the latencies would be nobody's.
    for (const side of sides) {
      try {
        outcomes.push(await ask(settingsOf(side), mine.signal));
      } catch (error) {
        if (error.name === "AbortError") throw error;
        outcomes.push({ failure: error });
      }
    }
    if (mine === running) showOutcomes(outcomes);
    reveal();
  } catch (error) {
    if (error.name !== "AbortError") throw error; // a newer question took its place
  }
}

// Below the form, on a phone, an answer would come unseen.
function reveal() {
  const results = document.getElementById("results");
  const { top } = results.getBoundingClientRect();
  const head = results.querySelector("h2").getBoundingClientRect();
  const isSeen = head.bottom > 0 && top < innerHeight - 120;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (!isSeen && hasAsked) results.scrollIntoView({ behavior: calm ? "auto" : "smooth" });
}

// What the gateway serves; true when it can be asked.
async function describeServer() {
  try {
    const response = await fetch(`${HERE}/v1/models`, { headers: headers() });
    if (response.status === 401) {
      document.querySelector("details.key").open = true;
      showServer("needs an API key", false);
      return false;
    }
    const models = (await response.json()).data || [];
    showServer(models.length ? models.map((model) => model.id).join(", ") : "no model", response.ok && models.length > 0);
    return response.ok;
  } catch {
    showServer("the gateway does not answer", false);
    return false;
  }
}

function countCandidates() {
  const hint = document.getElementById("items-count");
  try {
    const found = candidates().length;
    hint.textContent = found === 1 ? "1 candidate" : `${found} candidates`;
    hint.classList.remove("wrong");
  } catch (error) {
    hint.textContent = `${error.title}: ${error.message}`;
    hint.classList.add("wrong");
  }
}

function fill(example) {
  form.query.value = example.query;
  form.history.value = example.history.join("\n");
  form.items.value = example.items.join("\n");
  countCandidates();
}

function prepare() {
  for (const side of ["a", "b"]) {
    const copy = document.getElementById("side").content.cloneNode(true);
    document.getElementById(`side-${side}`).append(copy);
  }
  for (const example of EXAMPLES) {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.textContent = example.name;
    chip.addEventListener("click", () => {
      fill(example);
      runAsAsked();
    });
    document.getElementById("examples").append(chip);
  }
  compare.addEventListener("change", () => {
    document.getElementById("side-b").hidden = !compare.checked;
    if (compare.checked) document.getElementById("settings").open = true;
    document.body.classList.toggle("comparing", compare.checked);
  });
  key.value = sessionStorage.getItem(KEY_ITEM) || "";
  key.addEventListener("change", () => {
    sessionStorage.setItem(KEY_ITEM, key.value.trim());
    describeServer();
  });
  form.items.addEventListener("input", countCandidates);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    runAsAsked();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      runAsAsked();
    }
  });
  fill(EXAMPLES[0]);
  // The first thing that a visitor sees is a ranking.
  describeServer().then((isWell) => isWell && !hasAsked && run());
}

function runAsAsked() {
  hasAsked = true;
  return run();
}

prepare();
