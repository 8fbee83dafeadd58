/* Modules as nested rectangles: areas are bytes, and the colours inside one are the shares of its roles. */

/* Rows of rectangles as square as they come: sizes descending, laid along the shorter side of what is left. */
function squarify(sizes, x, y, w, h) {
  const whole = sizes.reduce((sum, size) => sum + size, 0), out = [];
  const scale = whole ? (w * h) / whole : 0;
  let at = 0;
  while (at < sizes.length && w > 0 && h > 0) {
    const side = Math.min(w, h);
    let end = at, sum = 0, worst = Infinity;
    while (end < sizes.length) {
      const next = sum + sizes[end] * scale, thick = next / side;
      const ratio = Math.max(...[sizes[at], sizes[end]].map((size) => {
        const long = (size * scale) / thick;
        return Math.max(long / thick, thick / long);
      }));
      if (ratio > worst) break;
      worst = ratio;
      sum = next;
      end++;
    }
    const thick = sum / side;
    let along = 0;
    for (; at < end; at++) {
      const long = (sizes[at] * scale) / thick;
      out.push(w <= h ? [x + along, y, long, thick] : [x, y + along, thick, long]);
      along += long;
    }
    if (w <= h) { y += thick; h -= thick; } else { x += thick; w -= thick; }
  }
  return out;
}

/* What a node is divided into: its children, and what it owns itself, which stays whole beside children. */
function parts(T, node) {
  const kids = [...node.kids.values()];
  if (kids.length && node.own.length) {
    const own = { name: node.above ? "itself" : "(no module)", path: node.path, above: node, bytes: 0, roles: new Map(), kids: new Map(), own: node.own };
    for (const k of node.own) {
      own.bytes += T.size[k];
      own.roles.set(T.role[k], (own.roles.get(T.role[k]) || 0) + T.size[k]);
    }
    kids.push(own);
  }
  if (!kids.length) {
    for (const k of node.own) {
      const one = buffer(T, k);
      kids.push({ name: one.site, path: one.module, above: node, bytes: one.bytes, roles: new Map([[one.role, one.bytes]]), kids: new Map(), own: [], k });
    }
  }
  return kids.sort((a, b) => b.bytes - a.bytes);
}

/* A module that only wraps one other is passed through. */
function through(node) {
  while (node.kids.size === 1 && !node.own.length) node = node.kids.values().next().value;
  return node;
}

function roleBands(T, node, upright) {
  let from = 0;
  const stops = [...node.roles].sort((a, b) => a[0] - b[0]).map(([role, size]) => {
    const to = from + (100 * size) / node.bytes, stop = `var(--role-${T.roles[role]}) ${from.toFixed(3)}% ${to.toFixed(3)}%`;
    from = to;
    return stop;
  });
  return `linear-gradient(${upright ? "to top" : "to right"}, ${stops.join(", ")})`;
}

/* In shares of what it lies in, so that a page laid out anew, as for printing, needs no script. */
function place(made, [left, top, wide, high], w, h) {
  const share = (part, whole) => ((100 * part) / whole).toFixed(3) + "%";
  made.style.left = share(left, w);
  made.style.top = share(top, h);
  made.style.width = `calc(${share(wide, w)} - 2px)`;
  made.style.height = `calc(${share(high, h)} - 2px)`;
}

function makeTreemap(T, host, crumbs) {
  let root = null, node = null;

  function cell(part, [, , wide, high]) {
    const leaf = part.k !== undefined;
    const said = `${part.path || part.name}${part.path && part.name === "itself" ? " (itself)" : ""}: ${bytesText(part.bytes)}, ${shareText(part.bytes, root.bytes)}`;
    const made = el(leaf ? "div" : "button", { class: "cell", title: leaf ? `${part.name}: ${said}` : said, "aria-label": leaf ? null : said });
    if (!leaf) made.type = "button";
    made.style.background = roleBands(T, part, high > wide);
    if (wide > 30 && high > 22) {
      const label = el("span", { class: "label" }, part.name);
      if (high > 44 && wide > 76) label.append(el("small", {}, bytesText(part.bytes)));
      made.append(label);
    }
    if (!leaf) made.addEventListener("click", (event) => { event.stopPropagation(); show(part, true); });
    return made;
  }

  /* A part that has room shows what it is made of inside a frame; one that has little is a cell of its roles' colours. */
  function lay(into, whole, x, y, w, h, depth) {
    const outer = depth ? [w + 5, h + 21] : [w, h];
    squarify(whole.map((one) => one.bytes), x, y, w, h).forEach((spot, at) => {
      const part = whole[at], [, , wide, high] = spot;
      if (wide < 2.5 || high < 2.5) return;
      const inside = depth < 5 && wide > 84 && high > 58 && part.k === undefined ? parts(T, through(part)) : [];
      if (inside.length < 2) {
        const made = cell(part, spot);
        place(made, spot, ...outer);
        into.append(made);
        return;
      }
      const frame = el("div", { class: "frame" });
      place(frame, spot, ...outer);
      const said = `${part.path || part.name}: ${bytesText(part.bytes)}`;
      const head = el("button", { type: "button", class: "head", title: said, "aria-label": said }, el("b", {}, part.name), el("span", {}, " " + bytesText(part.bytes)));
      head.addEventListener("click", () => show(part, true));
      frame.append(head);
      lay(frame, inside, 2, 19, wide - 7, high - 23, depth + 1);
      into.append(frame);
    });
  }

  function draw() {
    if (!node) return;
    const box = host.getBoundingClientRect();
    host.replaceChildren();
    lay(host, parts(T, node), 0, 0, box.width, box.height, 0);
  }

  function show(asked, moved) {
    node = asked.own.length > 1 || asked.kids.size ? through(asked) : asked.above || asked;
    if (!node.kids.size && !node.own.length) node = root;
    const way = [];
    for (let one = node; one; one = one.above) way.unshift(one);
    crumbs.replaceChildren(...way.map((one, at) => {
      if (at === way.length - 1) return el("span", { class: "here", "aria-current": "true" }, `${one.name} · ${bytesText(one.bytes)}`);
      return el("button", { type: "button", onclick: () => show(one, true) }, one.name);
    }));
    draw();
    if (moved) (crumbs.querySelector("button:last-of-type") || host.querySelector("button") || host).focus();
  }

  return { draw, set: (alive) => { root = moduleTree(T, alive); show(root); } };
}
