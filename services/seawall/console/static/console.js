"use strict";
/* Keys, theme, pause. Every page works without it. */
(() => {
  const root = document.documentElement;
  let lastKey = "";
  let paused = false;

  const isTyping = (target) =>
    target instanceof HTMLInputElement || target instanceof HTMLSelectElement || target instanceof HTMLTextAreaElement;

  function toggleTheme() {
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : window.matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    const secure = location.protocol === "https:" ? "; Secure" : "";
    document.cookie = `theme=${root.dataset.theme}; Path=/; Max-Age=31536000; SameSite=Lax${secure}`;
  }

  function showKeys() {
    const dialog = document.getElementById("keys");
    if (dialog && !dialog.open) dialog.showModal();
  }

  function moveRow(step) {
    const links = [...document.querySelectorAll(".row")].map((row) => row.querySelector("a[href]")).filter(Boolean);
    if (!links.length) return;
    const row = document.activeElement.closest(".row");
    const at = row ? links.indexOf(row.querySelector("a[href]")) : -1;
    const next = at < 0 ? (step > 0 ? 0 : links.length - 1) : Math.min(Math.max(at + step, 0), links.length - 1);
    links[next].focus();
  }

  function togglePause(button) {
    paused = !paused;
    button.setAttribute("aria-pressed", String(paused));
    button.textContent = paused ? "Go on updating" : "Pause updates";
  }

  /* Of the row that has the focus, else of the page's own button. */
  function copyId() {
    const id = document.activeElement.closest(".row")?.querySelector(".id");
    const button = document.querySelector("[data-act=copy]");
    if (id) copy(id.textContent, id);
    else if (button) copy(button.dataset.copy, button);
  }

  function copy(text, from) {
    navigator.clipboard?.writeText(text).then(() => {
      document.getElementById("said").textContent = `Copied ${text}`;
      from.classList.add("copied");
      from.addEventListener("animationend", () => from.classList.remove("copied"), { once: true });
    });
  }

  const acts = {
    theme: toggleTheme,
    keys: showKeys,
    pause: togglePause,
    copy: (button) => copy(button.dataset.copy, button),
  };

  document.addEventListener("click", (event) => {
    const button = event.target instanceof Element ? event.target.closest("[data-act]") : null;
    if (button) acts[button.dataset.act]?.(button);
  });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target) || document.querySelector("dialog[open]")) return;
    const before = lastKey;
    lastKey = event.key;
    if (before === "g") {
      const page = document.querySelector(`.top nav a[data-key="${CSS.escape(event.key)}"]`);
      lastKey = "";
      if (page) page.click();
      return;
    }
    switch (event.key) {
      case "/": {
        const field = document.querySelector("[role=search] input");
        if (field) { event.preventDefault(); field.focus(); field.select(); }
        else { document.querySelector('.top nav a[data-key="d"]')?.click(); }
        break;
      }
      case "j": moveRow(1); break;
      case "k": moveRow(-1); break;
      case "c": copyId(); break;
      case "t": toggleTheme(); break;
      case "?": showKeys(); break;
    }
  });

  const offline = (is) => { const note = document.getElementById("offline"); if (note) note.hidden = !is; };
  document.addEventListener("htmx:beforeRequest", (event) => { if (paused || document.hidden) event.preventDefault(); });
  document.addEventListener("htmx:sendError", () => offline(true));
  document.addEventListener("htmx:timeout", () => offline(true));
  document.addEventListener("htmx:afterSwap", () => offline(false));
})();
