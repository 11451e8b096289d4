// How the service is: queue, throughput, latency, and whether it works at all.
import { element, ms, span } from "./format.js";

const ORDER = ["read", "triage", "anchors", "vision", "prefix", "prefill", "decode", "commit", "tile", "question"];

export function showStatus(status, figures, table, note, troubles) {
  const { counts, pipeline } = status;
  const scenes = counts.scenes ?? {};
  const outbox = Object.values(counts.outbox ?? {}).reduce((sum, n) => sum + n, 0);
  const left = (scenes.queued ?? 0) + (scenes.running ?? 0);
  const eta = pipeline.eta_s === null || !left ? "–" : span(pipeline.eta_s);
  figures.replaceChildren(
    figure("Queued", scenes.queued ?? 0),
    figure("Running", scenes.running ?? 0),
    figure("Done", scenes.done ?? 0),
    figure("Failed", scenes.failed ?? 0, scenes.failed > 0),
    figure("Tiles/s", (pipeline.tiles_per_s ?? 0).toFixed(1)),
    figure("Left", eta),
    figure("Unsent", outbox.toLocaleString("en"), false, "Messages that sinks have not taken yet"),
    figure("Disk free", status.disk_free_mib === null ? "?" : `${(status.disk_free_mib / 1024).toFixed(0)} GiB`),
  );
  note.textContent = noteFrom(pipeline);
  showLatency(status.latency_ms, table);
  showTroubles(status, troubles);
}

/** What keeps scenes from coming in or results from leaving; nothing while all is well. */
function showTroubles({ sinks, watch }, host) {
  const lines = sinks.filter((sink) => sink.problem).map(({ name, problem }) => `${name}: ${problem}`);
  if (watch?.problem) lines.push(`watch folder: ${watch.problem}`);
  const said = lines.join("\n");
  if (host.dataset.said === said) return; // it is read out when it changes
  host.dataset.said = said;
  host.replaceChildren(...lines.map((line) => element("li", {}, line)));
}

function noteFrom({ limits, working }) {
  if (limits.paused) return `paused: ${limits.reason}`;
  if (limits.reason) return limits.reason;
  return working.length ? `${working.length} in work` : "idle";
}

function figure(name, value, bad = false, title = undefined) {
  return element(
    "div",
    { className: bad ? "bad" : "", title },
    element("dt", {}, name),
    element("dd", {}, String(value)),
  );
}

function showLatency(stages, table) {
  const rank = (name) => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length);
  const entries = Object.entries(stages).sort(([a], [b]) => rank(a) - rank(b));
  const most = Math.max(...entries.map(([, stage]) => stage.p95), 1e-9);
  const rows = entries.map(([name, stage]) => {
    const half = element("b");
    half.style.width = `${(100 * stage.p50) / Math.max(stage.p95, 1e-9)}%`;
    const whole = element("i", { "aria-hidden": "true" }, half);
    whole.style.width = `${(100 * stage.p95) / most}%`;
    return element(
      "tr",
      {},
      element("th", { scope: "row", title: `${stage.count} in the last ten minutes` }, name),
      element("td", { className: "meter" }, whole),
      element("td", {}, ms(stage.p50)),
      element("td", {}, ms(stage.p95)),
    );
  });
  const none = element("tr", {}, element("td", { colSpan: 4, className: "quiet" }, "nothing in the last ten minutes"));
  table.tBodies[0].replaceChildren(...(rows.length ? rows : [none]));
}

/** The lamp in the corner: whether events come in, and whether the service works. */
export class Health {
  constructor(host, text) {
    Object.assign(this, { host, text, live: false, reached: true, reasons: [] });
  }

  now(news) {
    const { live, reached, reasons } = Object.assign(this, news);
    this.host.dataset.state = reasons.length ? "bad" : live ? "good" : "wait";
    const waiting = live ? "Live" : "Connecting";
    const said = reasons.length ? `${reached ? "Not ready" : "No connection"}: ${reasons.join("; ")}` : waiting;
    if (this.text.textContent !== said) this.text.textContent = said;
  }
}
