// The scene on the ground: its picture, its tiles as they are answered, the boxes that were found.
import * as maplibre from "/page/vendor/maplibre-gl.mjs";
import { ask } from "./api.js";
import { place } from "./format.js";
import { startGraticule } from "./graticule.js";
import { LAYERS, OUTLINES, hatch, zoomOf } from "./layers.js";

const FLASH_MS = 1600;
const SEEN_PX = 8;
const TILE_SEEN_PX = 60;
const EMPTY = { type: "FeatureCollection", features: [] };

export class SceneMap {
  constructor(container, { picked, note, cursor, graticule }) {
    Object.assign(this, {
      picked,
      note,
      scene: null,
      shown: { picture: true, tiles: true, boxes: true },
      fresh: new Map(),
      lifted: false,
    });
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.map = new maplibre.Map({
      container,
      style: { version: 8, sources: {}, layers: [] },
      center: [0, 20],
      zoom: 1,
      maxZoom: 20,
      dragRotate: false,
      pitchWithRotate: false,
      touchPitch: false,
      attributionControl: false,
      fadeDuration: this.still.matches ? 0 : 150,
    });
    this.map.touchZoomRotate.disableRotation();
    this.map.keyboard.disableRotation();
    this.map.getCanvas().ariaLabel = "Map of the scene: arrow keys move it, plus and minus zoom";
    this.map.addControl(new maplibre.NavigationControl({ showCompass: false }), "top-right");
    this.map.addControl(new maplibre.ScaleControl({ maxWidth: 140, unit: "metric" }), "bottom-left");
    this.redraw = startGraticule(graticule, this.map);
    this.map.on("mousemove", ({ lngLat }) => (cursor.value = place(lngLat.lng, lngLat.lat)));
    this.map.on("mouseout", () => (cursor.value = ""));
    this.map.on("click", (event) => this.#clicked(event));
    this.map.on("idle", () => this.#busy(false));
    this.map.on("error", () => {}); // a tile that does not come: the next look asks again
    this.#busy(true);
    this.ready = new Promise((resolve) => this.map.once("load", resolve)).then(() => this.#prepare());
  }

  /** Goes to a scene: where it lies now, its picture when that is ready. Resolves when its tiles can be marked. */
  async open(scene) {
    await this.ready;
    this.#busy(true);
    this.#leave();
    const mine = (this.scene = scene.id);
    this.abort = new AbortController();
    const { signal } = this.abort;
    try {
      const about = await ask(`/v1/scenes/${mine}/xyz.json`, { signal });
      if (mine !== this.scene) return;
      this.#goTo(about.bounds);
      this.#picture(about, signal);
      const plan = await ask(`/v1/scenes/${mine}/plan.geojson`, { signal });
      if (mine !== this.scene) return;
      this.#thin(zoomOf(plan.features[0].geometry, TILE_SEEN_PX));
      this.map.getSource("tiles").setData(plan);
    } catch (problem) {
      if (problem.name !== "AbortError" && mine === this.scene) this.note(problem.message);
    }
  }

  /** Marks finished tiles; those that have just been finished light up. */
  mark(tiles, fresh) {
    for (const { index, status } of tiles) {
      this.map.setFeatureState({ source: "tiles", id: index }, { status });
      if (fresh && status === "answered" && !this.still.matches) this.fresh.set(index, performance.now());
    }
    if (this.fresh.size) this.#glow();
  }

  boxes(records) {
    this.#busy(true);
    const features = records.map(({ geometry, number }) => ({ type: "Feature", id: number, geometry, properties: {} }));
    this.map.getSource("boxes")?.setData({ ...EMPTY, features });
    const centres = records.map(({ centre, number, geometry }) => ({
      type: "Feature",
      id: number,
      geometry: { type: "Point", coordinates: centre },
      properties: { until: zoomOf(geometry, SEEN_PX) },
    }));
    this.map.getSource("centres")?.setData({ ...EMPTY, features: centres });
  }

  /** Shows which record is looked at: its tile, and its box where it is one. */
  choose(record) {
    for (const [source, id] of this.chosen ?? []) this.map.setFeatureState({ source, id }, { chosen: false });
    this.chosen = !record
      ? []
      : record.number === undefined
        ? [["tiles", record.tile]]
        : [
            ["boxes", record.number],
            ["centres", record.number],
          ];
    for (const [source, id] of this.chosen) this.map.setFeatureState({ source, id }, { chosen: true });
    if (record && !this.map.getBounds().contains(record.centre))
      this.map.easeTo({ center: record.centre, duration: this.still.matches ? 0 : 300 });
  }

  show(layer, visible) {
    this.shown[layer] = visible;
    this.#busy(true);
    for (const { id } of this.map.getStyle().layers)
      if (id.startsWith(layer)) this.map.setLayoutProperty(id, "visibility", visible ? "visible" : "none");
  }

  lift(lifted) {
    this.lifted = lifted;
    if (this.about) this.#layPicture();
  }

  /** Outlines come out from the zoom on at which a tile is large enough. */
  #thin(zoom) {
    for (const [layer, opacity] of Object.entries(OUTLINES))
      this.map.setPaintProperty(layer, "line-opacity", [
        "interpolate",
        ["linear"],
        ["zoom"],
        zoom - 2,
        opacity(0.15),
        zoom,
        opacity(1),
      ]);
  }

  /** Whether something is still to be drawn; `idle` comes after the last of it. */
  #busy(busy) {
    this.map.getContainer().setAttribute("aria-busy", String(busy));
    if (busy) this.map.triggerRepaint();
  }

  #prepare() {
    this.map.addImage("hatch", hatch());
    for (const source of ["tiles", "boxes", "centres"])
      this.map.addSource(source, { type: "geojson", data: EMPTY, tolerance: 0 });
    for (const layer of LAYERS) this.map.addLayer(layer);
  }

  #leave() {
    this.abort?.abort();
    this.note("");
    this.fresh.clear();
    this.chosen = [];
    this.about = null;
    this.#liftPicture();
    for (const source of ["tiles", "boxes", "centres"]) {
      this.map.removeFeatureState({ source });
      this.map.getSource(source).setData(EMPTY);
    }
  }

  #goTo([west, south, east, north]) {
    this.map.resize();
    this.map.fitBounds(
      [
        [west, south],
        [east, north],
      ],
      { padding: { top: 56, bottom: 44, left: 30, right: 44 }, maxZoom: 17, duration: 0 },
    );
  }

  /** Lays the picture, or waits for its copy: a large scene is read through once before it can be shown whole. */
  async #picture(about, signal) {
    while (about.preview === "making") {
      this.note("Preparing the picture of this scene…");
      await new Promise((resolve) => setTimeout(resolve, 1000));
      if (signal.aborted) return;
      about = await ask(`/v1/scenes/${this.scene}/xyz.json`, { signal }).catch(() => about);
    }
    if (signal.aborted) return;
    this.note(about.preview === "failed" ? `No picture at this zoom: ${about.reason}` : "");
    this.about = about;
    this.#layPicture();
  }

  #layPicture() {
    const { tiles, maxzoom, bounds } = this.about;
    this.#liftPicture();
    const crosses = bounds[2] > 180 || bounds[0] < -180;
    const tone = this.lifted ? "?tone=lifted" : "";
    this.map.addSource("picture", {
      type: "raster",
      tiles: tiles.map((url) => location.origin + url + tone),
      tileSize: devicePixelRatio > 1 ? 128 : 256,
      maxzoom,
      ...(crosses ? {} : { bounds }),
    });
    const visibility = this.shown.picture ? "visible" : "none";
    this.map.addLayer(
      {
        id: "picture",
        type: "raster",
        source: "picture",
        layout: { visibility },
        paint: { "raster-fade-duration": this.still.matches ? 0 : 150 },
      },
      LAYERS[0].id,
    );
  }

  #liftPicture() {
    if (this.map.getLayer("picture")) this.map.removeLayer("picture");
    if (this.map.getSource("picture")) this.map.removeSource("picture");
  }

  #glow() {
    if (this.glowing) return;
    this.glowing = requestAnimationFrame((now) => {
      this.glowing = null;
      for (const [id, since] of this.fresh) {
        const fresh = Math.max(0, 1 - (now - since) / FLASH_MS);
        this.map.setFeatureState({ source: "tiles", id }, { fresh });
        if (!fresh) this.fresh.delete(id);
      }
      if (this.fresh.size) this.#glow();
    });
  }

  #clicked({ point }) {
    const around = [
      [point.x - 4, point.y - 4],
      [point.x + 4, point.y + 4],
    ];
    const [box] = this.map.queryRenderedFeatures(around, { layers: ["boxes-line", "boxes-dots"] });
    if (box) return this.picked({ box: box.id });
    const tiles = this.map.queryRenderedFeatures(point, { layers: ["tiles-fill"] });
    if (tiles.length) this.picked({ tiles: tiles.map((tile) => tile.id) });
  }
}
