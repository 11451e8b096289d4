// What screen readers are told: at most one line in a while; of a burst the last, and how many there were before it.
import { count } from "./format.js";

const APART_MS = 800;

export function announcer(region) {
  let lines = [];
  let timer = null;
  const say = () => {
    const last = lines.pop();
    region.textContent = lines.length ? `${last} (and ${count(lines.length, "message")} before)` : last;
    lines = [];
    timer = null;
  };
  return (line) => {
    lines.push(line);
    timer ??= setTimeout(say, APART_MS);
  };
}
