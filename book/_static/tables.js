// Tables of the book: a click on a column's name sorts by it, a second click the other way round. Wide tables scroll inside
// themselves, with the keyboard too, and their long texts keep a width at which they can be read. Copy buttons get a name.
"use strict";

function value(row, column) {
  const text = row.cells[column].textContent.trim().replace(/\u2212/g, "-").replace(/(\d),(?=\d{3})/g, "$1");
  const number = parseFloat(text.replace(/^\+/, ""));
  return Number.isNaN(number) ? text.toLowerCase() : number;
}

function compare(a, b) {
  if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b);
  return typeof a === "number" ? -1 : 1; // words, such as a dash for "none", behind numbers
}

function sort(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const upwards = heads[column].getAttribute("aria-sort") !== "ascending";
  const sign = upwards ? 1 : -1;
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => sign * compare(value(a, column), value(b, column)));
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", upwards ? "ascending" : "descending");
  table.tBodies[0].append(...rows);
}

function prepare(table) {
  table.tabIndex = 0;
  for (const head of table.querySelectorAll("th")) {
    if (head.textContent.trim() !== "") continue; // a heading without words is none
    const cell = document.createElement("td");
    cell.className = head.className;
    head.replaceWith(cell);
  }
  for (const cell of table.querySelectorAll("td")) if (cell.textContent.trim().length > 40) cell.classList.add("long");
  if (!table.tHead || !table.tBodies[0] || table.tBodies[0].rows.length < 3) return;
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (head.textContent.trim() === "") return;
    const button = document.createElement("button");
    button.className = "sort";
    button.title = "sort by this column";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(table, column));
  });
}

function nameCopyButtons() {
  const buttons = document.querySelectorAll("button.copybtn");
  buttons.forEach((button) => button.setAttribute("aria-label", "Copy this code"));
  return buttons.length > 0;
}

document.addEventListener("DOMContentLoaded", () => {
  // the list of pages is a landmark, and so is its title, which the theme leaves outside
  const list = document.querySelector(".bd-sidebar-primary");
  if (list) Object.entries({ role: "complementary", "aria-label": "Book" }).forEach(([name, value]) => list.setAttribute(name, value));
  // the buttons come later, all at once
  const watcher = new MutationObserver(() => nameCopyButtons() && watcher.disconnect());
  if (!nameCopyButtons() && document.querySelector("div.highlight pre"))
    watcher.observe(document.body, { childList: true, subtree: true });
  document.querySelectorAll(".bd-article table.table, .bd-article table.dataframe").forEach(prepare);
});
