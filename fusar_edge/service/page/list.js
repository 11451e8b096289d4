// A list box that holds thousands of rows: only those in sight are elements (WAI-ARIA listbox, aria-activedescendant).
import { element } from "./format.js";

export class List {
  /** `row(item)` gives a row's children, `key(item)` its identity; `chosen(item, byHand)` is told of a choice. */
  constructor(host, { height, row, key, chosen, opened = () => {}, empty }) {
    Object.assign(this, {
      host,
      height,
      row,
      key,
      chosen,
      opened,
      empty,
      items: [],
      current: null,
      prefix: `${host.id}-`,
    });
    host.setAttribute("role", "listbox");
    host.tabIndex = 0;
    this.inner = host.appendChild(element("div", { className: "inner" }));
    host.addEventListener("scroll", () => this.#later(), { passive: true });
    host.addEventListener("keydown", (event) => this.#pressed(event));
    this.inner.addEventListener("click", (event) => {
      const found = event.target.closest(".row");
      if (found) this.choose(this.items[Number(found.dataset.index)], true);
    });
    this.inner.addEventListener("dblclick", () => this.opened(this.item));
    new ResizeObserver(() => this.#later()).observe(host);
  }

  get item() {
    return this.items.find((item) => this.key(item) === this.current) ?? null;
  }

  show(items) {
    this.items = items;
    this.#later();
  }

  /** Makes an item the current one and brings it into sight; null: none. */
  choose(item, byHand = false) {
    this.current = item ? this.key(item) : null;
    const index = item ? this.items.findIndex((other) => this.key(other) === this.current) : -1;
    if (index >= 0) this.#reveal(index);
    this.#draw();
    if (item) this.chosen(item, byHand);
  }

  #reveal(index) {
    const top = index * this.height;
    const { scrollTop, clientHeight } = this.host;
    if (top < scrollTop) this.host.scrollTop = top;
    else if (top + this.height > scrollTop + clientHeight) this.host.scrollTop = top + this.height - clientHeight;
  }

  #pressed(event) {
    const page = Math.max(1, Math.floor(this.host.clientHeight / this.height) - 1);
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[
      event.key
    ];
    if (event.key === "Enter" && this.item) this.opened(this.item);
    if (step === undefined || !this.items.length || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const now = this.items.findIndex((item) => this.key(item) === this.current);
    const next = now < 0 ? 0 : Math.min(Math.max(now + step, 0), this.items.length - 1);
    this.choose(this.items[next], true);
  }

  #later() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.#draw();
    });
  }

  #draw() {
    const { host, inner, items, height } = this;
    const first = Math.max(0, Math.floor(host.scrollTop / height) - 4);
    const last = Math.min(items.length, Math.ceil((host.scrollTop + host.clientHeight) / height) + 4);
    inner.style.height = `${items.length * height}px`;
    const rows = items.slice(first, last).map((item, offset) => this.#made(item, first + offset));
    inner.replaceChildren(...(items.length ? rows : [element("p", { className: "empty" }, this.empty)]));
    const active = rows.find((row) => row.ariaSelected === "true");
    if (active) host.setAttribute("aria-activedescendant", active.id);
    else host.removeAttribute("aria-activedescendant");
  }

  #made(item, index) {
    const made = element("div", { className: "row", id: `${this.prefix}${index}` }, ...this.row(item));
    made.setAttribute("role", "option");
    made.ariaSelected = String(this.key(item) === this.current);
    made.ariaSetSize = String(this.items.length);
    made.ariaPosInSet = String(index + 1);
    made.dataset.index = index;
    made.style.height = `${this.height}px`;
    made.style.top = `${index * this.height}px`;
    return made;
  }
}
