/* Numbers as text, and elements made of text alone: nothing from the trace is ever parsed as HTML. */

const KIB = 1024, MIB = KIB * 1024, GIB = MIB * 1024;
const comma = (count) => count.toLocaleString("en-US");

function bytesText(count) {
  const fixed = (value) => value.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
  if (count >= GIB / 10) return fixed(count / GIB) + " GiB";
  if (count >= MIB / 10) return fixed(count / MIB) + " MiB";
  return count >= 10 * KIB ? fixed(count / KIB) + " KiB" : comma(count) + " B";
}

const shareText = (part, whole) => (whole ? ((100 * part) / whole).toFixed(1) : "0.0") + " %";
const phaseText = (T, at) => T.phases[at][0].replace(/_/g, " ") + (T.phases[at][1] > 0 ? ", iteration " + T.phases[at][1] : "");
const shapeText = (shape) => (shape === null ? "" : shape.length ? shape.join(" × ") : "scalar");

function el(tag, props, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(props || {})) {
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function sv(tag, props, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(props)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const byId = (id) => document.getElementById(id);

function swatch(T, role) {
  return el("span", { class: "swatch fill-" + T.roles[role], "aria-hidden": "true" });
}

/* What happened at an instant, as a sentence. */
function eventText(T, instant) {
  const one = buffer(T, T.who[instant]);
  const place = one.module ? " in " + one.module : "";
  return (T.sign[instant] > 0 ? "+ " : "− ") + bytesText(one.bytes) + " · " + one.site + place;
}
