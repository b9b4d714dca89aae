// Views that somebody keeps: addresses of this page with a name, in this browser alone.
"use strict";
(() => {
  const KEY = "decisions-views";
  const place = document.querySelector("[data-views]");
  const button = document.querySelector("[data-keep-view]");

  function kept() {
    try {
      const found = JSON.parse(localStorage.getItem(KEY) || "[]");
      return Array.isArray(found) ? found.filter((view) => typeof view.name === "string" && typeof view.query === "string") : [];
    } catch { return []; }
  }

  function show(views) {
    place.replaceChildren(...views.flatMap((view, i) => {
      const link = document.createElement("a");
      link.href = "/ui/decisions" + (view.query.startsWith("?") ? view.query : "");
      link.textContent = view.name;
      const drop = document.createElement("button");
      drop.type = "button";
      drop.className = "quiet";
      drop.textContent = "×";
      drop.setAttribute("aria-label", "Forget " + view.name);
      drop.addEventListener("click", () => keep(kept().filter((_, j) => j !== i)));
      return [link, drop];
    }));
    place.hidden = views.length === 0;
  }

  function keep(views) {
    localStorage.setItem(KEY, JSON.stringify(views.slice(-30)));
    show(views.slice(-30));
  }

  button.hidden = false;
  button.addEventListener("click", () => {
    const asked = new URLSearchParams(location.search);
    asked.delete("after");
    const words = [...asked].filter(([, value]) => value).map(([name, value]) => name + " " + value).join(", ") || "all";
    const query = asked.size ? "?" + asked : "";
    keep([...kept().filter((view) => view.query !== query), { name: words, query }]);
  });
  show(kept());
})();
