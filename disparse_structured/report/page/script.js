"use strict";
(() => {
  const root = document.documentElement;
  const stored = {
    read() { try { return localStorage.getItem("disparse-theme"); } catch { return null; } },
    write(theme) { try { localStorage.setItem("disparse-theme", theme); } catch { /* private mode */ } },
  };

  const toggle = document.getElementById("theme");
  const isDark = () => root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const show = () => {
    toggle.textContent = isDark() ? "Light" : "Dark";
    toggle.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colors`);
  };
  const theme = stored.read();
  if (theme === "dark" || theme === "light") root.dataset.theme = theme;
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    stored.write(root.dataset.theme);
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  show();

  for (const button of document.querySelectorAll("[data-copy]")) {
    if (!navigator.clipboard) continue;
    button.hidden = false;
    button.addEventListener("click", async () => {
      const text = document.getElementById(button.dataset.copy).textContent.trim();
      try { await navigator.clipboard.writeText(text); } catch { return; }
      const label = button.textContent;
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = label; }, 1500);
    });
  }

  const key = (row, place) => {
    const cell = row.cells[place];
    const value = cell.dataset.value ?? cell.textContent.trim();
    const number = Number(value);
    return value !== "" && !Number.isNaN(number) ? number : value;
  };
  const compare = (a, b) => typeof a === "number" && typeof b === "number"
    ? a - b
    : String(a).localeCompare(String(b), "en", { numeric: true });

  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const body = table.tBodies[0];
    for (const heading of table.tHead.rows[0].cells) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      heading.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const place = heading.cellIndex;
        const rows = [...body.rows];
        const numbers = rows.some((row) => typeof key(row, place) === "number");
        const now = heading.getAttribute("aria-sort");
        const down = now === "none" ? numbers && place > 0 : now === "ascending";
        for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        rows.sort((a, b) => compare(key(a, place), key(b, place)) * (down ? -1 : 1));
        body.append(...rows);
      });
    }
  }

  for (const tools of document.querySelectorAll(".tools")) {
    const field = tools.querySelector("input");
    const status = tools.querySelector(".status");
    const rows = [...document.getElementById(tools.dataset.table).tBodies[0].rows];
    const names = rows.map((row) => row.textContent.toLowerCase());
    const filter = () => {
      const wanted = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, i) => {
        row.hidden = !wanted.every((word) => names[i].includes(word));
        shown += !row.hidden;
      });
      status.textContent = `${shown} of ${rows.length} groups`;
    };
    tools.hidden = false;
    field.addEventListener("input", filter);
    filter();
  }

  addEventListener("beforeprint", () => {
    for (const each of document.querySelectorAll("details")) each.open = true;
  });
})();
