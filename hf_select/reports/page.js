
"use strict";
(async () => {
  const $ = (id) => document.getElementById(id);
  // All content of rows passes through here: as text, never as markup.
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const unpack = async (id) => {
    const letters = atob($(id).textContent);
    const bytes = new Uint8Array(letters.length);
    for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  };
  const counted = (n) => n.toLocaleString("en");
  const number = (value) => (value === null ? "–" : Number.isInteger(value) ? counted(value) : String(Number(value.toPrecision(5))));

  const about = JSON.parse($("about").textContent);
  if (!about.numRows) return;
  if (typeof DecompressionStream === "undefined") {
    $("count").textContent = "This browser is too old to show single rows (it has no DecompressionStream).";
    return;
  }
  const rows = await unpack("index");
  const blocks = new Map();
  const turnsOf = async (row) => {
    const block = Math.floor(row / about.blockRows);
    if (!blocks.has(block)) blocks.set(block, unpack("block-" + block));
    return (await blocks.get(block))[row % about.blockRows];
  };

  // Sort keys: a name, and the value of each row.
  const sorts = [["default order", null]];
  about.ranks.forEach((name, i) => sorts.push([name, rows.ranks[i]]));
  about.numbers.forEach((name, i) => sorts.push([name, rows.numbers[i]]));
  sorts.push(["row number", rows.row]);
  const shownNumbers = about.numbers.map((name, i) => [name, rows.numbers[i]]).filter(([name], i, all) => i < 3 || i === all.length - 1);

  const state = { sort: 0, down: false, page: 0, found: [], open: new Set() };
  let haystacks = null, wholeTexts = null;

  const option = (select, text, value) => {
    const element = make("option", "", text);
    element.value = value;
    select.append(element);
  };
  option($("group"), "all groups", "");
  for (const [group, shown, all] of about.groups)
    if (all) option($("group"), group + ": " + (shown === all ? counted(all) : counted(shown) + " of " + counted(all)), group);
  if (rows.source) {
    $("source-label").hidden = false;
    option($("source"), "all sources", "");
    for (const source of [...new Set(rows.source)].sort().slice(0, 1000)) option($("source"), source.slice(0, 80), source);
  }
  sorts.forEach(([name], i) => option($("sort"), name, i));

  const search = async () => {
    const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const group = $("group").value, source = $("source").value, whole = $("whole").checked;
    if (words.length && !haystacks)
      haystacks = rows.row.map((_, i) => (rows.opening[i] + "\n" + rows.id[i] + "\n" + rows.why[i]).toLowerCase());
    if (words.length && whole && !wholeTexts) {
      $("count").textContent = "searching all texts …";
      const texts = [];
      for (let i = 0; i < about.numRows; i++) texts.push((await turnsOf(i)).map((turn) => turn[1]).join("\n").toLowerCase());
      wholeTexts = texts;
    }
    const found = [];
    for (let i = 0; i < about.numRows; i++) {
      if (group && rows.group[i] !== group) continue;
      if (source && rows.source[i] !== source) continue;
      if (words.every((word) => haystacks[i].includes(word) || (whole && wholeTexts[i].includes(word)))) found.push(i);
    }
    const values = sorts[state.sort][1], sign = state.down ? -1 : 1;
    if (values)
      found.sort((a, b) => {
        const x = values[a], y = values[b];
        if (x === null || y === null) return (x === null) - (y === null) || a - b; // missing values go last in both directions
        return sign * (x - y) || a - b;
      });
    else if (state.down) found.reverse();
    state.found = found;
    state.page = 0;
    show();
  };

  const header = $("table").tHead.rows[0];
  const head = (name, sort, className) => {
    const cell = make("th", className);
    cell.scope = "col";
    if (sort === null) cell.textContent = name;
    else {
      const button = make("button", "", name);
      button.type = "button";
      button.addEventListener("click", () => sortBy(sort));
      cell.append(button);
      cell.dataset.sort = sort;
    }
    header.append(cell);
  };
  const place = (name) => sorts.findIndex(([known]) => known === name);
  about.ranks.forEach((name) => head(name, place(name), "number"));
  head("row and reason", null, "what");
  shownNumbers.forEach(([name]) => head(name, place(name), "number"));
  if (rows.source) head("source", null);
  head("group", null);

  const sortBy = (sort) => {
    state.down = sort === state.sort ? !state.down : about.numbers.includes(sorts[sort][0]);
    state.sort = sort;
    search();
  };

  const cell = (line, name, text, className) => {
    const element = make("td", className, text);
    if (name) element.dataset.name = name;
    line.append(element);
    return element;
  };
  const show = () => {
    const size = Number($("size").value), pages = Math.max(1, Math.ceil(state.found.length / size));
    state.page = Math.min(Math.max(0, state.page), pages - 1);
    $("sort").value = state.sort;
    $("direction").textContent = state.down ? "↓ descending" : "↑ ascending";
    for (const th of header.cells)
      if (th.dataset.sort === undefined || Number(th.dataset.sort) !== state.sort) th.removeAttribute("aria-sort");
      else th.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    const body = $("table").tBodies[0];
    body.replaceChildren();
    for (const i of state.found.slice(state.page * size, (state.page + 1) * size)) body.append(...lineOf(i));
    $("count").textContent = counted(state.found.length) + " of " + counted(about.numRows) + " rows";
    $("place").textContent = "page " + counted(state.page + 1) + " of " + counted(pages);
    $("first").disabled = $("previous").disabled = state.page === 0;
    $("last").disabled = $("next").disabled = state.page === pages - 1;
  };
  const lineOf = (i) => {
    const line = make("tr", "row");
    about.ranks.forEach((name, n) => cell(line, name, number(rows.ranks[n][i]), "number"));
    const what = cell(line, "", undefined, "what");
    const opener = make("button", "open", rows.opening[i] || (rows.id[i] ? "row " + rows.id[i] : "(empty)"));
    opener.type = "button";
    opener.dir = "auto";
    opener.setAttribute("aria-expanded", "false");
    const why = make("div", "why", rows.why[i]);
    why.dir = "auto";
    what.append(opener, why);
    shownNumbers.forEach(([name, values]) => cell(line, name, number(values[i]), "number"));
    if (rows.source) cell(line, "source", rows.source[i].slice(0, 200), "source").dir = "auto";
    cell(line, "group", rows.group[i], "tag");
    const detail = make("tr", "detail");
    detail.hidden = true;
    opener.addEventListener("click", async () => {
      if (!detail.cells.length) detail.append(await detailOf(i));
      detail.hidden = !detail.hidden;
      opener.setAttribute("aria-expanded", String(!detail.hidden));
    });
    return [line, detail];
  };
  const most = 20000; // characters shown before a button asks for the rest
  const detailOf = async (i) => {
    const box = make("td");
    box.colSpan = header.cells.length;
    const all = make("div", "all");
    const fact = (name, value) => {
      const span = make("span", "", name + " ");
      span.append(make("b", "", value));
      all.append(span);
    };
    fact("row", counted(rows.row[i]));
    if (rows.id[i] !== String(rows.row[i])) fact("row_id", rows.id[i]);
    about.ranks.forEach((name, n) => fact(name, number(rows.ranks[n][i])));
    about.numbers.forEach((name, n) => fact(name, number(rows.numbers[n][i])));
    box.append(all);
    for (const [role, text, missing] of await turnsOf(i)) {
      const turn = make("div", "turn " + (role.startsWith("tool") ? "tool" : role === "as it is stored" ? "plain" : ""));
      const body = make("div", "text", text.length > most ? text.slice(0, most) : text);
      body.dir = "auto";
      turn.append(make("div", "role", role), body);
      if (text.length > most) {
        const rest = make("button", "", "show all " + counted(text.length) + " characters");
        rest.type = "button";
        rest.addEventListener("click", () => { body.textContent = text; rest.remove(); });
        turn.append(rest);
      }
      if (missing) turn.append(make("div", "why", counted(missing) + " more characters are not in this page"));
      box.append(turn);
    }
    return box;
  };

  let waiting;
  $("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, 150); });
  for (const id of ["group", "source", "whole"]) $(id).addEventListener("change", search);
  $("sort").addEventListener("change", () => { state.sort = -1; sortBy(Number($("sort").value)); });
  $("direction").addEventListener("click", () => { state.down = !state.down; search(); });
  $("size").addEventListener("change", () => { state.page = 0; show(); });
  const turnTo = (page) => { state.page = page; show(); };
  $("first").addEventListener("click", () => turnTo(0));
  $("previous").addEventListener("click", () => turnTo(state.page - 1));
  $("next").addEventListener("click", () => turnTo(state.page + 1));
  $("last").addEventListener("click", () => turnTo(Infinity));
  for (const hidden of document.querySelectorAll(".controls, .pager, #table")) hidden.hidden = false;
  await search();
  document.body.dataset.ready = "true";
})();
