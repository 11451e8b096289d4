// Light, dark, or as the system says; remembered by this browser.
const NEXT = { auto: "dark", dark: "light", light: "auto" };
const SAID = {
  auto: ["Auto", "Colours: as the system"],
  dark: ["Dark", "Colours: dark"],
  light: ["Light", "Colours: light"],
};

export function startTheme(button, changed) {
  let theme = remembered();
  const show = () => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    [button.textContent, button.ariaLabel] = SAID[theme];
    changed();
  };
  button.addEventListener("click", () => {
    theme = NEXT[theme];
    try {
      localStorage.setItem("theme", theme);
    } catch {
      /* a browser that keeps nothing */
    }
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  show();
}

function remembered() {
  try {
    const kept = localStorage.getItem("theme");
    return kept in NEXT ? kept : "auto";
  } catch {
    return "auto";
  }
}
