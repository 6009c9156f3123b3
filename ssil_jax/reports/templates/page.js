// Tables are sorted by a click on the name of a column; without this script all is there, too.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, column) => {
    const cell = row.cells[column];
    const value = cell.dataset.value;
    return value === undefined ? cell.textContent.trim() : Number(value);
  };
  const compare = (one, other) =>
    typeof one === "number" && typeof other === "number"
      ? one - other
      : String(one).localeCompare(String(other), "en", { numeric: true });
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const isNumber = head.classList.contains("n");
      const before = head.getAttribute("aria-sort");
      const order = before === "none"
        ? (isNumber ? "descending" : "ascending")
        : (before === "ascending" ? "descending" : "ascending");
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const unknown = (value) => value === "-" || value === "";
      const rows = [...body.rows].map((row) => [key(row, column), row]);
      rows.sort(([one], [other]) =>  // what is unknown comes last, whatever the order
        unknown(one) || unknown(other)
          ? unknown(one) - unknown(other)
          : sign * compare(one, other));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
