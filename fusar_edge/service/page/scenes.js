// The scenes of the service, newest first, and files on their way to it.
import { send } from "./api.js";
import { bytes, clock, count, element, span } from "./format.js";
import { List } from "./list.js";

const TRIES = 20;
const LINES = 20;

export class Scenes {
  constructor({ list, chosen, opened }) {
    this.all = new Map();
    this.list = new List(list, {
      height: 46,
      row,
      key: (scene) => scene.id,
      chosen,
      opened,
      empty: "No scene yet. Drop one into the watch folder, or add one below.",
    });
  }

  replace(scenes) {
    this.all = new Map(scenes.map((scene) => [scene.id, scene]));
    this.#show();
  }

  put(scene) {
    this.all.set(scene.id, scene);
    this.#show();
  }

  /** What an event says of a scene that is known already. */
  update(id, changes) {
    const scene = this.all.get(id);
    if (scene) this.put({ ...scene, ...changes });
    return Boolean(scene);
  }

  get newest() {
    const sorted = this.#sorted();
    return sorted.find((scene) => scene.status === "running") ?? sorted[0] ?? null;
  }

  #sorted() {
    return [...this.all.values()].sort((a, b) => b.accepted_at - a.accepted_at);
  }

  #show() {
    this.list.show(this.#sorted());
  }
}

function row(scene) {
  const first = element(
    "div",
    {},
    element("span", { className: `mark ${scene.status}`, role: "img", ariaLabel: scene.status }),
    element("span", { className: "grow name", title: scene.name }, scene.name),
  );
  const second = element(
    "div",
    { className: "second num" },
    element("span", { className: scene.status === "failed" ? "grow bad" : "grow" }, said(scene)),
    element("span", {}, clock(scene.accepted_at)),
  );
  const parts = [first, second];
  if (scene.status === "running" && scene.tiles_total) {
    const bar = element("div", { className: "progress" });
    bar.style.width = `${(100 * scene.tiles_done) / scene.tiles_total}%`;
    parts.push(bar);
  }
  return parts;
}

function said({ status, tiles_done: done, tiles_total: total, reason, priority, finished_at: end, started_at: start }) {
  if (status === "failed") return `failed: ${reason}`;
  if (status === "running") return total ? `${done} of ${count(total, "tile")}` : "running";
  if (status === "queued") return priority ? `queued, priority ${priority}` : "queued";
  return `${count(total, "tile")}${start && end ? ` in ${span(end - start)}` : ""}`;
}

/** Sends files one after the other; waits where the service says so. */
export function startUploads(form, input, states, drop, sent) {
  let last = Promise.resolve();
  const take = (files) => {
    for (const file of files) last = last.then(() => sendOne(file, states, sent));
  };
  input.addEventListener("change", () => {
    take([...input.files]);
    input.value = "";
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  acceptDrops(drop, take);
}

/** A file of the watch folder that was not taken; the list is read out. */
export function showRefused(states, { name, reason }) {
  states.append(element("li", { className: "bad" }, `${name} was refused: ${reason}`));
  while (states.children.length > LINES) states.firstChild.remove();
}

async function sendOne(file, states, sent) {
  const line = states.appendChild(element("li", { className: "num" }, `${file.name}: waiting`));
  for (let tries = 1; ; tries++) {
    try {
      const { scene, known } = await send(
        file,
        (share) => (line.textContent = `${file.name}: ${Math.floor(100 * share)} % of ${bytes(file.size)}`),
      );
      line.textContent = known ? `${file.name}: was given before` : `${file.name}: accepted`;
      sent(scene);
      setTimeout(() => line.remove(), 6000);
      return;
    } catch (problem) {
      line.textContent = `${file.name}: ${problem.message}`;
      if (!problem.retryAfterS || tries === TRIES) {
        line.className = "bad";
        return;
      }
      line.textContent += ` Trying again in ${problem.retryAfterS} s.`;
      await new Promise((resolve) => setTimeout(resolve, problem.retryAfterS * 1000));
    }
  }
}

function acceptDrops(drop, take) {
  let depth = 0;
  const carries = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const entered = (change) => (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    depth = Math.max(0, depth + change);
    drop.hidden = depth === 0;
  };
  addEventListener("dragenter", entered(1));
  addEventListener("dragleave", entered(-1));
  addEventListener("dragover", (event) => carries(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    depth = 0;
    drop.hidden = true;
    take([...event.dataTransfer.files]);
  });
}
