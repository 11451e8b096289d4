// The line over the map.
import { clock, day, element } from "./format.js";

/** What scene this is, where its results are, and why it failed if it did. */
export function showTitle(host, scene, retry) {
  const { facts } = scene;
  const said = [
    facts.acquired ? `acquired ${facts.acquired}` : "acquisition time unknown",
    facts.width && `${facts.width} × ${facts.height} px`,
    facts.crs,
    facts.kind && `values: ${facts.kind}`,
    `from ${scene.source} ${day(scene.accepted_at)} ${clock(scene.accepted_at)}`,
  ].filter(Boolean);
  const links = [
    element("a", { href: `/v1/scenes/${scene.id}/result.geojson`, download: `${scene.name}.geojson` }, "GeoJSON"),
  ];
  if (scene.status === "done")
    links.push(
      element("a", { href: `/v1/scenes/${scene.id}/item.json`, download: `${scene.name}.item.json` }, "STAC item"),
    );
  const line = element("div", { className: "facts num" }, ...said.map((text) => element("span", {}, text)));
  const parts = [element("h2", {}, scene.name), element("div", { className: "links" }, ...links), line];
  if (facts.simulated)
    parts.push(element("p", { className: "reason" }, "Simulated: nothing in this scene was measured."));
  if (scene.status === "failed") {
    const again = element("button", { type: "button", className: "plain" }, "Try again");
    again.addEventListener("click", retry);
    parts.push(element("p", { className: "reason" }, `${scene.reason} `, again));
  }
  host.replaceChildren(...parts);
  host.hidden = false;
}

/** Lines that licences require. */
export function showCredits(host, credits) {
  if (credits?.length) host.append(element("p", { className: "quiet" }, credits.join(" ")));
}
