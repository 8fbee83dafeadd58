/* The stacked timeline. Each pixel column shows the highest of the instants that fall into it, so no peak is drawn away;
   pointing at a column means that instant. Zoomed in far enough, every instant has its own column. */

const SHORT = { init: "init", forward: "fwd", loss: "loss", backward: "bwd", clip: "clip", optimizer_step: "opt", zero_grad: "zero" };

function makeChart(T, host) {
  const svg = host.querySelector("svg"), edge = { left: 58, right: 14, top: 46, bottom: 34 };
  const chart = { view: [0, T.n], at: new Int32Array(0) };
  let width = 0, height = 0, marks = null;
  const plotWidth = () => Math.max(50, width - edge.left - edge.right);
  const x = (instant) => edge.left + ((instant - chart.view[0]) / (chart.view[1] - chart.view[0])) * plotWidth();
  const top = T.highest * 1.08 || 1;
  const y = (count) => height - edge.bottom - (count / top) * (height - edge.top - edge.bottom);
  const middle = (instant) => (x(instant) + x(instant + 1)) / 2;

  function columns() {
    const [a, b] = chart.view, count = Math.min(b - a, Math.round(plotWidth()));
    const at = new Int32Array(count), edges = new Int32Array(count + 1);
    for (let c = 0; c <= count; c++) edges[c] = a + Math.floor((c * (b - a)) / count);
    for (let c = 0; c < count; c++) {
      let best = edges[c];
      for (let i = best + 1; i < edges[c + 1]; i++) if (T.total[i] > T.total[best]) best = i;
      at[c] = best;
    }
    chart.at = at;
    return edges;
  }

  /* A line of steps through one value a column; an area is closed along the bottom. */
  function steps(values, edges, closed) {
    const base = y(0).toFixed(1);
    let path = closed ? `M${x(edges[0]).toFixed(1)},${base}` : "", last = null;
    values.forEach((value, c) => {
      const level = y(value).toFixed(1);
      if (level !== last) path += c || closed ? `H${x(edges[c]).toFixed(1)}V${level}` : `M${x(edges[0]).toFixed(1)},${level}`;
      last = level;
    });
    return path + `H${x(edges[edges.length - 1]).toFixed(1)}` + (closed ? `V${base}Z` : "");
  }

  function areas(edges) {
    const sum = new Float64Array(chart.at.length), paths = [];
    T.roles.forEach((role, r) => {
      chart.at.forEach((instant, c) => (sum[c] += T.live[r][instant]));
      paths.unshift(sv("path", { d: steps(sum, edges, true), class: "area fill-" + role }));
    });
    return paths;
  }

  function highest(series, edges) {
    return Array.from(chart.at, (_, c) => {
      let best = 0;
      for (let i = edges[c]; i < edges[c + 1]; i++) if (series[i] > best) best = series[i];
      return best;
    });
  }

  /* The next 1, 2 or 5 times a power of ten. */
  function nice(wanted) {
    const power = 10 ** Math.floor(Math.log10(wanted));
    return [1, 2, 5, 10].map((one) => one * power).find((one) => one >= wanted * 0.999);
  }

  function scales() {
    const [unit, size] = top >= GIB / 10 ? ["GiB", GIB] : top >= MIB / 10 ? ["MiB", MIB] : ["KiB", KIB];
    const made = [], step = nice(top / size / Math.max(2, Math.floor(height / 70)));
    for (let value = 0; value * size <= top; value += step) {
      made.push(sv("line", { x1: edge.left, x2: width - edge.right, y1: y(value * size), y2: y(value * size), class: "grid" }));
      made.push(sv("text", { x: edge.left - 8, y: y(value * size) + 4, class: "tick end" }, +value.toPrecision(6) + ""));
    }
    made.push(sv("text", { x: 8, y: edge.top - 6, class: "tick" }, unit));
    const [a, b] = chart.view, pace = Math.max(1, nice((b - a) / Math.max(2, Math.floor(plotWidth() / 110))));
    for (let instant = Math.ceil(a / pace) * pace; instant < b; instant += pace) {
      if (x(instant) > width - edge.right - 12) break;
      made.push(sv("text", { x: middle(instant), y: height - edge.bottom + 16, class: "tick mid" }, comma(instant)));
    }
    made.push(sv("text", { x: edge.left + plotWidth() / 2, y: height - 3, class: "tick mid faint" }, "instant (allocations and frees, in order)"));
    return made;
  }

  function bands() {
    const made = [];
    let before = null;
    T.phases.forEach(([phase, iteration, start, stop], index) => {
      const from = Math.max(x(start), edge.left), to = Math.min(x(stop), width - edge.right), room = to - from;
      if (room <= 0) return;
      const said = phase.replace(/_/g, " ");
      const band = sv("rect", { x: from, y: 20, width: room, height: 20, class: "band" + (index % 2 ? " odd" : ""), "data-phase": index });
      band.append(sv("title", {}, `${phaseText(T, index)}: click to zoom`));
      made.push(band);
      const label = room > said.length * 6.6 + 6 ? said : room > SHORT[phase].length * 7 + 4 ? SHORT[phase] : "";
      if (label) made.push(sv("text", { x: from + room / 2, y: 34, class: "phase mid" }, label));
      const first = iteration !== before && iteration > 0;
      if (x(start) >= edge.left) made.push(sv("line", { x1: from, x2: from, y1: first ? 4 : 20, y2: y(0), class: first ? "rule first" : "rule" }));
      const left = T.phases.slice(index).filter((one) => one[1] === iteration).reduce((end, one) => Math.max(end, one[3]), stop);
      if (first && Math.min(x(left), width - edge.right) - from > 80) made.push(sv("text", { x: from + 5, y: 14, class: "phase strong" }, `iteration ${iteration}`));
      before = iteration;
    });
    return made;
  }

  /* A filled mark at the peak; a hollow one where the allocator counts most, if that is another instant. */
  function peakMark(at, series, name, kind) {
    const [a, b] = chart.view;
    if (at === null || at < a || at >= b) return [];
    const px = middle(at), py = y(series[at]), onLeft = px > edge.left + plotWidth() / 2;
    const said = name + " " + bytesText(series[at]);
    return [
      sv("path", { d: `M${px},${py}l-5,-8h10z`, class: kind }),
      sv("text", { x: px + (onLeft ? -10 : 10), y: Math.max(py - 2, edge.top + 12), class: kind.split(" ").pop() + "-text" + (onLeft ? " end" : "") }, said),
    ];
  }

  chart.draw = () => {
    const box = host.getBoundingClientRect();
    width = Math.round(box.width);
    height = Math.round(box.height);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const edges = columns();
    const made = [...scales(), ...areas(edges)];
    if (T.allocated) made.push(sv("path", { d: steps(highest(T.allocated, edges), edges), class: "line" }));
    if (T.reserved) made.push(sv("path", { d: steps(highest(T.reserved, edges), edges), class: "line dashed" }));
    const other = T.allocated_peak === T.peak ? [] : peakMark(T.allocated_peak, T.allocated, "allocated", "peak hollow");
    marks = sv("g", {});
    svg.replaceChildren(...made, ...bands(), ...other, ...peakMark(T.peak, T.total, "peak", "peak"), marks);
  };

  /* The pinned instant and the cursor: cheap to move, so drawn apart. */
  chart.mark = (pinned, cursor, selected) => {
    const made = [];
    const [a, b] = chart.view;
    if (selected) {
      const from = Math.min(...selected), to = Math.max(...selected);
      made.push(sv("rect", { x: x(from), y: edge.top, width: x(to) - x(from), height: y(0) - edge.top, class: "selected" }));
    }
    for (const [instant, kind] of [[pinned, "pin"], [cursor, "cursor"]]) {
      if (instant === null || instant < a || instant >= b || (kind === "pin" && instant === T.peak)) continue; // it has its own mark
      const px = middle(instant);
      made.push(sv("line", { x1: px, x2: px, y1: edge.top - 4, y2: y(0), class: kind }));
      made.push(sv("circle", { cx: px, cy: y(T.total[instant]), r: 4.5, class: kind }));
    }
    marks.replaceChildren(...made);
  };

  /* The instant under a pointer: the one its pixel column shows. */
  chart.instantAt = (clientX) => {
    const share = (clientX - host.getBoundingClientRect().left - edge.left) / plotWidth();
    const c = Math.floor(share * chart.at.length);
    return chart.at[Math.min(chart.at.length - 1, Math.max(0, c))];
  };
  return chart;
}
