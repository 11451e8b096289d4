// Numbers, times and places as text.

export const degrees = (value, [positive, negative]) => {
  const wrapped = positive === "E" ? ((((value + 180) % 360) + 360) % 360) - 180 : value;
  return `${Math.abs(wrapped).toFixed(5)}° ${wrapped < 0 ? negative : positive}`;
};

export const place = (lon, lat) => `${degrees(lat, "NS")}  ${degrees(lon, "EW")}`;

export const ms = (value) =>
  value >= 100 ? Math.round(value).toString() : value >= 10 ? value.toFixed(1) : value.toFixed(2);

export const clock = (seconds) => (seconds ? new Date(seconds * 1000).toISOString().slice(11, 19) + "Z" : "");

export const day = (seconds) => (seconds ? new Date(seconds * 1000).toISOString().slice(0, 10) : "");

export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

export function span(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

export function bytes(size) {
  if (size < 2 ** 20) return `${Math.max(1, Math.round(size / 1024))} KiB`;
  return size < 2 ** 30 ? `${(size / 2 ** 20).toFixed(1)} MiB` : `${(size / 2 ** 30).toFixed(2)} GiB`;
}

/** An element with properties and children; text stays text. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (key in made && !key.startsWith("aria")) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}
