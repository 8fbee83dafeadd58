/* What stands beside and below the chart: the instant in words, its largest buffers, the sortable table, the phases. */

function makeMoment(T) {
  const most = () => +byId("most").value;
  let speak = 0;

  function roleRows(instant) {
    return T.roles.map((_, r) => {
      const share = T.total[instant] ? T.live[r][instant] / T.total[instant] : 0;
      const bar = el("span", { class: "bar fill-" + T.roles[r] });
      bar.style.width = (100 * share).toFixed(2) + "%";
      return el("tr", {},
        el("th", { scope: "row" }, swatch(T, r), T.labels[r]),
        el("td", { class: "meter" }, bar),
        el("td", { class: "num", title: comma(T.live[r][instant]) + " bytes" }, bytesText(T.live[r][instant])),
        el("td", { class: "num dim" }, shareText(T.live[r][instant], T.total[instant])));
    }).reverse();
  }

  function item(k) {
    const one = buffer(T, k);
    const about = [shapeText(one.shape), one.dtype, one.module, one.operator].filter(Boolean).join(" · ");
    return el("li", {},
      swatch(T, one.role),
      el("span", { class: "site", title: one.site }, one.site),
      el("span", { class: "num", title: comma(one.bytes) + " bytes" }, bytesText(one.bytes)),
      el("span", { class: "about", title: about }, about));
  }

  return (instant, kind) => {
    const alive = aliveAt(T, instant), shown = alive.slice(0, most()), phase = phaseText(T, phaseAt(T, instant));
    byId("moment-kind").textContent = kind;
    byId("moment-title").textContent = "Instant " + comma(instant);
    byId("moment-phase").textContent = phase;
    byId("moment-total").textContent = bytesText(T.total[instant]);
    byId("moment-total").title = comma(T.total[instant]) + " bytes";
    const extra = [["allocated", T.allocated], ["reserved", T.reserved]].filter((one) => one[1]);
    byId("moment-series").textContent = [T.measure, ...extra.map(([name, series]) => `${name} ${bytesText(series[instant])}`)].join(" · ");
    byId("moment-event").textContent = eventText(T, instant);
    byId("moment-roles").replaceChildren(...roleRows(instant));
    byId("moment-list").replaceChildren(...shown.map(item));
    const rest = alive.slice(shown.length).reduce((sum, k) => sum + T.size[k], 0), more = alive.length - shown.length;
    byId("moment-rest").textContent = more ? `and ${comma(more)} more, ${bytesText(rest)}` : "that is all of them";
    const said = `Instant ${comma(instant)}, ${phase}: ${bytesText(T.total[instant])} in ${comma(alive.length)} buffers. ${eventText(T, instant)}.`;
    const slider = byId("chart");
    slider.setAttribute("aria-valuenow", instant);
    slider.setAttribute("aria-valuetext", said);
    clearTimeout(speak);
    speak = setTimeout(() => (byId("said").textContent = said), 200);
  };
}

const MODES = {
  folded: ["Modules, layers folded", "module"], module: ["Modules", "module"], operator: ["Operators", "operator"],
  role: ["Roles", "role"], tensor: ["Buffers", "buffer"],
};

function columnsOf(T, mode, whole) {
  const num = (name, value, text) => ({ name, value, text, num: true });
  const word = (name, value, text) => ({ name, value, text: text || value });
  const bytes = num("bytes", (row) => row.bytes, (row) => bytesText(row.bytes));
  const share = num("share", (row) => row.bytes, (row) => shareText(row.bytes, whole));
  if (mode !== "tensor") return [word(MODES[mode][1], (row) => row.name), bytes, share, num("buffers", (row) => row.buffers, (row) => comma(row.buffers))];
  const when = (name, value) => num(name, value, (row) => (value(row) >= T.n ? "–" : phaseText(T, phaseAt(T, value(row))).replace("iteration ", "it. ")));
  return [
    word("buffer", (row) => row.site), bytes, word("role", (row) => T.labels[row.role]), word("shape", (row) => shapeText(row.shape)),
    word("dtype", (row) => row.dtype), word("module", (row) => row.module), word("operator", (row) => row.operator),
    when("born", (row) => row.born), when("dies", (row) => row.dies),
  ];
}

function makeTable(T) {
  const table = byId("table"), ROWS = 15;
  let rows = [], columns = [], sorted = [1, -1], all = false, alive = [];

  function head() {
    return el("tr", {}, ...columns.map((column, at) => {
      const here = sorted[0] === at;
      const button = el("button", { type: "button", onclick: () => { sorted = [at, here ? -sorted[1] : column.num ? -1 : 1]; draw(); table.querySelectorAll("th button")[at].focus(); } },
        column.name, el("span", { class: "arrow", "aria-hidden": "true" }, here ? (sorted[1] > 0 ? " ▲" : " ▼") : ""));
      return el("th", { scope: "col", class: column.num ? "num" : "", "aria-sort": here ? (sorted[1] > 0 ? "ascending" : "descending") : "none" }, button);
    }));
  }

  function draw() {
    const { value } = columns[sorted[0]];
    const order = [...rows].sort((a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0) * sorted[1] || b.bytes - a.bytes);
    const shown = all ? order : order.slice(0, ROWS);
    table.querySelector("thead").replaceChildren(head());
    table.querySelector("tbody").replaceChildren(...shown.map((row) => el("tr", {}, ...columns.map((column, at) => {
      const role = row.role !== undefined && column.name === "role" ? swatch(T, row.role) : null;
      return el(at ? "td" : "th", { scope: at ? null : "row", class: column.num ? "num" : "word", title: column.name === "bytes" ? comma(row.bytes) + " bytes" : column.text(row) }, role, column.text(row));
    }))));
    const rest = order.slice(shown.length).reduce((sum, row) => sum + row.bytes, 0), whole = order.reduce((sum, row) => sum + row.bytes, 0);
    byId("table-sum").textContent = `${comma(rows.length)} rows, ${bytesText(whole)} (${comma(whole)} bytes)` + (rest ? `; ${comma(order.length - shown.length)} not shown, ${bytesText(rest)}` : "");
    byId("table-all").hidden = rows.length <= ROWS;
    byId("table-all").textContent = all ? `Show the first ${ROWS}` : `Show all ${comma(rows.length)}`;
  }

  function set(given) {
    alive = given || alive;
    const mode = byId("by").value, whole = alive.reduce((sum, k) => sum + T.size[k], 0);
    rows = mode === "tensor" ? alive.map((k) => buffer(T, k)) : groups(T, alive, mode);
    columns = columnsOf(T, mode, whole);
    if (!given) sorted = [1, -1];
    if (sorted[0] >= columns.length) sorted = [1, -1];
    draw();
  }
  byId("by").addEventListener("change", () => set());
  byId("table-all").addEventListener("click", () => { all = !all; draw(); });
  return set;
}

function highestIn(series, [start, stop]) {
  let best = start;
  for (let i = start; i < stop; i++) if (series[i] > series[best]) best = i;
  return best;
}

function roleTable(T, pin) {
  byId("roles").replaceChildren(...T.roles.map((_, r) => {
    const best = highestIn(T.live[r], T.window), phase = phaseAt(T, best);
    return el("tr", {},
      el("th", { scope: "row", class: "swatched" }, swatch(T, r), T.labels[r]),
      el("td", { class: "num", title: comma(T.live[r][best]) + " bytes" }, bytesText(T.live[r][best])),
      el("td", { class: "num" }, el("button", { type: "button", class: "link", title: "pin it", onclick: () => pin(best) }, comma(best))),
      el("td", {}, phaseText(T, phase)));
  }).reverse());
}

function phaseTable(T, zoom) {
  byId("phases").replaceChildren(...T.phases.map(([phase, iteration, start, stop], at) => {
    const best = highestIn(T.total, [start, stop]);
    return el("tr", {},
      el("th", { scope: "row" }, el("button", { type: "button", class: "link", title: "zoom the chart to it", onclick: () => zoom(at, best) }, phase.replace(/_/g, " "))),
      el("td", { class: "num" }, iteration || "–"), el("td", { class: "num" }, comma(stop - start)),
      el("td", { class: "num", title: comma(T.total[best]) + " bytes" }, bytesText(T.total[best])));
  }));
}
