"use strict";
// Sort a table by the column whose heading was pressed: first as a reader expects, then the other way.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows].at(-1).cells;
  const body = table.tBodies[0];
  const value = (row, column) => {
    const text = row.cells[column].dataset.sort;
    return text === "" ? null : Number(text);
  };
  [...headings].forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const ids = column === 0;
      const before = heading.getAttribute("aria-sort");
      const order = before === "none" ? (ids ? "ascending" : "descending") : before === "ascending" ? "descending" : "ascending";
      for (const other of headings) other.setAttribute("aria-sort", "none");
      heading.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a, column), value(b, column)];
        if (x === null || y === null) return (x === null) - (y === null); // what is not known comes last
        return sign * (x - y) || value(a, 0) - value(b, 0);
      });
      body.append(...rows);
    });
  });
}
// Enlarge a picture.
const lightbox = document.getElementById("lightbox");
for (const button of document.querySelectorAll("button.zoom")) {
  button.addEventListener("click", () => {
    lightbox.querySelector("div").replaceChildren(...[...button.childNodes].map((n) => n.cloneNode(true)));
    lightbox.querySelector("p").textContent = button.querySelector("img").alt;
    lightbox.showModal();
  });
}
lightbox.addEventListener("click", () => lightbox.close());
