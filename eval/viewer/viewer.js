// The alignment viewer: items by filter, and of one item what two methods preferred and what each token looked at.
(() => {
  const { $, h, json, framed, block, ready, keep, onSection, options } = page;
  const STEP = 60; // items of the list that are shown at once
  const state = { t: "", a: "", b: "", show: "", cat: "", q: "", sort: "", i: "" };
  const tables = new Map();
  let told = null, captions = null, shown = [], listed = 0, view = null;

  const SHOWS = [
    ["", "all items"], ["ab", "A right, B wrong"], ["ba", "A wrong, B right"], ["both", "both right"],
    ["none", "both wrong"], ["tie", "a tie in A or B"], ["map", "with picture and map"],
  ];
  const SORTS = [["", "order of the benchmark"], ["a-", "A surest wrong"], ["a+", "A surest right"], ["d", "A and B differ most"]];

  // --- scores: what is asked of every item, by the rule of the benchmark ---
  /** The comparisons that an item must win: pairs of places (right, wrong) in its row-major scores. */
  function duels(metric, truth, wide) {
    const found = [];
    for (let one = 0; one < truth.length; one++) {
      for (let other = 0; other < truth.length; other++) {
        const row = Math.floor(one / wide) === Math.floor(other / wide), column = one % wide === other % wide;
        if (truth[one] === "1" && truth[other] === "0" && (metric === "quads" ? row || column : true)) found.push([one, other]);
      }
    }
    return found;
  }
  async function table(key) {
    if (!tables.has(key)) tables.set(key, load(key));
    return tables.get(key);
  }
  async function load(key) {
    const about = told.tables.find((one) => one.key === key), data = await json("t/" + key);
    captions = captions || await json("captions");
    const offsets = [0];
    for (const truth of data.truth) offsets.push(offsets[offsets.length - 1] + truth.length);
    return { ...about, ...data, offsets, scores: new Map(), place: new Map(data.ids.map((id, number) => [id, number])) };
  }
  /** Scores, margins (the least lead of right over wrong) and ties of a method on a table. */
  async function scores(of, method) {
    if (!of.scores.has(method)) of.scores.set(method, judged(of, method));
    return of.scores.get(method);
  }
  async function judged(of, method) {
    const bytes = await block(`s/${of.key}/${of.numbers[of.methods.indexOf(method)]}`);
    if (!bytes) return null;
    const values = new Float32Array(bytes.slice().buffer), margins = new Float32Array(of.ids.length);
    for (let item = 0; item < margins.length; item++) {
      let least = Infinity;
      for (const [one, other] of duels(of.metric, of.truth[item], of.captions[item].length)) {
        least = Math.min(least, values[of.offsets[item] + one] - values[of.offsets[item] + other]);
      }
      margins[item] = least;
    }
    return { values, margins };
  }

  // --- the frame: choices, list, item ---
  function build() {
    const choice = (name, label, entries) => h("label", {}, label, h("select", {
      id: "v-" + name, onchange: (event) => change({ [name]: event.target.value, ...(name === "t" ? { cat: "", i: "" } : {}) }),
    }, options(entries, state[name])));
    const search = h("input", { type: "search", id: "v-q", placeholder: "words of a caption", value: state.q, oninput: (event) => change({ q: event.target.value }) });
    $("viewer").replaceChildren(
      h("div", { className: "controls" },
        choice("t", "Benchmark", told.tables.map((one) => [one.name, `${one.name} (${one.n.toLocaleString("en")})`])),
        choice("a", "A", []), choice("b", "B", []), choice("show", "Show", SHOWS), choice("cat", "Category", []),
        choice("sort", "Order", SORTS), h("label", {}, "Search", search)),
      h("div", { className: "split" },
        h("div", {}, h("p", { className: "soft small", id: "v-count", role: "status" }), h("ol", { className: "list", id: "v-list", "aria-label": "Items", tabIndex: 0 })),
        h("div", { className: "item", id: "v-item" })),
      h("ul", { className: "notes" }, told.notes.map((note) => h("li", {}, note[0].toUpperCase() + note.slice(1) + "."))));
  }
  function change(what, push) {
    Object.assign(state, what);
    keep("items", state, push);
    return refresh(!("i" in what));
  }
  async function enter(query) {
    told = told || (await ready()).viewer;
    if (!told.tables.length) {
      $("viewer").replaceChildren(h("p", { className: "soft" }, "No benchmark here has items of images and captions."));
      return;
    }
    for (const name of Object.keys(state)) state[name] = query.get(name) || "";
    if (!$("v-list")) build();
    $("v-q").value = state.q;
    await refresh();
  }
  let turn = 0;
  /** Show what the state says; after a filter changed, an item that it leaves out gives way to the first that it has. */
  async function refresh(filter) {
    const mine = ++turn;
    const about = told.tables.find((one) => one.name === state.t) || told.tables[0];
    const of = await table(about.key);
    of.numbers = about.numbers || about.methods.map((_, number) => number);
    const maps = told.aligned.filter((name) => of.methods.includes(name));
    const first = of.methods.includes(state.a) ? state.a : maps[0] || of.methods[0];
    const other = of.methods.includes(state.b) ? state.b : of.methods.find((name) => name === "cosine" && name !== first) || of.methods.find((name) => name !== first) || first;
    const [a, b] = [await scores(of, first), await scores(of, other)];
    if (mine !== turn) return;
    view = { of, a, b, first, other };
    const names = [["v-t", told.tables.map((one) => [one.name, `${one.name} (${one.n.toLocaleString("en")})`]), about.name],
      ["v-a", of.methods.map((name) => [name, name]), first], ["v-b", of.methods.map((name) => [name, name]), other],
      ["v-cat", [["", "all"], ...of.categories.filter((name) => name).map((name) => [name, name])], state.cat],
      ["v-show", SHOWS, state.show], ["v-sort", SORTS, state.sort]];
    for (const [id, entries, chosen] of names) $(id).replaceChildren(...options(entries, chosen));
    shown = filtered();
    list();
    if (filter && state.i && !shown.includes(of.place.get(state.i))) {
      state.i = "";
      keep("items", state);
    }
    await detail(of.place.get(state.i) ?? shown[0]);
  }
  function filtered() {
    const { of, a, b } = view, words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const category = state.cat ? of.categories.indexOf(state.cat) : -1;
    const keeps = {
      ab: (n) => a.margins[n] > 0 && !(b.margins[n] > 0), ba: (n) => !(a.margins[n] > 0) && b.margins[n] > 0,
      both: (n) => a.margins[n] > 0 && b.margins[n] > 0, none: (n) => !(a.margins[n] > 0) && !(b.margins[n] > 0),
      tie: (n) => a.margins[n] === 0 || b.margins[n] === 0, map: (n) => document.getElementById(`b:i/${of.key}/${n}`) !== null,
    }[state.show] || (() => true);
    const found = [];
    for (let n = 0; n < of.ids.length; n++) {
      if (category >= 0 && of.category[n] !== category) continue;
      if (!keeps(n)) continue;
      if (words.length) {
        const text = of.captions[n].map((one) => captions[one]).join("\n").toLowerCase();
        if (!words.every((word) => text.includes(word))) continue;
      }
      found.push(n);
    }
    const by = { "a-": (n) => a.margins[n], "a+": (n) => -a.margins[n], d: (n) => -Math.abs(Math.sign(a.margins[n]) - Math.sign(b.margins[n])) * 1e6 - Math.abs(a.margins[n]) }[state.sort];
    return by ? found.sort((one, other) => by(one) - by(other)) : found;
  }
  function list() {
    $("v-list").replaceChildren();
    $("v-list").scrollTop = 0;
    listed = 0;
    $("v-count").textContent = `${shown.length.toLocaleString("en")} of ${view.of.ids.length.toLocaleString("en")} items`;
    more();
  }
  function more() {
    const last = $("v-more");
    if (last) last.remove();
    const { of, a, b } = view, some = shown.slice(listed, listed + STEP);
    listed += some.length;
    $("v-list").append(...some.map((n) => h("li", {}, h("button", {
      type: "button", "data-n": n, onclick: () => change({ i: of.ids[n] }, true),
    }, h("span", { className: "top" }, h("span", {}, of.categories[of.category[n]] || of.ids[n]), h("span", { className: "verdict" }, "A ", sign(a.margins[n]), " B ", sign(b.margins[n]))),
      h("span", { className: "text" }, captions[of.captions[n][0]])))));
    if (listed < shown.length) $("v-list").append(h("li", { id: "v-more" }, h("button", { type: "button", onclick: more }, "Show more")));
    mark();
  }
  const sign = (margin) => h("b", { className: margin > 0 ? "good" : "bad" }, margin > 0 ? "✓" : margin === 0 ? "=" : "✗");
  function mark() {
    for (const button of $("v-list").querySelectorAll("button[data-n]")) {
      if (view.of.ids[button.dataset.n] === view.id) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  }

  // --- one item ---
  /** The caption with what the others do not share in the same place marked. */
  function told_apart(text, others) {
    const words = text.split(" "), rest = others.map((one) => one.split(" "));
    const differs = words.map((word, at) => rest.some((one) => (one.length === words.length ? one[at] !== word : !one.includes(word))));
    return words.flatMap((word, at) => [at ? " " : "", differs[at] ? h("mark", {}, word) : word]);
  }
  function verdict(margin) {
    const size = Math.abs(margin).toPrecision(2);
    if (margin === 0) return h("span", { className: "bad" }, "tie: a miss");
    return margin > 0 ? h("span", { className: "good" }, `right by ${size}`) : h("span", { className: "bad" }, `wrong by ${size}`);
  }
  /** What a method scored: images down, captions across; bold is what it prefers, framed what is right. */
  function scoreCard(letter, name, judged, n) {
    const { of } = view, wide = of.captions[n].length, truth = of.truth[n];
    const values = judged.values.subarray(of.offsets[n], of.offsets[n + 1]);
    const rows = of.images[n].map((_, row) => {
      const own = values.subarray(row * wide, (row + 1) * wide), top = Math.max(...own);
      return h("tr", {}, h("th", { scope: "row" }, `image ${row + 1}`), [...own].map((value, column) => {
        const right = truth[row * wide + column] === "1", first = value === top;
        const cell = h("td", { className: `${right ? "right" : ""} ${first ? "first" : ""} ${first && !right ? "wrong" : ""}` }, value.toFixed(3));
        if (first) cell.append(h("span", { className: "out" }, " preferred"));
        if (right) cell.append(h("span", { className: "out" }, " right"));
        return cell;
      }));
    });
    return h("div", {}, h("h3", {}, `${letter}: ${name} `, h("small", {}, verdict(judged.margins[n]))), h("table", {},
      h("thead", {}, h("tr", {}, h("td", {}), of.captions[n].map((_, column) => h("th", { scope: "col" }, `caption ${column + 1}`)))),
      h("tbody", {}, rows)));
  }
  async function detail(n) {
    const there = $("v-item");
    if (n === undefined) { there.replaceChildren(h("p", { className: "soft" }, "No item is like this.")); return; }
    const { of, a, b, first, other } = view, mine = turn;
    const [heavy, pictures] = await Promise.all([framed(`i/${of.key}/${n}`), Promise.all(of.images[n].map((one) => framed(`p/${one}`)))]);
    if (mine !== turn) return;
    view.id = of.ids[n];
    mark();
    const at = shown.indexOf(n), step = (by, name) => h("button", {
      className: "button", type: "button", disabled: !(at + by in shown) || at < 0, onclick: () => change({ i: of.ids[shown[at + by]] }, true),
    }, name);
    const texts = of.captions[n].map((one) => captions[one]);
    there.replaceChildren(
      h("div", { className: "head" }, h("h3", {}, `${of.categories[of.category[n]] || "item"} `, h("small", {}, of.ids[n])),
        h("div", {}, step(-1, "← Previous"), " ", step(1, "Next →"))),
      h("div", { className: "scores" }, scoreCard("A", first, a, n), first === other ? null : scoreCard("B", other, b, n)),
      h("p", { className: "soft small" }, "Framed is right, shaded what the method prefers of a row."),
      maps(n, texts, heavy, pictures));
  }

  /** Pictures, captions and the maps of a method: a token is chosen, its map is laid over every picture. */
  function maps(n, texts, heavy, pictures) {
    const { of, first, other } = view, wide = texts.length;
    const there = heavy ? heavy.head.maps : [], now = { method: 0, caption: 0, rows: [], label: "", boxes: true };
    const best = there.findIndex((one) => one.method === first);
    now.method = Math.max(0, best >= 0 ? best : there.findIndex((one) => one.method === other));
    const frames = pictures.map((picture, row) => frame(picture, row));
    const board = h("div", {}), words = h("div", {});
    const bytes = (map) => {
      let at = 0;
      for (const one of there) { if (one === map) break; at += one.rows.reduce((sum, count) => sum + count, 0) * one.grid[0] * one.grid[1]; }
      return at;
    };
    /** (tokens × patches) of image `row` with caption `column`, as stored bytes with their bounds. */
    function cells(row, column) {
      const map = there[now.method], pair = row * wide + column, size = map.grid[0] * map.grid[1];
      const start = bytes(map) + map.rows.slice(0, pair).reduce((sum, count) => sum + count, 0) * size;
      return { map, size, count: map.rows[pair], low: map.low[pair], high: map.high[pair], data: heavy.data.subarray(start, start + map.rows[pair] * size) };
    }
    function mean(row, column, rows) {
      const { size, low, high, data, map } = cells(row, column), values = new Float32Array(size);
      for (const one of rows) for (let p = 0; p < size; p++) values[p] += (low + data[one * size + p] / 255 * (high - low)) / rows.length;
      return { values, map };
    }
    function draw() {
      if (!there.length) return;
      const found = frames.map((_, row) => mean(row, now.caption, now.rows));
      const low = Math.min(...found.map((one) => Math.min(...one.values))), high = Math.max(...found.map((one) => Math.max(...one.values)));
      frames.forEach((one, row) => one.show(found[row].values, found[row].map, low, high));
      for (const button of [...board.querySelectorAll(".tok"), ...words.querySelectorAll(".tok")]) {
        button.setAttribute("aria-pressed", String(Number(button.dataset.c) === now.caption && button.dataset.r === now.rows.join(",")));
      }
      range.textContent = `${now.label}: ${there[now.method].kind} from ${low.toPrecision(2)} to ${high.toPrecision(2)}, one scale for ${frames.length > 1 ? "all pictures" : "the picture"}`;
    }
    const range = h("p", { className: "soft small", role: "status" });
    function choose(caption, rows, label) {
      const turned = caption !== now.caption;
      Object.assign(now, { caption, rows, label });
      if (turned) matrix();
      draw();
    }
    const token = (column, rows, label, extra = "") => h("button", {
      type: "button", className: "tok " + extra, "data-c": column, "data-r": rows.join(","), "aria-pressed": "false", title: label,
      onclick: () => choose(column, rows, label),
    }, label);
    /** Names of the rows of a caption's map: its tokens as they stand in it. */
    function names(column) {
      const map = there[now.method], spans = heavy.head.spans[column];
      if (map.whole) return ["whole caption"];
      return Array.from({ length: map.rows[column] }, (_, one) => {
        const span = spans[one];
        return span && span[0] >= 0 ? texts[column].slice(...span) : one ? "end" : "begin";
      });
    }
    function parts(column) {
      if (there[now.method].whole) return [];
      const spans = heavy.head.spans[column], count = there[now.method].rows[column];
      return heavy.head.segments[column].map(([start, end]) => ({
        label: texts[column].slice(start, end),
        rows: spans.flatMap(([from, to], one) => (one < count && from >= start && to <= end && from >= 0 ? [one] : [])),
      })).filter((one) => one.rows.length);
    }
    function sentence(text, column) {
      const line = h("p", { className: "caption" }, h("span", { className: "n" }, `caption ${column + 1}`));
      if (!there.length || there[now.method].whole) { line.append(...told_apart(text, texts.filter((_, one) => one !== column))); return line; }
      let at = 0;
      heavy.head.spans[column].slice(0, there[now.method].rows[column]).forEach(([start, end], one) => {
        if (start < 0 || start < at) return;
        line.append(text.slice(at, start), token(column, [one], text.slice(start, end)));
        at = end;
      });
      line.append(text.slice(at));
      return line;
    }
    function strip(column, rows) {
      return h("div", { className: "strips", "aria-hidden": "true" }, frames.map((_, row) => {
        const { size, low, high } = cells(row, column), { values } = mean(row, column, rows);
        const canvas = h("canvas", { width: size, height: 1 });
        paint(canvas, values, low, high);
        return canvas;
      }));
    }
    function matrix() {
      const column = now.caption;
      board.replaceChildren(
        h("h3", {}, `Tokens × patches `, h("small", {}, `caption ${column + 1}, ${frames.length > 1 ? "one block a picture" : "row by row of the picture"}`)),
        h("div", { className: "matrix", onkeydown: walk },
          parts(column).flatMap((one) => [token(column, one.rows, one.label, "seg"), strip(column, one.rows)]),
          names(column).flatMap((name, one) => [token(column, [one], name), strip(column, [one])])));
    }
    /** Arrow keys go from token to token. */
    function walk(event) {
      const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!by) return;
      const buttons = [...board.querySelectorAll(".tok")], next = buttons[buttons.indexOf(document.activeElement) + by];
      if (next) { event.preventDefault(); next.focus(); next.click(); }
    }
    function begin() {
      words.replaceChildren(...texts.map(sentence));
      if (!there.length) return;
      const found = parts(0)[0], list = names(0);
      Object.assign(now, found ? { caption: 0, ...found } : { caption: 0, rows: [Math.min(1, list.length - 1)], label: list[Math.min(1, list.length - 1)] });
      matrix();
      draw();
    }
    const chooser = there.length > 1 ? h("label", {}, "Map of", h("select", {
      id: "v-map", onchange: (event) => { now.method = Number(event.target.value); begin(); },
    }, options(there.map((one, place) => [String(place), one.method]), String(now.method)))) : null;
    const boxed = pictures.some((one) => one && one.head.boxes.length) ? h("label", { className: "check" }, h("input", {
      type: "checkbox", id: "v-boxes", checked: true, onchange: (event) => frames.forEach((one) => one.boxes(event.target.checked)),
    }), "Boxes") : null;
    begin();
    const why = heavy ? (there.length ? null : "No method here compares tokens with patches.") : "Pictures and maps of this item are not in this file.";
    return h("div", {}, h("div", { className: "controls" }, chooser, boxed), words,
      h("div", { className: "pictures" }, frames.map((one) => one.figure)), there.length ? range : null,
      why ? h("p", { className: "soft small" }, why) : null, board);
  }

  /** Values on a canvas, a pixel each: nothing at the least, the full colour at the most. */
  function paint(canvas, values, low, high, most = 255) {
    const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
    const [red, green, blue] = getComputedStyle(document.documentElement).getPropertyValue("--heat").split(",").map(Number);
    values.forEach((value, p) => {
      const share = high > low ? (value - low) / (high - low) : 0;
      image.data.set([red, green, blue, Math.round(most * share)], 4 * p);
    });
    context.putImageData(image, 0, 0);
  }
  function covered(width, height, resize) {
    if (resize === "squash" || width === height) return [0, 0, 1, 1];
    const side = resize === "shortest" ? Math.min(width, height) : Math.max(width, height);
    return [(1 - side / width) / 2, (1 - side / height) / 2, side / width, side / height];
  }
  function frame(picture, row) {
    const holder = h("div", { className: "frame" }), overlay = h("canvas", { hidden: true });
    const figure = h("figure", {}, holder, h("figcaption", {}, `image ${row + 1}`));
    let boxes = null;
    if (picture) {
      const { w, h: high, boxes: known } = picture.head;
      let raw = "";
      for (const one of picture.data) raw += String.fromCharCode(one);
      holder.append(h("img", { src: "data:image/webp;base64," + btoa(raw), width: w, height: high, alt: `image ${row + 1} of the item` }), overlay);
      if (known.length) {
        boxes = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        boxes.setAttribute("viewBox", "0 0 1 1");
        boxes.setAttribute("preserveAspectRatio", "none");
        boxes.setAttribute("aria-hidden", "true");
        for (const [x0, y0, x1, y1] of known) for (const name of ["under", ""]) {
          const box = document.createElementNS("http://www.w3.org/2000/svg", "rect");
          for (const [key, value] of Object.entries({ x: x0, y: y0, width: x1 - x0, height: y1 - y0, class: name })) box.setAttribute(key, value);
          boxes.append(box);
        }
        holder.append(boxes);
      }
    } else holder.append(h("p", { className: "none" }, "no picture here"));
    return {
      figure,
      boxes: (on) => { if (boxes) boxes.style.display = on ? "" : "none"; },
      show(values, map, low, most) {
        if (!picture) return;
        const [x, y, wide, tall] = covered(picture.head.w, picture.head.h, map.resize);
        Object.assign(overlay, { width: map.grid[1], height: map.grid[0], hidden: false });
        Object.assign(overlay.style, { left: `${100 * x}%`, top: `${100 * y}%`, width: `${100 * wide}%`, height: `${100 * tall}%` });
        paint(overlay, values, low, most, 205);
        holder.classList.add("mapped");
      },
    };
  }
  onSection("items", enter);
  page.start();
})();
