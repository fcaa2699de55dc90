document.querySelectorAll("table.sortable").forEach(table => {
  const headings = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const rows = [...body.rows];
  const key = (row, column) => row.cells[column].dataset.value;
  const compare = (a, b, numeric) => numeric ? a - b : a.localeCompare(b);
  const sort = (column, descending) => {
    const numeric = headings[column].dataset.sort === "number";
    const order = (a, b) => {
      const [x, y] = [key(a, column), key(b, column)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      return descending ? compare(y, x, numeric) : compare(x, y, numeric);
    };
    body.append(...[...rows].sort(order));
    table.classList.remove("grouped");
    headings.forEach(heading => heading.removeAttribute("aria-sort"));
    headings[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
  };
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const now = heading.getAttribute("aria-sort");
      const first = heading.dataset.best === "largest";
      sort(column, now ? now === "ascending" : first);
    });
  });
});
