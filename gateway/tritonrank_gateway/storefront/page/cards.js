// Items as cards, and what happened as a few lines. Texts go in as text, never as markup: they are other people's.

import { detailsOf, lossesOf, milliseconds, nameOf, reasonKind, reasonName, sourcesOf, stepsOf, textOf } from "./words.js";

const MOST_REASONS = 6;
const HUES = 12;

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "style") for (const [property, one] of Object.entries(value)) made.style.setProperty(property, one);
    else if (key === "onclick") made.addEventListener("click", value);
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// There are no images of these items: a tile with their initials, of a colour that is always theirs.
function tile(item, name) {
  let hash = 0;
  const kind = String(item.fields?.category ?? item.fields?.genres ?? name);
  for (const letter of kind) hash = (hash * 31 + letter.codePointAt(0)) % 3_600;
  const initials = name.split(/[\s\-_]+/).filter((word) => /\p{L}|\p{N}/u.test(word)).slice(0, 2);
  const letters = initials.map((word) => [...word][0]).join("").toUpperCase() || "?";
  return element("div", { class: `tile hue-${hash % HUES}`, "aria-hidden": "true" }, letters);
}

// Where it stood in the list before: moved up, moved down, or new.
export function movement(now, before) {
  if (before === undefined) return element("span", { class: "moved new" }, "new");
  if (before === now) return null;
  const up = before > now;
  const said = `${up ? "up" : "down"} from place ${before + 1}`;
  return element("span", { class: `moved ${up ? "up" : "down"}`, title: said, "aria-label": said }, `${up ? "▲" : "▼"} ${Math.abs(before - now)}`);
}

export function card(item, { before, act, why, known }) {
  const { name } = nameOf(item);
  const { price, others } = detailsOf(item);
  const panel = element("div", { class: "why", id: `why-${item.position}`, hidden: true });
  const ask = element("button", { type: "button", class: "link", "aria-expanded": "false", "aria-controls": panel.id }, "Why this?");
  ask.addEventListener("click", async () => {
    const opens = panel.hidden;
    panel.hidden = !opens;
    ask.setAttribute("aria-expanded", String(opens));
    if (opens && !panel.childElementCount) {
      panel.replaceChildren(element("p", { class: "hint" }, "Ranking again without one thing at a time …"));
      panel.replaceChildren(...(await why(item)));
    }
  });
  const action = (type, label, kind = "") =>
    element("button", { type: "button", class: kind, "data-event": type, onclick: () => act(type, item), "aria-label": `${label}: ${name}` }, label);
  return element(
    "li",
    { class: "card", "data-item": item.item_id },
    tile(item, name),
    element(
      "div",
      { class: "what" },
      element("p", { class: "place" }, element("span", {}, `${item.position + 1}`), before ? movement(item.position, before.get(item.item_id)) : null),
      element("h3", {}, element("button", { type: "button", class: "name", "data-event": "click", onclick: () => act("click", item) }, name)),
      price ? element("p", { class: "price" }, price) : null,
      element("dl", {}, ...others.flatMap(([field, value]) => [element("dt", {}, field.replaceAll("_", " ")), element("dd", {}, textOf(value))])),
      sourcesOf(item).length ? element("p", { class: "sources", title: "what found it" }, ...sourcesOf(item).slice(0, 3).map((source) => element("span", {}, source))) : null,
      element("div", { class: "actions" }, action("cart", "Add to cart"), action("purchase", "Buy", "strong"), action("skip", "Not for me", "link"), ask),
      panel,
    ),
  );
}

// An explanation: one sentence, and the numbers that it is made of.
export function explained({ reasons, sentence, left_out: leftOut = [] }, known) {
  const largest = {};
  for (const { of = "logit", effect } of reasons) largest[of] = Math.max(largest[of] || 0, Math.abs(effect));
  const shown = reasons.slice(0, MOST_REASONS);
  return [
    element("p", { class: "sentence" }, sentence),
    shown.length
      ? element(
          "ul",
          { class: "reasons" },
          ...shown.map((reason) => {
            const of = reason.of || "logit";
            const share = Math.abs(reason.effect) / (largest[of] || 1);
            return element(
              "li",
              { class: reason.effect > 0 ? "raised" : "lowered" },
              element("span", { class: "kind" }, reasonKind(reason)),
              element("span", { class: "reason" }, reasonName(reason, known)),
              element("output", { title: of === "logit" ? "the ranker's score with it minus without it" : "what it adds to the blend's score" }, `${reason.effect > 0 ? "+" : "−"}${Math.abs(reason.effect).toFixed(2)}`),
              element("i", { class: "meter", "aria-hidden": "true" }, element("i", { style: { width: `${Math.max(4, 100 * share).toFixed(0)}%` } })),
            );
          }),
        )
      : null,
    ...leftOut.map((said) => element("p", { class: "hint" }, `Not looked at: ${said}.`)),
  ].filter(Boolean);
}

export function statusOf(answer, total, said) {
  const { total: inside, steps } = stepsOf(answer);
  const notes = [];
  if (answer.cold) notes.push(element("p", { class: "note cold" }, "A new visitor: nothing is known yet, so this list goes by what is asked for and what is popular. Click something."));
  for (const loss of lossesOf(answer)) notes.push(element("p", { class: "note degraded" }, loss));
  return [
    said ? element("p", { class: "said" }, said) : null,
    ...notes,
    element(
      "div",
      { class: "times" },
      element("b", {}, milliseconds(total)),
      element("span", { class: "bar", "aria-hidden": "true" }, ...steps.map(([, value, name]) => element("i", { class: `step-${name}`, style: { "flex-grow": String(Math.max(value, inside / 100)) } }))),
      element("ul", {}, ...steps.map(([label, value, name]) => element("li", { class: `step-${name}` }, `${label} ${milliseconds(value)}`)), element("li", { class: "step-rest" }, `way and rest ${milliseconds(Math.max(0, total - steps.reduce((sum, [, value]) => sum + value, 0)))}`)),
    ),
  ].filter(Boolean);
}

export function failureOf(error) {
  return element(
    "article",
    { class: "failure", role: "alert" },
    element("h2", {}, error.title || "The page failed"),
    element("p", {}, error.message),
    error.hint ? element("p", { class: "hint" }, error.hint) : null,
  );
}

// One of two orders of the same items: names alone, and where each stands in the other.
export function side(title, answer, elsewhere) {
  return element(
    "article",
    { class: "side" },
    element("h2", {}, title),
    element("p", { class: "hint" }, `${milliseconds(stepsOf(answer).total)} in the gateway`),
    element(
      "ol",
      {},
      ...answer.items.map((item) =>
        element(
          "li",
          { "data-item": item.item_id },
          element("span", { class: "place" }, `${item.position + 1}`),
          element("span", { class: "name" }, nameOf(item).name, detailsOf(item).price ? element("small", {}, ` ${detailsOf(item).price}`) : null),
          movement(item.position, elsewhere.get(item.item_id)) || element("span", { class: "moved same", title: "the same place" }, "="),
        ),
      ),
    ),
  );
}
