"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const make = (tag, text, name) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (name) node.className = name;
    return node;
  };
  const SERVED = "";
  const TRIES = 8;
  const sides = [];
  let indexes = [];
  let run = 0;
  let columns = [null, null];
  let key = "";

  const say = (text, bad) => {
    $("status").textContent = text;
    $("status").classList.toggle("bad", Boolean(bad));
  };

  /* A cell that is made for the first time can take longer than an answer may: then it is asked for again. */
  const ask = async (path, body, tries = TRIES) => {
    const headers = {};
    if (key) headers.Authorization = `Bearer ${key}`;
    if (body) headers["Content-Type"] = "application/json";
    const options = { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) };
    const answer = await fetch(path, options).catch(() => null);
    if (!answer) throw new Error("The server does not answer.");
    const content = await answer.json().catch(() => null);
    if (!content) throw new Error(`The server's answer (${answer.status}) cannot be read.`);
    if (answer.ok) return content;
    const wait = Number(answer.headers.get("Retry-After")) || 1;
    if ([429, 503, 504].includes(answer.status) && tries > 1) {
      say(answer.status === 504 ? "Codes of this size are being made." : content.error.message);
      await new Promise((resolve) => setTimeout(resolve, 1000 * wait));
      return ask(path, body, tries - 1);
    }
    if (answer.status === 401) {
      $("login").hidden = false;
      $("key").focus();
      throw new Error("The key is wrong.");
    }
    throw new Error(content.error.message);
  };

  const select = (label, parent) => {
    const box = make("label", label);
    const node = make("select");
    box.append(node);
    parent.append(box);
    return node;
  };
  const fill = (node, pairs, value) => {
    const kept = value === undefined ? node.value : String(value);
    node.replaceChildren(...pairs.map(([key, text]) => {
      const option = make("option", text);
      option.value = key;
      return option;
    }));
    if (pairs.some(([key]) => String(key) === kept)) node.value = kept;
  };
  const indexOf = (side) => indexes.find((one) => one.name === side.index.value) || indexes[0];

  const settle = (side, wanted = {}) => {
    const one = indexOf(side);
    fill(side.mode, one.modes.map((mode) => [mode, mode]), wanted.mode);
    fill(side.dim, [[SERVED, "as served"], ...one.dims.map((dim) => [dim, `${dim} dims`])], wanted.dim);
    fill(side.precision, one.precisions.map((name) => [name, name]), wanted.precision);
    const lexical = side.mode.value === "lexical";
    side.dim.disabled = lexical || !one.dims.length;
    side.precision.disabled = lexical || side.dim.value === SERVED;
    side.note.textContent = one.note || "";
  };

  const addSide = (title) => {
    const box = make("section", undefined, "side");
    box.append(make("h2", title));
    box.setAttribute("aria-label", title);
    const choose = make("div", undefined, "choose");
    const side = { box };
    side.index = select("Index", choose);
    side.mode = select("Mode", choose);
    side.dim = select("Size", choose);
    side.precision = select("Precision", choose);
    side.note = make("p", "", "note");
    side.figures = make("p", "", "figures");
    side.list = make("ol", undefined, "top");
    box.append(choose, side.note, side.figures, side.list);
    $("sides").append(box);
    for (const node of [side.index, side.mode, side.dim, side.precision]) {
      node.addEventListener("change", () => {
        settle(side);
        search();
      });
    }
    fill(side.index, indexes.map((one) => [one.name, `${one.name} (${one.model})`]), indexes[0].name);
    sides.push(side);
    return side;
  };

  const wayOf = (side) => {
    const way = { index: side.index.value, mode: side.mode.value };
    if (!side.dim.disabled && side.dim.value !== SERVED) {
      way.dim = Number(side.dim.value);
      way.precision = side.precision.value;
    }
    return way;
  };

  const moveOf = (hit, others) => {
    if (!others) return ["", ""];
    const before = others.findIndex((other) => other.id === hit.id);
    if (before < 0) return ["new", "in"];
    const by = others[before].rank - hit.rank;
    if (!by) return ["=", ""];
    return by > 0 ? [`↑${by}`, "up"] : [`↓${-by}`, ""];
  };

  const show = (side, column, others) => {
    const size = column.bytes === null ? "" : ` · ${Number(column.bytes.toFixed(1)).toLocaleString("en")} bytes a document`;
    const found = column.recall === null ? "" : ` · recall@10 ${column.recall.toFixed(2)}`;
    const spent = (column.encode_ms + column.search_ms).toFixed(1);
    side.figures.textContent = `${spent} ms (search ${column.search_ms.toFixed(1)})${size}${found}`;
    if (!column.hits.length) {
      side.list.replaceChildren(make("li", "Nothing found.", "empty"));
      return;
    }
    side.list.replaceChildren(...column.hits.map((hit) => {
      const row = make("li");
      const [text, kind] = moveOf(hit, others);
      const move = make("span", text, `move ${kind}`);
      if (text) move.title = "against the left column";
      const body = make("div");
      const title = make("bdi", hit.text.slice(0, 600), "text");
      if (hit.relevant) {
        title.classList.add("relevant");
        const mark = make("span", "● relevant", "mark");
        body.append(mark);
      }
      const about = [hit.id, ...Object.entries(hit.fields).filter(([, value]) => value && value.length < 60)
        .map(([name, value]) => `${name}: ${value}`)].slice(0, 8).join(" · ");
      const small = make("small", undefined, "about");
      small.append(make("bdi", about.slice(0, 300)));
      body.append(title, small);
      row.append(make("span", String(hit.rank), "rank"), move, body, make("span", hit.score.toFixed(3), "score"));
      return row;
    }));
  };

  const current = () => {
    const dim = columns[1] && columns[1].dim;
    for (const row of $("sizes").children) {
      if (Number(row.dataset.dim) === dim) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
    const dims = [...$("sizes").children].map((row) => Number(row.dataset.dim));
    const place = dims.indexOf(dim);
    if (place >= 0) $("dim").value = String(place);
    $("dim-value").textContent = dim ? `${dim} dims` : "as served";
  };

  const shrink = async (query, mine) => {
    const right = sides[1];
    const one = indexOf(right);
    if (!one.dims.length) {
      $("shrinking").hidden = true;
      return;
    }
    const answer = await ask("/sizes", { query, index: one.name, precision: right.precision.value || "float32" });
    if (mine !== run) return;
    const what = answer.against === "judged"
      ? `Share of the ${answer.wanted} judged relevant documents among the first 10`
      : "Share of the full size's first 10 documents that are still among the first 10";
    $("against").textContent = `${what}, by ${answer.precision} of ${one.name}, vectors alone.`;
    $("sizes").replaceChildren(...answer.sizes.map((size) => {
      const row = make("li");
      row.dataset.dim = String(size.dim);
      const bar = make("meter", undefined, "bar");
      bar.min = 0;
      bar.max = 1;
      bar.value = size.recall;
      bar.setAttribute("aria-label", `recall at ${size.dim} dims`);
      row.append(make("span", `${size.dim} dims`), bar, make("span", size.recall.toFixed(2), "number"),
        make("span", `${size.bytes.toLocaleString("en")} bytes`, "number bytes"));
      return row;
    }));
    $("dim").max = String(answer.sizes.length - 1);
    $("shrinking").hidden = false;
    current();
  };

  const search = async () => {
    const query = $("query").value.trim();
    if (!query || sides.length < 2) return;
    const mine = ++run;
    $("sides").setAttribute("aria-busy", "true");
    say("Searching.");
    try {
      const answer = await ask("/compare", { query, columns: sides.map(wayOf), k: 10 });
      if (mine !== run) return;
      columns = answer.columns;
      show(sides[0], columns[0], null);
      show(sides[1], columns[1], columns[0].hits);
      const same = columns[1].hits.filter((hit) => columns[0].hits.some((other) => other.id === hit.id)).length;
      const judged = answer.judged ? " The query was judged: relevant documents are marked." : "";
      const done = `${same} of ${columns[1].hits.length} results of the right are in the left too.${judged}`;
      say(done);
      current();
      await shrink(query, mine);
      if (mine === run) say(done);
    } catch (error) {
      if (mine === run) say(error.message, true);
    } finally {
      if (mine === run) $("sides").setAttribute("aria-busy", "false");
    }
  };

  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  $("dim").addEventListener("input", () => {
    const row = $("sizes").children[Number($("dim").value)];
    if (row) $("dim-value").textContent = `${row.dataset.dim} dims`;
  });
  $("dim").addEventListener("change", () => {
    const row = $("sizes").children[Number($("dim").value)];
    if (!row) return;
    const right = sides[1];
    if (right.mode.value === "lexical") settle(right, { mode: "dense" });
    settle(right, { dim: row.dataset.dim });
    search();
  });

  const start = async () => {
    try {
      indexes = (await ask("/indexes")).indexes;
      $("login").hidden = true;
      say("");
      const left = addSide("Left");
      const right = addSide("Right");
      settle(left, { mode: indexes[0].modes[0], dim: SERVED });
      const dims = indexes[0].dims;
      settle(right, { mode: "dense", dim: dims.length ? dims[Math.min(2, dims.length - 1)] : SERVED });
      const queries = (await ask("/queries")).queries;
      $("judged").replaceChildren(...queries.map((query) => {
        const option = make("option");
        option.value = query;
        return option;
      }));
      const total = indexes.reduce((sum, one) => sum + one.documents, 0);
      const judged = queries.length ? ` ${queries.length.toLocaleString("en")} judged queries are suggested.` : "";
      $("hint").textContent = `${total.toLocaleString("en")} documents.${judged}`;
      const asked = new URLSearchParams(location.search).get("q");
      if (asked && !$("query").value) $("query").value = asked;
      /* Also what was typed before the page was ready. */
      search();
    } catch (error) {
      say(error.message, true);
    }
  };
  $("login").addEventListener("submit", (event) => {
    event.preventDefault();
    key = $("key").value.trim();
    $("key").value = "";
    if (sides.length) {
      $("login").hidden = true;
      search();
    } else start();
  });
  if ($("login").hidden) start();
  else $("key").focus();
})();
