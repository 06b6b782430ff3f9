// What machines say, as people say it.

const NAMES = ["title", "name", "product", "headline", "label"];
const SHOWN_FIELDS = 4;

// The field that calls an item by its name: a likely one, else the first text, else its id.
export function nameOf(item) {
  const fields = item.fields || {};
  const texts = Object.entries(fields).filter(([, value]) => typeof value === "string" && value.trim());
  const found = NAMES.find((name) => texts.some(([field]) => field === name)) ?? texts[0]?.[0];
  return { name: found ? fields[found] : item.item_id, field: found };
}

// Everything else that there is to see of an item: price and brand first, then as it comes.
export function detailsOf(item) {
  const { field } = nameOf(item);
  const rest = Object.entries(item.fields || {}).filter(([name, value]) => name !== field && value !== null && value !== "");
  const price = rest.find(([name]) => /price|preis|prix|precio/i.test(name));
  const others = rest.filter((one) => one !== price);
  others.sort(([one], [other]) => Number(/brand|marke|maker/i.test(other)) - Number(/brand|marke|maker/i.test(one)));
  return { price: price && textOf(price[1]), others: others.slice(0, SHOWN_FIELDS) };
}

export function textOf(value) {
  if (Array.isArray(value)) return value.join(", ");
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

const SOURCES = {
  "two-tower": "taste",
  lexical: "words",
  knn: "bought together",
  ease: "similar customers",
  popular: "popular",
  new: "new",
};

export function sourcesOf(item) {
  return Object.entries(item.sources || {})
    .sort(([, one], [, other]) => one - other)
    .map(([name]) => SOURCES[name] || name);
}

const STEPS = { profile: "who you are", retrieve: "find", rank: "rank", blend: "blend", explain: "explain" };

export function stepsOf(answer) {
  const { total = 0, ...steps } = answer.milliseconds || {};
  return { total, steps: Object.entries(steps).map(([name, value]) => [STEPS[name] || name, value, name]) };
}

const PARTS = {
  ranker: ["The ranker was not heard", "this is the order of retrieval, without it"],
  store: ["The store was not heard", "what you did before is not known now"],
  catalogue: ["The catalogue is not there", "these are items that were popular"],
  blend: ["The blend is not there", "this is the ranker's own order"],
  page: ["The list is not the one from before", "it was made once more"],
  rules: ["The shop's rules are not there", "the list is without them"],
};

export function lossesOf(answer) {
  const reasons = answer.degraded_reasons || [];
  return reasons.map((reason) => {
    const [part, why = ""] = reason.split(/:\s*/, 2);
    const known = PARTS[part.split(".")[0]];
    return known ? `${known[0]}${why ? ` (${why})` : ""}: ${known[1]}.` : `Missing: ${reason}.`;
  });
}

export function milliseconds(value) {
  return value < 10 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`;
}

const KINDS = { history: "what you did", query: "your words", field: "of the item", blend: "the blend" };

export function reasonName(reason, known) {
  if (reason.kind === "history") return known.get(reason.name) || reason.name;
  return reason.kind === "query" ? `“${reason.name}”` : reason.name.replaceAll("_", " ");
}

export function reasonKind(reason) {
  return KINDS[reason.kind] || reason.kind;
}
