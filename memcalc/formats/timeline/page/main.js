/* The page's state: what part is in view, which instant is pinned, and where the cursor is. */

const T = decode(JSON.parse(byId("data").textContent));
const host = byId("chart"), chart = makeChart(T, host), moment = makeMoment(T), setTable = makeTable(T);
const treemap = makeTreemap(T, byId("treemap"), byId("crumbs"));
const state = { pinned: T.peak, cursor: null, drag: null };

function refresh() {
  const selected = state.drag && state.drag.moved ? [state.drag.from, state.drag.to] : null;
  chart.mark(state.pinned, state.cursor, selected);
  const at = state.cursor === null ? state.pinned : state.cursor;
  moment(at, at === T.peak ? "the peak" : at === state.pinned ? "pinned" : "cursor");
}

function pin(instant) {
  state.pinned = instant;
  state.cursor = null;
  const alive = aliveAt(T, instant), isPeak = instant === T.peak;
  byId("breakdown-title").textContent = isPeak ? "What makes up the peak" : `What makes up instant ${comma(instant)}`;
  byId("breakdown-about").textContent = `${bytesText(T.total[instant])} in ${comma(alive.length)} buffers, ${phaseText(T, phaseAt(T, instant))}`;
  byId("to-peak").disabled = isPeak;
  treemap.set(alive);
  setTable(alive);
  refresh();
}

function view(from, to) {
  const least = Math.min(20, T.n);
  const span = Math.max(least, Math.min(T.n, Math.round(to - from)));
  const start = Math.max(0, Math.min(T.n - span, Math.round(from)));
  chart.view = [start, start + span];
  byId("zoom-all").disabled = span === T.n;
  chart.draw();
  refresh();
}

function zoom(factor) {
  const [a, b] = chart.view, at = state.cursor === null ? state.pinned : state.cursor;
  const about = at >= a && at < b ? at : (a + b) / 2;
  view(about - (about - a) * factor, about + (b - about) * factor);
}

function zoomTo(phase, instant) {
  view(T.phases[phase][2], T.phases[phase][3]);
  if (instant !== undefined) pin(instant);
}

function moveTo(instant) {
  const at = Math.max(0, Math.min(T.n - 1, Math.round(instant))), [a, b] = chart.view;
  state.cursor = at;
  if (at < a || at >= b) view(at - (b - a) / 2, at + (b - a) / 2);
  else refresh();
}

/* Pin an instant and bring the chart to where it can be seen. */
function reveal(instant) {
  const [a, b] = chart.view;
  if (instant < a || instant >= b) view(instant - (b - a) / 2, instant + (b - a) / 2);
  pin(instant);
  host.focus();
}

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const [a, b] = chart.view, at = state.cursor === null ? state.pinned : state.cursor;
  const far = event.shiftKey ? Math.max(1, (b - a) / 50) : 1, phase = phaseAt(T, at), last = T.phases.length - 1;
  const keys = {
    ArrowLeft: () => moveTo(at - far), ArrowRight: () => moveTo(at + far),
    ArrowDown: () => moveTo(at - (b - a) / 50), ArrowUp: () => moveTo(at + (b - a) / 50),
    PageUp: () => moveTo(T.phases[at > T.phases[phase][2] ? phase : Math.max(0, phase - 1)][2]),
    PageDown: () => moveTo(phase === last ? T.n - 1 : T.phases[phase + 1][2]),
    Home: () => moveTo(a), End: () => moveTo(b - 1),
    Enter: () => pin(at), " ": () => pin(at), p: () => moveTo(T.peak),
    "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: () => view(0, T.n),
    Escape: () => { state.cursor = null; if (state.drag) state.drag = null; else pin(T.peak); },
  };
  if (!keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
}

host.addEventListener("keydown", key);
host.addEventListener("pointermove", (event) => {
  const at = chart.instantAt(event.clientX);
  if (state.drag) {
    state.drag.to = at;
    state.drag.moved = state.drag.moved || Math.abs(event.clientX - state.drag.x) > 6;
  }
  state.cursor = at;
  refresh();
});
host.addEventListener("pointerleave", () => {
  if (state.drag) return;
  state.cursor = null;
  refresh();
});
host.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  const at = chart.instantAt(event.clientX);
  state.drag = { x: event.clientX, from: at, to: at, moved: false, phase: event.target.dataset.phase };
  if (event.pointerType === "mouse") host.setPointerCapture(event.pointerId);
});
host.addEventListener("pointerup", (event) => {
  const drag = state.drag;
  state.drag = null;
  if (!drag) return;
  if (drag.moved && event.pointerType === "mouse") view(Math.min(drag.from, drag.to), Math.max(drag.from, drag.to) + 1);
  else if (drag.phase !== undefined) zoomTo(+drag.phase);
  else pin(chart.instantAt(event.clientX));
});
host.addEventListener("pointercancel", () => { state.drag = null; state.cursor = null; refresh(); });

byId("zoom-in").addEventListener("click", () => zoom(0.5));
byId("zoom-out").addEventListener("click", () => zoom(2));
byId("zoom-all").addEventListener("click", () => view(0, T.n));
byId("to-peak").addEventListener("click", () => reveal(T.peak));
byId("most").addEventListener("change", refresh);

/* The system's theme until the person chooses; the choice is kept where the browser lets a page keep anything. */
function theme(chosen) {
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  if (chosen) document.documentElement.dataset.theme = chosen;
  byId("theme").setAttribute("aria-pressed", dark);
  byId("theme").textContent = dark ? "Light" : "Dark";
  return dark;
}
let kept = null;
try { kept = localStorage.getItem("memcalc-theme"); } catch { /* a page from a file may keep nothing */ }
let dark = theme(kept === "dark" || kept === "light" ? kept : null);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => (dark = theme(document.documentElement.dataset.theme)));
byId("theme").addEventListener("click", () => {
  dark = theme(dark ? "light" : "dark");
  try { localStorage.setItem("memcalc-theme", dark ? "dark" : "light"); } catch { /* as above */ }
});

phaseTable(T, zoomTo);
roleTable(T, reveal);
view(0, T.n);
pin(T.peak);
new ResizeObserver(() => { chart.draw(); treemap.draw(); refresh(); }).observe(document.querySelector("main"));
for (const when of ["beforeprint", "afterprint"]) addEventListener(when, () => { chart.draw(); treemap.draw(); refresh(); });
document.documentElement.dataset.ready = "yes";
