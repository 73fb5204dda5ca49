// Light, dark, or as the system has it. What was chosen stays chosen where the browser lets a file keep something.

const KEY = "cliffstore-theme";
const ORDER = ["auto", "light", "dark"];

function kept() {
  try {
    return window.localStorage.getItem(KEY);
  } catch {
    return null; // a browser may forbid it to files: the choice then lasts as long as the page
  }
}

function keep(theme) {
  try {
    window.localStorage.setItem(KEY, theme);
  } catch {
    return;
  }
}

export function watchTheme() {
  const button = document.getElementById("theme");
  let theme = ORDER.includes(kept()) ? kept() : "auto";
  const show = () => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
  };
  button.addEventListener("click", () => {
    theme = ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length];
    keep(theme);
    show();
  });
  show();
}
