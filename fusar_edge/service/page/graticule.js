// Meridians and parallels over the map and their names in its frame: the ground can be read without any basemap.
const EDGE = 20;
const STEPS = [
  60,
  30,
  20,
  10,
  5,
  2,
  1,
  1 / 2,
  1 / 3,
  1 / 6,
  1 / 12,
  1 / 30,
  1 / 60,
  1 / 120,
  1 / 180,
  1 / 360,
  1 / 720,
  1 / 1800,
  1 / 3600,
];
const APART = 110;

export function startGraticule(canvas, map) {
  let frame = null;
  const later = () => (frame ??= requestAnimationFrame(() => ((frame = null), draw(canvas, map))));
  map.on("move", later);
  map.on("resize", later);
  later();
  return later;
}

function draw(canvas, map) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const colours = coloursOf(canvas);
  const bounds = map.getBounds();
  const [west, east, south, north] = [bounds.getWest(), bounds.getEast(), bounds.getSouth(), bounds.getNorth()];
  const shown = { pen, colours, width, height };
  const step = stepFor(((east - west) * APART) / Math.max(width - EDGE, 1));
  frameOf(shown);
  for (const lon of multiples(west, east, step))
    meridian(shown, map.project([lon, south]).x + EDGE, name(lon, step, "EW"));
  for (const lat of multiples(south, north, step))
    parallel(shown, map.project([west, lat]).y + EDGE, name(lat, step, "NS"));
}

function coloursOf(canvas) {
  const style = getComputedStyle(canvas);
  const panel = getComputedStyle(document.querySelector(".bar")).backgroundColor;
  return {
    ink: style.color,
    panel,
    line: "rgba(140, 158, 176, .38)",
    family: getComputedStyle(document.body).fontFamily,
  };
}

function frameOf({ pen, colours, width, height }) {
  pen.fillStyle = colours.panel;
  pen.fillRect(0, 0, width, EDGE);
  pen.fillRect(0, 0, EDGE, height);
  pen.strokeStyle = colours.ink;
  pen.lineWidth = 1;
  pen.strokeRect(EDGE - 0.5, EDGE - 0.5, width, height);
  pen.font = `11px ${colours.family}`;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
}

function meridian({ pen, colours, width, height }, x, text) {
  const at = Math.round(x) + 0.5;
  line(pen, colours.line, at, EDGE, at, height);
  line(pen, colours.ink, at, EDGE - 5, at, EDGE);
  pen.fillStyle = colours.ink;
  if (at > EDGE + 32 && at < width - 32) pen.fillText(text, at, EDGE / 2 - 1);
}

function parallel({ pen, colours, width, height }, y, text) {
  const at = Math.round(y) + 0.5;
  line(pen, colours.line, EDGE, at, width, at);
  line(pen, colours.ink, EDGE - 5, at, EDGE, at);
  if (at < EDGE + 32 || at > height - 32) return;
  pen.save();
  pen.fillStyle = colours.ink;
  pen.translate(EDGE / 2 - 1, at);
  pen.rotate(-Math.PI / 2);
  pen.fillText(text, 0, 0);
  pen.restore();
}

function line(pen, colour, x0, y0, x1, y1) {
  pen.strokeStyle = colour;
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
}

/** The finest step that is no finer than `least` degrees. */
export const stepFor = (least) => STEPS.findLast((step) => step >= least) ?? STEPS[0];

function* multiples(from, to, step) {
  for (let n = Math.ceil(from / step - 1e-9); n * step <= to + 1e-9; n++) yield n * step;
}

/** Degrees, then minutes and seconds where the step is finer than these. */
export function name(value, step, [positive, negative]) {
  const wrapped = positive === "E" ? ((((value + 180) % 360) + 360) % 360) - 180 : value;
  const seconds = Math.round(Math.abs(wrapped) * 3600);
  const side = seconds === 0 ? "" : wrapped < 0 ? negative : positive;
  const parts = [`${Math.floor(seconds / 3600)}°`];
  if (step < 1) parts.push(`${String(Math.floor(seconds / 60) % 60).padStart(2, "0")}′`);
  if (step < 1 / 60) parts.push(`${String(seconds % 60).padStart(2, "0")}″`);
  return parts.join("") + side;
}
