// The public routes of the gateway, each call kept as a command to copy.

const HERE = new URL("..", location.href).href.replace(/\/$/, "");
const KEY_ITEM = "tritonrank-key";
const MOST_COMMANDS = 8;
const key = document.getElementById("key");
const commands = [];
let onCommands = () => {};

export class Failure extends Error {
  constructor(title, message, hint = "", status = 0) {
    super(message);
    this.title = title;
    this.hint = hint;
    this.status = status;
  }
}

export function watchCommands(watch) {
  onCommands = watch;
}

export function rememberKey(changed) {
  key.value = sessionStorage.getItem(KEY_ITEM) || "";
  key.addEventListener("change", () => {
    sessionStorage.setItem(KEY_ITEM, key.value.trim());
    changed();
  });
}

export const recommend = (body, signal) => call("POST", "/v1/recommend", body, signal);
export const explain = (body, signal) => call("POST", "/v1/explain", body, signal);
export const sendEvent = (body) => call("POST", "/v1/events", body);
export const exportUser = (id) => call("GET", `/v1/users/${encodeURIComponent(id)}`, undefined, undefined, false);

// One word of a shell: what it holds is quoted, whatever it is.
function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function keep(method, path, body) {
  const authorization = key.value.trim() ? " -H \"Authorization: Bearer $KEY\"" : "";
  const data = body ? ` -H 'Content-Type: application/json' -d ${quoted(JSON.stringify(body))}` : "";
  commands.unshift({ path, text: `curl ${HERE}${path}${authorization}${data}` });
  commands.length = Math.min(commands.length, MOST_COMMANDS);
  onCommands(commands);
}

async function call(method, path, body, signal, isShown = true) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if (key.value.trim()) headers.Authorization = `Bearer ${key.value.trim()}`;
  if (isShown) keep(method, path, body);
  const started = performance.now();
  let response;
  let text;
  try {
    response = await fetch(HERE + path, { method, headers, body: body && JSON.stringify(body), signal });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("No answer", "the gateway cannot be reached", "Check that it still runs.");
  }
  if (!response.ok) throw refused(response, text);
  try {
    return { answer: JSON.parse(text), total: performance.now() - started };
  } catch {
    throw new Failure("Not an answer", "something that is no JSON came back");
  }
}

function refused(response, text) {
  let message = text.slice(0, 300);
  try {
    const body = JSON.parse(text);
    message = body.error?.message || body.message || body.detail || body.error || message;
  } catch {
    // a proxy's page, say: its beginning has to do
  }
  const hints = {
    401: "Open “API key” and type yours.",
    410: "The list is not kept any more; it is asked for anew.",
    429: "The gateway has enough to do; try again in a moment.",
    503: "A part cannot be reached now; try again in a moment.",
  };
  if (response.status === 401) document.getElementById("key-details").open = true;
  return new Failure(`Refused with ${response.status}`, String(message), hints[response.status] || "", response.status);
}
