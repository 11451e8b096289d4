// Puts the parts of the page together: scenes at the left, the map, records at the right, one stream of events.
import { announcer } from "./announce.js";
import { ask } from "./api.js";
import { showDetail } from "./detail.js";
import { Health, showStatus } from "./engine.js";
import { startFeed } from "./feed.js";
import { SceneMap } from "./map.js";
import { Records, boxRecord, recordsFromTile } from "./records.js";
import { Scenes, showRefused, startUploads } from "./scenes.js";
import { startTheme } from "./theme.js";
import { showCredits, showTitle } from "./title.js";
import { askToken } from "./token.js";

const STATUS_MS = 3000;
const PAGE = 500;
const $ = (id) => document.getElementById(id);

class Page {
  constructor() {
    this.scene = null;
    this.tiles = new Map();
    this.merged = false;
    this.wanted = new Set();
    this.say = announcer($("live"));
    this.health = new Health($("health"), $("health-text"));
    this.scenes = new Scenes({
      list: $("scenes-list"),
      chosen: (scene, byHand) => this.#chosen(scene, byHand),
      opened: () => $("records-list").focus(),
    });
    this.records = new Records({
      list: $("records-list"),
      count: $("records-count"),
      tasks: $("tasks"),
      order: $("order"),
      confidence: $("confidence"),
      confidenceValue: $("confidence-value"),
      chosen: (record, byHand) => this.#look(record, byHand),
      opened: () => $("detail").focus(),
      shown: (records) => this.#showBoxes(records),
    });
    this.map = mapOrNone({
      picked: (what) => this.#picked(what),
      note: (text) => this.note(text),
      cursor: $("cursor"),
      graticule: $("graticule"),
    });
    startTheme($("theme"), () => this.map?.redraw());
    this.#wire();
  }

  async start() {
    try {
      const status = await this.refreshStatus();
      await this.#readScenes();
      this.feed ??= startFeed(status.last_event, {
        heard: (event) => this.#heard(event),
        missed: () => this.#missed(),
        state: (live) => this.health.now({ live }),
      });
      this.poll ??= setInterval(() => !document.hidden && this.refreshStatus().catch(() => {}), STATUS_MS);
    } catch (problem) {
      if (problem.status !== 401) setTimeout(() => this.start(), STATUS_MS);
    }
  }

  async refreshStatus() {
    try {
      const status = await ask("/v1/status");
      const { name, precision, engine } = status.bundle;
      $("model").textContent = `${name} ${precision}, ${engine}, asked: ${status.default_tasks.join(", ")}`;
      showStatus(status, $("figures"), $("latency"), $("engine-note"), $("troubles"));
      this.health.now({ reached: true, reasons: status.reasons });
      return status;
    } catch (problem) {
      this.health.now({ reached: false, reasons: [problem.message] });
      throw problem;
    }
  }

  note(text) {
    $("map-note").textContent = text;
    $("map-note").hidden = !text;
  }

  #wire() {
    startUploads($("upload"), $("upload-file"), $("upload-state"), $("drop"), (scene) => this.scenes.put(scene));
    for (const box of document.querySelectorAll("[data-layer]"))
      box.addEventListener("change", () => this.map?.show(box.dataset.layer, box.checked));
    $("lift").addEventListener("change", () => this.map?.lift($("lift").checked));
    for (const tab of document.querySelectorAll("[data-tab]"))
      tab.tagName === "BUTTON" && tab.addEventListener("click", () => showTab(tab.dataset.tab));
    $("detail").addEventListener("keydown", (event) => event.key === "Escape" && this.#close());
    $("records-list").addEventListener("keydown", (event) => event.key === "Escape" && this.#close());
    document.addEventListener("token-wanted", () => askToken($("sign-in"), () => this.start()));
    addEventListener("hashchange", () => this.#fromAddress());
    showTab("records");
  }

  async #readScenes() {
    const { scenes } = await ask(`/v1/scenes?limit=${PAGE}`);
    this.scenes.replace(scenes);
    if (!this.scene && !(await this.#fromAddress())) this.#follow();
  }

  async #fromAddress() {
    const id = location.hash.match(/^#scene=([0-9a-f]{16})$/)?.[1];
    if (!id || id === this.scene?.id) return Boolean(id);
    const scene = this.scenes.all.get(id) ?? (await ask(`/v1/scenes/${id}`).catch(() => null));
    if (!scene) return false;
    $("follow").checked = false;
    this.scenes.put(scene);
    this.scenes.list.choose(scene);
    return true;
  }

  #follow() {
    const scene = this.scenes.newest;
    if (scene && (!this.scene || $("follow").checked) && scene.id !== this.scene?.id) this.scenes.list.choose(scene);
  }

  /** Another scene is looked at: its place, then what has been said about it. */
  async #chosen(scene, byHand) {
    if (byHand) $("follow").checked = false;
    if (scene.id === this.scene?.id) return;
    this.scene = scene;
    if (byHand) history.replaceState(null, "", `#scene=${scene.id}`);
    this.tiles.clear();
    this.merged = false;
    this.wanted.clear();
    this.records.clear();
    this.#close();
    showTitle($("scene-title"), scene, () => this.#retry());
    const opened = this.map?.open(scene);
    try {
      await this.#readTiles(-1, scene);
      await opened;
      if (scene.id !== this.scene.id) return;
      this.map?.mark([...this.tiles.values()], false);
      await this.#readMerged(scene);
    } catch (problem) {
      this.note(problem.message);
    }
  }

  async #readTiles(after, scene, fresh = false, until = Infinity) {
    for (let next = after; next !== null && next < until;) {
      const page = await ask(`/v1/scenes/${scene.id}/tiles?after=${next}&limit=${Math.min(PAGE, until - next)}`);
      if (scene.id !== this.scene?.id) return;
      for (const tile of page.tiles) this.tiles.set(tile.index, tile);
      const records = page.tiles.flatMap(recordsFromTile);
      this.records.add(this.merged ? records.filter((record) => record.kind !== "box") : records);
      if (fresh) this.map?.mark(page.tiles, true);
      next = page.next;
    }
  }

  /** Once a scene is done its boxes are those of the whole: doubles of overlapping tiles are merged. */
  async #readMerged(scene) {
    if (scene.status !== "done") return;
    const { features, credits } = await ask(`/v1/scenes/${scene.id}/result.geojson`);
    if (scene.id !== this.scene?.id) return;
    this.merged = true;
    const boxes = features.filter((feature) => feature.properties.kind === "detection");
    this.records.replaceBoxes(boxes.map((feature, n) => boxRecord(feature, `box${n}`)));
    showCredits($("scene-title"), credits);
  }

  #heard({ scene: id, kind, data, at }) {
    if (kind === "tile.done") this.#tileDone(id, data);
    else if (kind === "scene.refused") showRefused($("upload-state"), data);
    else this.#sceneChanged(id, kind, data, at);
  }

  #tileDone(id, data) {
    this.scenes.update(id, { status: "running", tiles_done: data.tiles_done, tiles_total: data.tiles_total });
    if (id !== this.scene?.id) return;
    const said = data.answers[0]?.text.split("\n")[0];
    if (said) this.say(`Tile ${data.tiles_done} of ${data.tiles_total}: ${said}`);
    this.wanted.add(data.tile);
    this.reading ??= setTimeout(() => this.#readWanted(), 120);
  }

  /** Events of tiles come in bursts: one question for all of a burst. */
  async #readWanted() {
    const [wanted, scene] = [[...this.wanted], this.scene];
    this.wanted.clear();
    if (wanted.length && scene) {
      const [first, last] = [Math.min(...wanted), Math.max(...wanted)];
      await this.#readTiles(first - 1, scene, true, last).catch(() => {});
    }
    this.reading = this.wanted.size ? setTimeout(() => this.#readWanted(), 400) : null;
  }

  async #sceneChanged(id, kind, data, at) {
    const known = this.scenes.all.has(id);
    if (!known || kind === "scene.started" || kind === "scene.done") {
      const scene = await ask(`/v1/scenes/${id}`).catch(() => null);
      if (scene) this.scenes.put(scene);
    } else this.scenes.update(id, { ...data, finished_at: kind === "scene.failed" ? at : null });
    if (kind === "scene.done" || kind === "scene.failed")
      this.say(`${data.name} is ${data.status}${data.reason ? `: ${data.reason}` : ""}`);
    if (kind === "scene.started") this.#follow();
    if (!this.scene) this.#follow();
    if (id !== this.scene?.id) return;
    this.scene = this.scenes.all.get(id);
    showTitle($("scene-title"), this.scene, () => this.#retry());
    if (kind !== "scene.done") return;
    await this.#readTiles(-1, this.scene, false).catch(() => {});
    this.map?.mark([...this.tiles.values()], false);
    await this.#readMerged(this.scene).catch(() => {});
  }

  async #missed() {
    const id = this.scene?.id;
    this.scene = null;
    await this.#readScenes().catch(() => {});
    if (id && this.scenes.all.has(id)) this.scenes.list.choose(this.scenes.all.get(id));
  }

  async #retry() {
    try {
      this.scenes.put(await ask(`/v1/scenes/${this.scene.id}/retry`, { method: "POST" }));
    } catch (problem) {
      this.note(problem.message);
    }
  }

  #look(record, byHand) {
    this.map?.choose(record);
    const tile = this.tiles.get(record.tile);
    const boxes = [...this.records.all.values()]
      .filter((other) => other.kind === "box" && other.tile === record.tile)
      .map((other) => other.properties.box_px);
    const window = tile?.features[0]?.properties.window_px;
    showDetail($("detail"), record, this.scene, window, boxes, () => this.#close());
    if (byHand) showTab("records");
  }

  #close() {
    $("detail").hidden = true;
    this.map?.choose(null);
    if (this.records.list.item) {
      this.records.list.choose(null);
      $("records-list").focus();
    }
  }

  /** A click on the map: a box, or the tiles under it. */
  #picked({ box, tiles }) {
    const shown = this.records.list.items;
    const record =
      box !== undefined
        ? shown.find((r) => r.number === box)
        : shown.find((r) => r.kind === "answer" && tiles.includes(r.tile));
    if (record) this.records.list.choose(record, true);
  }

  #showBoxes(records) {
    this.map?.boxes(records.filter((record) => record.kind === "box"));
  }
}

/** Without WebGL everything but the map works. */
function mapOrNone(options) {
  try {
    return new SceneMap("map", options);
  } catch {
    options.note("This browser has no WebGL 2, which the map needs. Records and results work without it.");
    return null;
  }
}

function showTab(name) {
  document.body.dataset.tab = name;
  for (const tab of document.querySelectorAll(".tabs button")) tab.ariaSelected = String(tab.dataset.tab === name);
}

new Page().start();
