// What the map draws, and how it looks: tiles by their state, boxes, what is chosen.

const state = (name, fallback) => ["coalesce", ["feature-state", name], fallback];
const when = (status) => ["==", state("status", ""), status];

/** Opacity of the tiles' outlines, by layer. `share`: less where so many are in sight that they hide the picture. */
export const OUTLINES = {
  "tiles-waiting": (share) => ["case", when(""), 0.6 * share, 0],
  "tiles-line": (share) => [
    "case",
    [">", state("fresh", 0), 0],
    1,
    when("answered"),
    0.75 * share,
    when("skipped"),
    0.35 * share,
    0,
  ],
};

export const LAYERS = [
  {
    id: "tiles-fill",
    type: "fill",
    source: "tiles",
    paint: {
      "fill-color": ["case", when("skipped"), "#0b1016", "#35b5d8"],
      "fill-opacity": [
        "case",
        state("chosen", false),
        0.06,
        when("answered"),
        ["+", 0.03, ["*", 0.34, state("fresh", 0)]],
        when("skipped"),
        0.3,
        0,
      ],
    },
  },
  {
    id: "tiles-left-out",
    type: "fill",
    source: "tiles",
    paint: {
      "fill-pattern": "hatch",
      "fill-opacity": ["case", when("skipped"), 0.5, 0],
    },
  },
  {
    id: "tiles-waiting",
    type: "line",
    source: "tiles",
    paint: {
      "line-color": "#8fa1b3",
      "line-dasharray": [3, 3],
      "line-width": 1,
      "line-opacity": OUTLINES["tiles-waiting"](1),
    },
  },
  {
    id: "tiles-line",
    type: "line",
    source: "tiles",
    paint: {
      "line-color": ["case", when("skipped"), "#7d8894", "#35b5d8"],
      "line-width": ["+", 1, ["*", 1.5, state("fresh", 0)]],
      "line-opacity": OUTLINES["tiles-line"](1),
    },
  },
  {
    id: "boxes-dots",
    type: "circle",
    source: "centres",
    filter: ["<", ["zoom"], ["get", "until"]],
    paint: {
      "circle-radius": ["case", state("chosen", false), 8, 5],
      "circle-color": "transparent",
      "circle-stroke-color": ["case", state("chosen", false), "#ffffff", "#ffb224"],
      "circle-stroke-width": 1.5,
    },
  },
  {
    id: "boxes-line",
    type: "line",
    source: "boxes",
    paint: {
      "line-color": ["case", state("chosen", false), "#ffffff", "#ffb224"],
      "line-width": ["case", state("chosen", false), 2.5, 1.5],
    },
  },
  {
    id: "tiles-chosen",
    type: "line",
    source: "tiles",
    paint: {
      "line-color": "#ffffff",
      "line-width": 2,
      "line-opacity": ["case", state("chosen", false), 1, 0],
    },
  },
];

/** The zoom from which something is so wide on the screen. */
export function zoomOf({ type, coordinates }, wide) {
  const lons = (type === "Polygon" ? coordinates : coordinates[0])[0].map((p) => p[0]);
  const span = Math.max(...lons) - Math.min(...lons);
  return Math.log2((wide * 360) / (512 * Math.max(span, 1e-7)));
}

/** Diagonal lines, for tiles that were left out: not by colour alone. */
export function hatch(size = 8) {
  const data = new Uint8ClampedArray(size * size * 4);
  for (let i = 0; i < size * size; i++) {
    const on = (Math.floor(i / size) + (i % size)) % size === 0;
    data.set(on ? [150, 162, 174, 170] : [0, 0, 0, 0], i * 4);
  }
  return { width: size, height: size, data };
}
