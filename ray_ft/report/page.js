"use strict";

// Tables sort by a click on a header. A cell counts by the number that it begins with, if it does.
function readCell(row, column) {
  for (const cell of row.cells) {
    column -= cell.colSpan;
    if (column < 0) return cell.textContent.trim();
  }
  return "";
}

function readNumber(text) {
  return Number.parseFloat(text.replace(/,/g, "").replace("−", "-").replace(/^[<>[]/, ""));
}

function compareTexts(first, second) {
  const [a, b] = [readNumber(first), readNumber(second)];
  if (Number.isNaN(a) || Number.isNaN(b)) return first.localeCompare(second, "en", { numeric: true });
  return a - b;
}

function sortTable(table, column) {
  const header = table.tHead.rows[0].cells[column];
  const sign = header.ariaSort === "ascending" ? -1 : 1;
  const body = table.tBodies[0];
  const texts = new Map(Array.from(body.rows, (row) => [row, readCell(row, column)]));
  const numeric = [...texts.values()].some((text) => !Number.isNaN(readNumber(text)));
  const isHole = (text) => text === "" || (numeric && column > 0 && Number.isNaN(readNumber(text)));
  const rows = [...texts.keys()].sort((first, second) => {
    const [a, b] = [texts.get(first), texts.get(second)];
    return isHole(a) - isHole(b) || sign * compareTexts(a, b); // what has no number stays last
  });
  for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  body.append(...rows);
}

for (const table of document.querySelectorAll("table")) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = document.createElement("button");
    button.append(...header.childNodes);
    button.addEventListener("click", () => sortTable(table, column));
    header.append(button);
  });
}

// The nearest dot of a figure says its numbers; arrow keys go from dot to dot.
const REACH = 14; // pixels
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);

function middleOf(dot) {
  const box = dot.getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
}

function showTip(dot) {
  const [x, y] = middleOf(dot);
  tip.textContent = dot.getAttribute("aria-label");
  tip.hidden = false;
  const left = Math.min(x + 10, document.documentElement.clientWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(left, 8)}px`;
  tip.style.top = `${y > tip.offsetHeight + 12 ? y - tip.offsetHeight - 10 : y + 10}px`;
}

function hideTip() {
  tip.hidden = true;
}

for (const svg of document.querySelectorAll("figure svg")) {
  const dots = [...svg.querySelectorAll(".dot")];
  if (!dots.length) continue;
  svg.setAttribute("role", "group");
  dots.forEach((dot, i) => {
    const title = dot.querySelector("title");
    dot.setAttribute("aria-label", title.textContent);
    dot.setAttribute("role", "img");
    dot.setAttribute("tabindex", i ? -1 : 0);
    title.remove(); // or the browser would show it too
    dot.addEventListener("focus", () => showTip(dot));
    dot.addEventListener("blur", hideTip);
    dot.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") hideTip();
      if (!step) return;
      event.preventDefault();
      const next = dots[(i + step + dots.length) % dots.length];
      dot.setAttribute("tabindex", -1);
      next.setAttribute("tabindex", 0);
      next.focus();
    });
  });
  const seek = (event) => {
    let [nearest, least] = [null, REACH];
    for (const dot of dots) {
      const [x, y] = middleOf(dot);
      const far = Math.hypot(event.clientX - x, event.clientY - y);
      if (far < least) [nearest, least] = [dot, far];
    }
    if (nearest) showTip(nearest);
    else hideTip();
  };
  svg.addEventListener("pointermove", seek);
  svg.addEventListener("pointerdown", seek);
  svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hideTip());
}
document.addEventListener("scroll", hideTip, { passive: true });
