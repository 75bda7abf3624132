"use strict";
// The page: blocks of data, sections by address, the theme, the sorted table, charts that are drawn when they are seen.
const page = (() => {
  const $ = (id) => document.getElementById(id);
  const root = document.documentElement;
  root.classList.add("js");

  /** An element: tag, properties (or attributes with a dash), children. */
  function h(tag, how = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(how)) {
      if (value === undefined || value === null || value === false) continue;
      if (name.includes("-") || name === "role" || name === "for") made.setAttribute(name, value);
      else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else made[name] = value;
    }
    made.append(...children.flat().filter((one) => one !== null && one !== undefined && one !== false));
    return made;
  }

  // --- blocks: base64 of gzip, read when first asked for ---
  const known = new Map();
  function block(name) {
    if (!known.has(name)) known.set(name, opened($("b:" + name)));
    return known.get(name);
  }
  async function opened(element) {
    if (!element) return null;
    const text = element.textContent, plain = text[0] === "-";
    const raw = atob(plain ? text.slice(1) : text), bytes = new Uint8Array(raw.length);
    for (let at = 0; at < raw.length; at++) bytes[at] = raw.charCodeAt(at);
    if (plain) return bytes;
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }
  const text = async (name) => new TextDecoder().decode(await block(name));
  const json = async (name) => JSON.parse(await text(name));
  /** A JSON head and the bytes behind it. */
  async function framed(name) {
    const bytes = await block(name);
    if (!bytes) return null;
    const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
    return { head: JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length))), data: bytes.subarray(4 + length) };
  }
  let report = null;
  const ready = () => (report = report || Promise.all([json("charts"), json("report")]).then(([one, other]) => ({ ...one, ...other })));

  // --- the address: #section?name=value ---
  function place() {
    const [section, query = ""] = location.hash.slice(1).split("?");
    return { section: $(section) && $(section).tagName === "SECTION" ? section : "overview", query: new URLSearchParams(query) };
  }
  const comers = {};
  function go() {
    const { section, query } = place();
    for (const one of document.querySelectorAll("main section")) one.classList.toggle("on", one.id === section);
    for (const link of document.querySelectorAll("nav a")) {
      if (link.hash === "#" + section) {
        link.setAttribute("aria-current", "page");
        link.scrollIntoView({ block: "nearest", inline: "nearest" });
      }
      else link.removeAttribute("aria-current");
    }
    if (comers[section]) comers[section](query);
  }
  const onSection = (section, comer) => { comers[section] = comer; };
  /** Write the state into the address, so that it can be sent to somebody. */
  function keep(section, values, push) {
    const query = new URLSearchParams(Object.entries(values).filter(([, value]) => value !== "" && value !== undefined && value !== null));
    const there = "#" + section + (query.size ? "?" + query : "");
    if (there !== location.hash) history[push ? "pushState" : "replaceState"](null, "", there);
  }

  // --- the theme ---
  const dark = () => root.dataset.theme === "dark";
  const redraws = new Set();
  function setTheme(theme, keepIt) {
    root.dataset.theme = theme;
    $("theme").textContent = theme === "dark" ? "Light" : "Dark";
    $("theme").setAttribute("aria-label", "Switch to the " + (theme === "dark" ? "light" : "dark") + " theme");
    if (keepIt) try { localStorage.setItem("compal-theme", theme); } catch { /* a file may have no storage */ }
    for (const again of redraws) again();
  }
  function theme() {
    let kept = null;
    try { kept = localStorage.getItem("compal-theme"); } catch { /* as above */ }
    setTheme(kept || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
    $("theme").hidden = false;
    $("theme").addEventListener("click", () => setTheme(dark() ? "light" : "dark", true));
  }

  // --- the table ---
  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== (column ? "descending" : "ascending");
      const sense = column ? (down ? "descending" : "ascending") : (down ? "ascending" : "descending");
      heads.forEach((one) => one.setAttribute("aria-sort", one === head ? sense : "none"));
      const sign = sense === "ascending" ? 1 : -1;
      for (const body of table.tBodies) {
        const value = (row) => row.cells[column].dataset.v;
        body.append(...[...body.rows].sort((one, other) => {
          const [a, b] = [value(one), value(other)];
          if (a === "" || b === "") return (a === "") - (b === "");
          return sign * (column ? a - b : a.localeCompare(b, "en", { numeric: true }));
        }));
      }
    }));
  }

  // --- charts ---
  let vega = null;
  function library() {
    vega = vega || text("vega").then((source) => {
      document.head.append(h("script", { textContent: source }));
      return window.vegaEmbed;
    });
    return vega;
  }
  function recoloured(value, colours) {
    if (typeof value === "string") return colours[value] || value;
    if (Array.isArray(value)) return value.map((one) => recoloured(one, colours));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, recoloured(one, colours)]));
    }
    return value;
  }
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { seen.unobserve(entry.target); entry.target.draw(); }
  }, { rootMargin: "300px" });
  /** A figure whose chart, `made()`, is drawn when it comes into view, and again in another theme. */
  function chart(title, about, made) {
    const canvas = h("div", { className: "chart" });
    let view = null, wanted = false;
    canvas.draw = async () => {
      wanted = true;
      const [embed, told] = [await library(), await ready()];
      const spec = recoloured(made(told), dark() ? told.dark : {});
      delete spec.title;
      spec.description = title;
      spec.background = null;
      spec.padding = 4;
      spec.config.view = { ...spec.config.view, stroke: "transparent" };
      if (view) view.finalize();
      view = await embed(canvas, spec, {
        actions: false, renderer: "svg", ast: true, defaultStyle: false, tooltip: { disableDefaultStyle: true },
      });
      for (const graphic of canvas.querySelectorAll("svg")) {
        const [width, height] = ["width", "height"].map((name) => graphic.getAttribute(name));
        if (!graphic.hasAttribute("viewBox")) graphic.setAttribute("viewBox", `0 0 ${width} ${height}`);
        graphic.setAttribute("role", "img");
        graphic.setAttribute("aria-label", title);
        for (const mark of graphic.querySelectorAll("[role], [aria-roledescription]")) {
          for (const name of ["role", "aria-roledescription", "aria-label"]) mark.removeAttribute(name);
        }
      }
    };
    redraws.add(() => { if (wanted) canvas.draw(); });
    const save = h("button", {
      className: "button plain", type: "button", "aria-label": "Save as SVG: " + title, onclick: async () => {
        if (!view) await canvas.draw();
        const link = h("a", { download: title.replace(/[^A-Za-z0-9]+/g, "-") + ".svg" });
        link.href = URL.createObjectURL(new Blob([await view.view.toSVG()], { type: "image/svg+xml" }));
        link.click();
      },
    }, "SVG");
    const figure = h("figure", { className: "card" },
      h("div", { className: "head" }, h("h3", {}, title, about ? h("small", {}, " " + about) : null), save), canvas);
    seen.observe(canvas);
    figure.again = () => { if (wanted) canvas.draw(); };
    return figure;
  }

  const copy = (value) => JSON.parse(JSON.stringify(value));
  function scatter(told, x, y) {
    const spec = copy(told.scatter), axes = told.axes, spots = told.spots[x + ":" + y] || [];
    for (const layer of spec.layer) {
      for (const [side, key] of [["x", x], ["y", y]]) {
        if (!layer.encoding[side]) continue;
        layer.encoding[side].scale = { domain: axes[key].domain, nice: false, ...(axes[key].log ? { type: "log" } : { type: "linear", zero: false }) };
        layer.encoding[side].title = axes[key].title;
        if (axes[key].log) layer.encoding[side].axis = { values: axes[key].ticks, format: "~r" };
      }
    }
    const rows = [];
    told.methods.forEach((method, number) => {
      const [one, two, spot] = [axes[x].values[number], axes[y].values[number], spots[number]];
      if (!one || !two || spot === null || spot === undefined) return;
      const [align, dx, dy] = told.places[Math.max(spot, 0)];
      rows.push({ ...method, name: spot < 0 ? "" : method.label, x: one[0], xl: one[1], xh: one[2], y: two[0], yl: two[1], yh: two[2], align, dx, dy });
    });
    spec.datasets = { rows, chance: axes[y].chance === null ? [] : [{ y: axes[y].chance }] };
    return spec;
  }
  function options(entries, chosen) {
    return entries.map(([value, name]) => h("option", { value, selected: value === chosen }, name));
  }
  function scatterCard(told, { title, x, y }) {
    const axes = Object.entries(told.axes).map(([key, axis]) => [key, axis.title.replace(" (%)", "")]);
    const now = { x, y };
    const figure = chart(title, "", (data) => scatter(data, now.x, now.y));
    const chooser = (side, name) => h("label", {}, name, h("select", {
      onchange: (event) => { now[side] = event.target.value; figure.again(); },
    }, options(axes, now[side])));
    figure.insertBefore(h("div", { className: "controls" }, chooser("y", "Up"), chooser("x", "Across")), figure.lastChild);
    return figure;
  }
  function panelCard(group, part) {
    return chart(part.name || "all", `n ${part.n.toLocaleString("en")}`, (told) => {
      const spec = copy(told.panel);
      spec.datasets = { rows: part.rows, chance: part.chance === null ? [] : [{ y: part.chance }] };
      return spec;
    });
  }
  async function tradeoffs() {
    const there = $("scatters"), told = await ready();
    if (there.firstChild) return;
    there.append(...told.scatters.map((one) => scatterCard(told, one)));
    for (const sweep of told.sweeps) {
      const figure = chart(`α sweep: ${sweep.title}`, "", () => copy(sweep.spec));
      figure.classList.add("span");
      there.append(figure);
    }
    for (const ladder of told.ladder) {
      there.append(h("section", { className: "card span on" }, h("h3", {}, "The diagnostic ladder ", h("small", {}, ladder.title)),
        h("div", { className: "cards small" }, ladder.parts.map((part) => panelCard(ladder, part)))));
    }
    if (!there.firstChild) there.append(h("p", { className: "soft" }, "A trade-off needs two benchmarks."));
  }
  async function categories(query) {
    const told = await ready(), which = $("which");
    if (!which.options.length) {
      which.append(...options(told.panels.map((one) => [one.key, one.title]), query.get("of")));
      which.addEventListener("change", () => { keep("categories", { of: which.value }); show(); });
    }
    if (query.get("of") && query.get("of") !== which.value) which.value = query.get("of");
    const show = () => {
      const group = told.panels.find((one) => one.key === which.value);
      $("panels").replaceChildren(...(group ? group.parts.map((part) => panelCard(group, part)) : []));
    };
    show();
  }

  function start() {
    theme();
    sortable($("table"));
    onSection("tradeoffs", tradeoffs);
    onSection("categories", categories);
    addEventListener("hashchange", go);
    addEventListener("popstate", (event) => { if (event.state !== null || !location.hash) go(); });
    go();
  }
  return { $, h, json, framed, block, ready, keep, onSection, options, redraws, start };
})();
