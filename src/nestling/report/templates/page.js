"use strict";
(() => {
  const make = (tag, text, name) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (name) node.className = name;
    return node;
  };

  /* Tables: a heading sorts its rows, within each group. */
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = make("button", head.textContent);
      button.type = "button";
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") === "descending" || (!head.hasAttribute("aria-sort") && column === 0);
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const value = (row) => {
          const cell = row.cells[column];
          return cell.dataset.sort === undefined ? cell.textContent : Number(cell.dataset.sort);
        };
        for (const body of table.tBodies) {
          const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
          rows.sort((a, b) => {
            const [x, y] = [value(a), value(b)];
            if (typeof x === typeof y) return (typeof x === "number" ? x - y : x.localeCompare(y)) * (up ? 1 : -1);
            return typeof x === "number" ? -1 : 1;
          });
          body.append(...rows);
        }
      });
    });
  }

  const source = document.getElementById("rankings");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const form = document.getElementById("explorer");
  const list = document.getElementById("list");
  const shown = document.getElementById("shown");
  const more = document.getElementById("more");
  const matches = document.getElementById("matches");
  const PAGE = 60;
  const keys = data.queries.map((query) => query.toLowerCase());
  let found = [];
  let limit = PAGE;
  let current = -1;

  const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer;
  const wide = data.none > 0xffff;
  const once = (read) => {
    const known = new Map();
    return (key) => {
      if (!known.has(key)) known.set(key, read(key));
      return known.get(key);
    };
  };
  const ranksOf = once((system) => new (wide ? Uint32Array : Uint16Array)(bytes(data.ranks[system])));
  const scoresOf = once((system) => {
    const { low, high, steps } = data.scores[system];
    return Float64Array.from(new Uint16Array(bytes(steps)), (step) => low + ((high - low) * step) / data.scale);
  });
  const valuesOf = once((key) => {
    const [system, measure] = key.split("/");
    return new Uint16Array(bytes(data.values[system][measure]));
  });

  const fill = (select, names, start) => {
    names.forEach((name, n) => {
      const option = make("option", name);
      option.value = n;
      select.append(option);
    });
    select.value = start;
  };
  fill(form.a, data.systems, data.start[0]);
  fill(form.b, data.systems, data.start[1]);
  fill(form.measure, data.measures, 0);
  form.hidden = document.getElementById("explored").hidden = false;

  const change = (query) =>
    (valuesOf(`${form.b.value}/${form.measure.value}`)[query] - valuesOf(`${form.a.value}/${form.measure.value}`)[query]) /
    data.scale;
  const told = (difference) => (Math.abs(difference) < 0.00005 ? "=" : `${difference > 0 ? "+" : "−"}${Math.abs(difference).toFixed(2)}`);

  const draw = () => {
    list.replaceChildren(
      ...found.slice(0, limit).map((query) => {
        const item = make("li");
        const button = make("button");
        button.type = "button";
        const text = make("bdi", data.queries[query]);
        button.append(text, make("span", told(change(query)), "figure"));
        if (query === current) button.setAttribute("aria-current", "true");
        button.addEventListener("click", () => {
          open(query);
          if (matchMedia("(max-width: 46rem)").matches) shown.scrollIntoView({ block: "start" });
        });
        item.append(button);
        return item;
      }),
    );
    more.hidden = found.length <= limit;
  };

  const search = () => {
    const words = form.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const sides = { all: [], won: [], lost: [], tied: [] };
    const changes = new Float64Array(keys.length);
    keys.forEach((key, query) => {
      if (!words.every((word) => key.includes(word))) return;
      changes[query] = change(query);
      sides.all.push(query);
      sides[changes[query] > 0 ? "won" : changes[query] < 0 ? "lost" : "tied"].push(query);
    });
    for (const input of form.outcome) input.parentNode.querySelector(".count").textContent = sides[input.value].length;
    const outcome = form.outcome.value;
    const sign = outcome === "lost" ? 1 : -1;
    found = sides[outcome].sort((x, y) => sign * (changes[x] - changes[y]) || x - y);
    limit = PAGE;
    matches.textContent = `${found.length} of ${keys.length} queries, ${outcome === "lost" ? "biggest losses" : "biggest wins"} of B first`;
    if (!found.includes(current)) current = found.length ? found[0] : -1;
    draw();
    open(current, false);
  };

  const side = (letter, system, other, query, relevant) => {
    const box = make("div");
    const ranks = ranksOf(system).subarray(query * data.top, (query + 1) * data.top);
    const others = [...ranksOf(other).subarray(query * data.top, (query + 1) * data.top)];
    const scores = scoresOf(system).subarray(query * data.top, (query + 1) * data.top);
    const figures = data.measures.map((name, n) => `${name} ${(valuesOf(`${system}/${n}`)[query] / data.scale).toFixed(2)}`);
    box.append(make("h4", `${letter}: ${data.systems[system]}`), make("span", figures.join(", "), "figure"));
    const top = make("ol", undefined, "top");
    ranks.forEach((document_, n) => {
      if (document_ === data.none) return;
      const item = make("li");
      const hit = relevant.has(document_);
      if (hit) item.className = "hit";
      const mark = make("span", hit ? "●" : "○", "mark");
      mark.setAttribute("aria-hidden", "true");
      const text = make("bdi", data.documents[document_], hit ? "relevant" : "");
      if (hit) text.append(make("span", " (relevant)", "hidden"));
      const before = others.indexOf(document_);
      const figure = make("span", scores[n].toFixed(3), "figure");
      if (letter === "B") {
        const moved = before - n;
        figure.append(make("small", before < 0 ? "new" : moved > 0 ? `▲ ${moved}` : moved < 0 ? `▼ ${-moved}` : "="));
      }
      item.append(make("span", n + 1, "figure"), mark, text, figure);
      top.append(item);
    });
    box.append(top);
    return box;
  };

  const open = (query, mark = true) => {
    current = query;
    if (mark) {
      for (const button of list.querySelectorAll("button")) button.removeAttribute("aria-current");
      list.children[found.indexOf(query)]?.firstChild.setAttribute("aria-current", "true");
    }
    if (query < 0) {
      shown.replaceChildren(make("p", "No query matches.", "note"));
      return;
    }
    const [a, b] = [Number(form.a.value), Number(form.b.value)];
    const relevant = new Set(data.relevant[query]);
    const title = make("h3");
    title.append(make("bdi", data.queries[query]));
    const sides = make("div", undefined, "sides");
    sides.append(side("A", a, b, query, relevant), side("B", b, a, query, relevant));
    const seen = new Set([a, b].flatMap((system) => [...ranksOf(system).subarray(query * data.top, (query + 1) * data.top)]));
    const missed = [...relevant].filter((document_) => !seen.has(document_));
    const key = make("p", `● relevant: ${relevant.size}; ▲ ▼ places won and lost from A to B`, "note");
    shown.replaceChildren(title, key, sides);
    if (missed.length) {
      shown.append(make("h4", `Relevant, in neither top ${data.top}: ${missed.length}`));
      const rest = make("ul");
      missed.slice(0, data.top).forEach((document_) => {
        const item = make("li");
        item.append(make("bdi", data.documents[document_]));
        rest.append(item);
      });
      shown.append(rest);
    }
  };

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", search);
  more.addEventListener("click", () => {
    limit += PAGE;
    draw();
  });
  search();
})();
