// One record in full: what the model was shown, what it said, how long it took.
import { element, ms, place } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const CLOSE_UP = 2.5;
const LEAST_PX = 48;

export function showDetail(host, record, scene, window, boxes, close) {
  const parts = [head(record, close), crops(record, scene, window, boxes), said(record), facts(record, scene)];
  host.replaceChildren(...parts.filter(Boolean));
  host.hidden = false;
  host.scrollTop = 0;
}

function head({ task, title, tile, confidence }, close) {
  const button = element("button", { type: "button", className: "plain", ariaLabel: "Close the record" }, "Close");
  button.addEventListener("click", close);
  const name = task === "box" ? `Box: ${title}` : task[0].toUpperCase() + task.slice(1);
  return element(
    "header",
    {},
    element(
      "div",
      {},
      element("h3", {}, name),
      element("p", { className: "quiet num" }, `Tile ${tile}, confidence ${confidence.toFixed(2)}`),
    ),
    button,
  );
}

/** The tile as the model saw it, and a box from close by. */
function crops(record, scene, window, boxes) {
  if (!window) return null;
  const source = `/v1/scenes/${scene.id}/tiles/${record.tile}/crop.png`;
  const own = record.properties.box_px ?? record.properties.box?.box_px;
  const whole = [window.col, window.row, window.width, window.height];
  const figures = [
    figure(source, window, whole, boxes, own, `${window.width} × ${window.height} px, as the model sees it`),
  ];
  if (own) figures.push(figure(source, window, closeUp(own, window), boxes, own, "Close-up"));
  return element("div", { className: "crops" }, ...figures);
}

function closeUp([x1, y1, x2, y2], { col, row, width, height }) {
  const side = Math.min(Math.max(CLOSE_UP * Math.max(x2 - x1, y2 - y1), LEAST_PX), width, height);
  const within = (middle, start, length) => Math.min(Math.max(middle - side / 2, start), start + length - side);
  return [within((x1 + x2) / 2, col, width), within((y1 + y2) / 2, row, height), side, side];
}

function figure(source, { col, row, width, height }, view, boxes, own, caption) {
  const svg = svgElement("svg", { viewBox: view.join(" "), role: "img", "aria-label": caption });
  svg.append(svgElement("image", { href: source, x: col, y: row, width, height, preserveAspectRatio: "none" }));
  for (const box of boxes) if (!own || box.join() !== own.join()) svg.append(rect(box, "other"));
  if (own) svg.append(rect(own, "own"));
  return element("figure", {}, svg, element("figcaption", {}, caption));
}

const rect = ([x1, y1, x2, y2], name) =>
  svgElement("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1, class: name });

function svgElement(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** Captions in fields become a table of terms; everything else is shown as it was said. */
function said({ kind, text, properties }) {
  if (kind === "box") return null;
  const lines = text.split("\n").map((line) => line.match(/^([A-Z][A-Za-z ]{2,18}): (.+)$/));
  if (properties.task === "caption" && lines.length > 1 && lines.every(Boolean))
    return terms(
      lines.map((m) => [m[1], m[2]]),
      "fields",
    );
  return element("p", { className: properties.task === "detect" ? "said mono" : "said" }, text);
}

function facts(record, scene) {
  const p = record.properties;
  const rows = [["Position", mono(place(...record.centre))]];
  if (p.question) rows.push(["Asked", p.question]);
  if (p.parse_status) rows.push(["Answer", `${p.parse_status}, ${p.tokens} tokens, ended by ${p.stop_reason}`]);
  if (p.box_px) rows.push(["Pixels", mono(p.box_px.map((v) => Math.round(v)).join(", "))]);
  if (p.merged_boxes > 1) rows.push(["Merged", `${p.merged_boxes} boxes of overlapping tiles`]);
  if (p.cut_by_tile) rows.push(["Note", "cut by the edge of its tile"]);
  if (p.kind === "answer") rows.push(["Anchors", p.anchors_used ? `${p.anchors_used} AlphaEarth vectors` : "none"]);
  if (p.latency_ms) rows.push(["Latency", latency(p.latency_ms)]);
  rows.push(
    ["Bundle", mono(scene.bundle_sha256.slice(0, 12), scene.bundle_sha256)],
    ["Scene", mono(scene.sha256.slice(0, 12), scene.sha256)],
  );
  return terms(rows, "fields small");
}

function latency(parts) {
  const entries = Object.entries(parts).filter(([, value]) => value > 0);
  const total = entries.reduce((sum, [, value]) => sum + value, 0);
  const bars = entries.map(([name, value]) => {
    const bar = element("i", { title: `${name} ${ms(value)} ms` });
    bar.style.flexGrow = value / total;
    return bar;
  });
  const text = entries.map(([name, value]) => `${name} ${ms(value)}`).join(", ");
  return element(
    "div",
    {},
    `${ms(total)} ms: ${text}`,
    element("div", { className: "parts", "aria-hidden": "true" }, ...bars),
  );
}

const mono = (text, title) => element("span", { className: "mono", title }, text);

const terms = (rows, className) =>
  element("dl", { className }, ...rows.flatMap(([term, value]) => [element("dt", {}, term), element("dd", {}, value)]));
