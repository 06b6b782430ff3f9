// What the page shows. Texts go in as text, never as markup: they are other people's.

const results = document.getElementById("results");
const NO_TEXT = -3e38;
const LONG_TEXT = 160; // characters: about three lines

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "style") for (const [property, one] of Object.entries(value)) made.style.setProperty(property, one);
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function showServer(text, isWell) {
  const server = document.getElementById("server");
  server.textContent = text;
  server.classList.toggle("well", isWell);
  server.classList.toggle("ill", !isWell);
}

export function showBusy() {
  results.setAttribute("aria-busy", "true");
}

function show(...children) {
  results.removeAttribute("aria-busy");
  results.replaceChildren(...children);
}

function failureOf(error, letter) {
  return element(
    "article",
    { class: "failure", role: "alert" },
    element("h2", {}, letterOf(letter), error.title || "The page failed"),
    element("p", {}, error.message),
    error.hint ? element("p", { class: "hint" }, error.hint) : null,
  );
}

function letterOf(letter) {
  return letter ? element("span", { class: "letter" }, letter) : "";
}

// One shape for what the view needs, whatever the answer's fields are called.
function read({ answer, body, total, timing, server }) {
  return {
    places: answer.ranking.map((place, rank) => ({ rank: rank + 1, ...place })),
    items: body.items,
    model: answer.model || "",
    artifact: answer.artifact || "",
    scoreType: answer.score_type,
    contextTokens: answer.usage?.context_tokens,
    itemTokens: answer.usage?.item_tokens,
    truncated: answer.truncated,
    isCached: answer.cached,
    total,
    timing,
    server,
  };
}

// One outcome or two, each an answer or a failure.
export function showOutcomes(outcomes) {
  const sides = outcomes.map((outcome) => (outcome.failure ? null : read(outcome)));
  const letters = outcomes.length > 1 ? "AB" : "";
  show(
    element(
      "div",
      { class: "sides" },
      ...outcomes.map(({ failure }, number) =>
        failure ? failureOf(failure, letters[number]) : sideOf(sides[number], sides[1 - number], letters[number]),
      ),
    ),
  );
}

function sideOf(side, other, letter) {
  const title = `${side.places.length} ranked`;
  return element(
    "article",
    { class: "side" },
    element(
      "header",
      {},
      element("h2", {}, letterOf(letter), title),
      element("span", { class: "artifact", title: "artifact that scored" }, side.artifact.slice(0, 16)),
    ),
    latency(side),
    facts(side),
    list(side, other),
  );
}

function milliseconds(value) {
  return value < 10 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`;
}

function latency({ total, timing, isCached }) {
  const triton = timing.triton || 0;
  const gateway = Math.max(0, (timing.total || 0) - triton);
  const parts = timing.total
    ? [
        ["triton", isCached ? "cache" : "Triton", triton],
        ["gateway", "gateway", gateway],
        ["network", "network and browser", Math.max(0, total - timing.total)],
      ]
    : [["network", "all together", total]];
  return element(
    "div",
    { class: "latency" },
    element("p", { class: "total" }, milliseconds(total)),
    element(
      "div",
      { class: "bar", "aria-hidden": "true" },
      ...parts.map(([kind, , value]) => element("i", { class: kind, style: { "flex-grow": String(Math.max(value, total / 200)) } })),
    ),
    element(
      "ul",
      {},
      ...parts.map(([kind, name, value]) => element("li", { class: kind }, `${name} `, element("b", {}, milliseconds(value)))),
    ),
  );
}

function facts({ itemTokens, contextTokens, truncated, scoreType, isCached }) {
  const found = [["scores", scoreType]];
  if (typeof contextTokens === "number") found.push(["context", tokens(contextTokens)]);
  if (typeof itemTokens === "number") found.push(["candidates", tokens(itemTokens)]);
  if (typeof truncated === "number") found.push(["truncated", truncated ? String(truncated) : "none"]);
  if (isCached) found.push(["from", "the cache"]);
  return element(
    "dl",
    { class: "facts" },
    ...found.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
  );
}

function tokens(count) {
  return count === 1 ? "1 token" : `${count.toLocaleString("en")} tokens`;
}

function list(side, other) {
  const scored = side.places.filter((place) => place.logit > NO_TEXT).map((place) => place.score);
  const isShare = side.scoreType !== "logit";
  const least = isShare ? 0 : Math.min(...scored);
  const span = isShare ? 1 : Math.max(...scored) - least || 1;
  const elsewhere = new Map(other?.places.map((place) => [place.index, place.rank]));
  return element(
    "ol",
    { class: "ranking" },
    ...side.places.map((place) => {
      const hasText = place.logit > NO_TEXT;
      const share = hasText ? (place.score - least) / span : 0;
      return element(
        "li",
        {},
        element("span", { class: "rank" }, String(place.rank), other ? moved(place.rank, elsewhere.get(place.index)) : null),
        element("div", { class: "what" }, textOf(side.items[place.index]), badges(side, place, hasText)),
        element(
          "div",
          { class: "score" },
          element("output", {}, hasText ? scoreText(place.score, side.scoreType) : "no text"),
          element("div", { class: "meter", "aria-hidden": "true" }, element("i", { style: { width: `${(2 + 98 * share).toFixed(1)}%` } })),
        ),
      );
    }),
  );
}

function scoreText(score, scoreType) {
  return scoreType === "logit" ? score.toFixed(3) : score >= 0.001 ? score.toFixed(4) : score.toExponential(1);
}

function moved(rank, there) {
  if (there === undefined) return element("small", { class: "new", title: "not in the other list" }, "new");
  if (there === rank) return element("small", { class: "same", title: "same place in the other list" }, "=");
  const up = there > rank;
  return element(
    "small",
    { class: up ? "up" : "down", title: `place ${there} in the other list` },
    `${up ? "▲" : "▼"}${Math.abs(there - rank)}`,
  );
}

function textOf(item) {
  if (typeof item === "string") {
    return item ? element("p", { class: "text" }, item) : element("p", { class: "text blank" }, "an empty candidate");
  }
  return element(
    "dl",
    { class: "text fields" },
    ...Object.entries(item).flatMap(([name, value]) => [
      element("dt", {}, name),
      element("dd", {}, typeof value === "string" ? value : JSON.stringify(value)),
    ]),
  );
}

function unfolding() {
  const button = element("button", { type: "button", "aria-expanded": "false" }, "show all");
  button.addEventListener("click", () => {
    const isWhole = button.closest("li").classList.toggle("whole");
    button.setAttribute("aria-expanded", String(isWhole));
    button.textContent = isWhole ? "show less" : "show all";
  });
  return button;
}

function badges(side, place, hasText) {
  const text = side.items[place.index];
  const found = [element("span", {}, `no. ${place.index + 1}`)];
  if (typeof place.tokens === "number") found.push(element("span", {}, tokens(place.tokens)));
  if (hasText && side.scoreType !== "logit") found.push(element("span", {}, `logit ${place.logit.toFixed(3)}`));
  if (place.truncated) {
    found.push(element("span", { class: "cut", title: "longer than the model reads; the rest was left out" }, "truncated"));
  }
  if (typeof text === "string" && text.length > LONG_TEXT) found.push(unfolding());
  if (!hasText) found.push(element("span", { class: "cut", title: "such candidates come last" }, "nothing to read"));
  return element("p", { class: "badges" }, ...found);
}
