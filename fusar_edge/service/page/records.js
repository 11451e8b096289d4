// What was said: answers and boxes as records, filtered by task and confidence.
import { count, element, place } from "./format.js";
import { List } from "./list.js";

const ORDERS = {
  tile: (a, b) => a.tile - b.tile || a.rank - b.rank,
  new: (a, b) => b.seen - a.seen || ORDERS.tile(a, b),
  confidence: (a, b) => b.confidence - a.confidence || ORDERS.tile(a, b),
};
const RANK = { caption: 0, count: 1, grid: 2, detect: 3, classify: 4, box: 5 };
let seen = 0;

/** Records of one finished tile: its answers, then its boxes. */
export function recordsFromTile(tile) {
  const answers = tile.features.map((feature, n) => answerRecord(feature, `${tile.index}/${n}`));
  const boxes = tile.detections.map((found, n) =>
    boxRecord(
      {
        geometry: found.geometry,
        properties: { ...found, box_px: found.box, cut_by_tile: found.cut, merged_boxes: found.seen },
      },
      `${tile.index}/box${n}`,
    ),
  );
  return [...answers, ...boxes];
}

export function answerRecord(feature, key) {
  const p = feature.properties;
  return {
    key,
    kind: "answer",
    task: p.task,
    tile: p.tile,
    confidence: p.confidence,
    title: title(p),
    brief: brief(p, centreOf(feature.geometry)),
    text: p.text,
    properties: p,
    centre: centreOf(feature.geometry),
    rank: RANK[p.task] ?? 6,
    seen: ++seen,
  };
}

export function boxRecord(feature, key) {
  const p = feature.properties;
  const centre = centreOf(feature.geometry);
  return {
    key,
    kind: "box",
    task: "box",
    tile: p.tile,
    confidence: p.confidence,
    title: p.label,
    brief: place(...centre),
    text: "",
    properties: p,
    geometry: feature.geometry,
    centre,
    rank: RANK.box,
    seen: ++seen,
  };
}

function title({ task, value, text, parse_status: status, label }) {
  if (status !== "parsed") return "not parsed";
  if (task === "count") return `${value} counted`;
  if (task === "grid") return value.length ? `cells ${value.join(", ")}` : "no cell";
  if (task === "detect") return value.length ? count(value.length, "box").replace("boxs", "boxes") : "none";
  if (task === "caption" && typeof value === "object") return Object.values(value)[0];
  return String(value ?? text)
    .split("\n")[0]
    .replace(/^Terrain: /, "");
}

/** The second line of a row: what the first does not say. */
function brief({ task, text, parse_status: status }, centre) {
  if (task === "count" && status === "parsed") return place(...centre);
  const lines = text.split("\n");
  const rest =
    task === "caption" && lines.length > 1
      ? lines.slice(1).map((line) => line.replace(/^[A-Z][A-Za-z ]{2,18}: /, ""))
      : lines;
  return rest.join(" · ");
}

function centreOf(geometry) {
  const ring = (geometry.type === "Polygon" ? geometry.coordinates : geometry.coordinates[0])[0];
  const [lons, lats] = [ring.map((p) => p[0]), ring.map((p) => p[1])];
  const middle = (values) => (Math.min(...values) + Math.max(...values)) / 2;
  return [middle(lons), middle(lats)];
}

export class Records {
  constructor({ list, count: counter, tasks, confidence, confidenceValue, order, chosen, opened, shown }) {
    Object.assign(this, { counter, tasks, order, shown, all: new Map(), hidden: new Set(), least: 0, boxes: 0 });
    this.list = new List(list, {
      height: 48,
      row,
      key: (record) => record.key,
      chosen,
      opened,
      empty: "Nothing has been said about this scene yet.",
    });
    confidence.addEventListener("input", () => {
      this.least = Number(confidence.value);
      confidenceValue.value = this.least ? `≥ ${this.least.toFixed(2)}` : "any";
      this.refresh();
    });
    order.addEventListener("change", () => this.refresh());
  }

  clear() {
    this.all.clear();
    this.boxes = 0;
    this.list.choose(null);
    this.list.host.scrollTop = 0;
    this.refresh();
  }

  add(records) {
    for (const record of records) {
      const before = this.all.get(record.key);
      if (record.kind === "box") record.number = before?.number ?? this.boxes++;
      if (before) record.seen = before.seen;
      this.all.set(record.key, record);
    }
    this.refresh();
  }

  /** Boxes of single tiles give way to the scene's, in which doubles are merged. */
  replaceBoxes(records) {
    for (const [key, record] of this.all) if (record.kind === "box") this.all.delete(key);
    this.boxes = 0;
    this.add(records);
  }

  refresh() {
    this.#chips();
    const kept = [...this.all.values()].filter((r) => !this.hidden.has(r.task) && r.confidence >= this.least);
    kept.sort(ORDERS[this.order.value]);
    this.list.empty = this.all.size
      ? "No record is left by these filters."
      : "Nothing has been said about this scene yet.";
    this.list.show(kept);
    this.counter.textContent =
      kept.length === this.all.size
        ? count(kept.length, "record")
        : `${kept.length.toLocaleString("en")} of ${count(this.all.size, "record")}`;
    this.shown(kept);
  }

  #chips() {
    const counts = new Map();
    for (const { task, rank } of this.all.values()) counts.set(task, [rank, (counts.get(task)?.[1] ?? 0) + 1]);
    const sorted = [...counts].sort((a, b) => a[1][0] - b[1][0]);
    const said = JSON.stringify([sorted, [...this.hidden]]);
    if (said === this.said) return;
    this.said = said;
    const focused = this.tasks.contains(document.activeElement) ? document.activeElement.dataset.task : null;
    this.tasks.replaceChildren(...sorted.map(([task, [, number]]) => this.#chip(task, number)));
    if (focused) this.tasks.querySelector(`[data-task="${focused}"]`)?.focus();
  }

  #chip(task, number) {
    const chip = element(
      "button",
      { type: "button", "aria-pressed": String(!this.hidden.has(task)) },
      `${task} ${number}`,
    );
    chip.dataset.task = task;
    chip.addEventListener("click", () => {
      if (!this.hidden.delete(task)) this.hidden.add(task);
      this.refresh();
    });
    return chip;
  }
}

function row({ task, title, brief: rest, confidence, tile }) {
  const bar = element("i", { "aria-hidden": "true" }, element("b"));
  bar.firstChild.style.width = `${confidence * 100}%`;
  const first = element(
    "div",
    {},
    element("span", { className: `task ${task}` }, task),
    element("span", { className: "grow name" }, title),
    element("span", { className: "sure", title: "confidence" }, confidence.toFixed(2), bar),
  );
  const second = element(
    "div",
    { className: "second" },
    element("span", { className: "task num" }, `tile ${tile}`),
    element("span", { className: "grow" }, rest),
  );
  return [first, second];
}
