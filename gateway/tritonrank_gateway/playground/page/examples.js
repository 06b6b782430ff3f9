// What a visitor can start from. Made up for this page.

const LONG =
  "Care guide. Wash the shell at 30 degrees with a mild liquid soap and no softener. Close all zips and straps first. " +
  "Rinse twice. Let it drip dry in the shade, then tumble dry for twenty minutes on low to wake up the coating. ".repeat(12) +
  "If water no longer forms beads on a jacket, the waterproof coating has worn off: spray it again and dry it warm.";

export const EXAMPLES = [
  {
    name: "Shop search",
    query: "waterproof boots for wide feet",
    history: ["Trekking poles, carbon, pair", "Merino hiking socks, two pairs"],
    items: [
      "Leather office shoes, slim last, black",
      "Hiking boots, waterproof membrane, wide fit, brown",
      "Trail running shoes, breathable mesh, wide fit",
      "Rubber rain boots for children, yellow",
      "Mountaineering boots, waterproof, narrow heel",
      "Waterproofing spray for leather, 300 ml",
      "Wool felt slippers, grey",
      "Winter boots, waterproof, lined, extra wide",
    ],
  },
  {
    name: "Passages",
    query: "Why does bread dough have to rest?",
    history: [],
    items: [
      "Resting lets gluten relax, so the dough can be shaped without springing back.",
      "Preheat the oven to 230 degrees and put a tray of water on its floor.",
      "During the rest enzymes break starch into sugars that feed the yeast.",
      "Sourdough was baked along the Nile four thousand years ago.",
      "A dough that has doubled in size holds the gas that makes the crumb open.",
      "Rest days matter for runners, too: muscles grow while you sleep.",
    ],
  },
  {
    name: "History alone",
    query: "",
    history: ["Tent for two persons, 2.1 kg", "Sleeping mat, inflatable, insulated", "Camping stove with windscreen"],
    items: [
      "Down sleeping bag, comfort to -5 degrees",
      "Espresso machine with milk frother",
      "Gas cartridge for camping stoves, 230 g",
      "Desk lamp, dimmable, oak base",
      "Headlamp, 400 lumens, rechargeable",
      "Silk tie, dark blue",
      "Titanium pot, 900 ml, with lid",
    ],
  },
  {
    name: "Mehrsprachig",
    query: "leichtes Zelt für zwei Personen",
    history: ["Schlafsack, Daunen, 900 g"],
    items: [
      "Kuppelzelt für 2 Personen, 1,9 kg, wasserdicht",
      "Tente familiale, six places, 14 kg",
      "Two-person tent, ultralight, 1.2 kg",
      "Zeltheringe aus Titan, 10 Stück",
      "Bollerwagen, faltbar, 80 kg Traglast",
      "軽量テント 2人用 1.5kg",
    ],
  },
  {
    name: "Long texts",
    query: "my jacket is no longer waterproof",
    history: [],
    items: [LONG, "", "Coating spray for jackets, makes fabric waterproof again", "Rain jacket, blue, size M"],
  },
  {
    name: "Fields",
    query: "quiet headphones for the train",
    history: ['{"title": "Travel pillow", "attributes": "memory foam"}'],
    items: [
      '{"title": "Over-ear headphones", "attributes": "noise cancelling, 30 h battery"}',
      '{"title": "In-ear headphones", "attributes": "wired, microphone"}',
      '{"title": "Portable speaker", "attributes": "waterproof, 12 h battery"}',
      '{"title": "Ear plugs", "attributes": "silicone, 6 pairs"}',
    ],
  },
];
