"use strict";
// Makes the heading of each column a button that sorts its table. Without this all is there too.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, column) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const numeric = head.classList.contains("number");
      body.append(...[...body.rows].sort((one, other) => {
        const [a, b] = [key(one, column), key(other, column)];
        return sign * (numeric ? a - b : a.localeCompare(b));
      }));
    });
  });
}
document.documentElement.classList.add("sorts");
