/* The packed trace (page/pack.py says how) as typed arrays, and the questions asked of them. Sizes stay below 2**53: exact. */

function decode(raw) {
  const n = raw.events.length, m = raw.kind.length;
  const who = new Int32Array(n), sign = new Int8Array(n);
  const born = new Int32Array(m), dies = new Int32Array(m).fill(n);
  const size = Float64Array.from(raw.kind, (kind) => raw.kinds[kind][4]);
  const role = Int8Array.from(raw.kind, (kind) => raw.kinds[kind][5]);
  const live = raw.roles.map(() => new Float64Array(n)), total = new Float64Array(n);
  const now = new Float64Array(raw.roles.length);
  let births = 0, sum = 0;
  for (let i = 0; i < n; i++) {
    const back = raw.events[i];
    const k = back ? births - back : births++;
    who[i] = k;
    sign[i] = back ? -1 : 1;
    (back ? dies : born)[k] = i;
    if (role[k] >= 0) {
      now[role[k]] += sign[i] * size[k];
      sum += sign[i] * size[k];
    }
    for (let r = 0; r < now.length; r++) live[r][i] = now[r];
    total[i] = sum;
  }
  const T = { ...raw, n, who, sign, born, dies, size, role, live, total };
  T.allocated = filled(raw.allocated, n);
  if (T.allocated) for (let i = 0; i < n; i++) T.allocated[i] += total[i];
  T.reserved = filled(raw.reserved, n);
  T.highest = 0;
  for (const series of [total, T.allocated, T.reserved]) if (series) for (const v of series) if (v > T.highest) T.highest = v;
  return T;
}

/* [instant, value, instant, value, …]: each value holds until the next. */
function filled(changes, n) {
  if (!changes) return null;
  const out = new Float64Array(n);
  for (let c = 0; c < changes.length; c += 2) out.fill(changes[c + 1], changes[c], c + 2 < changes.length ? changes[c + 2] : n);
  return out;
}

function phaseAt(T, instant) {
  let low = 0, high = T.phases.length;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (T.phases[middle][2] <= instant) low = middle; else high = middle;
  }
  return low;
}

/* Buffers alive just after an instant, the largest first, then the oldest. */
function aliveAt(T, instant) {
  const found = [];
  for (let k = 0; k < T.born.length && T.born[k] <= instant; k++) if (T.dies[k] > instant && T.size[k] > 0) found.push(k);
  return found.sort((a, b) => T.size[b] - T.size[a] || a - b);
}

function buffer(T, k) {
  const [operator, dtype, shape, requested, , role, stream] = T.kinds[T.kind[k]];
  return {
    k, bytes: T.size[k], requested, role, stream, site: T.strings[T.site[k]], module: T.strings[T.module[k]],
    operator: T.strings[operator], dtype: T.strings[dtype], shape, born: T.born[k], dies: T.dies[k],
  };
}

function groups(T, alive, how) {
  const sums = new Map();
  for (const k of alive) {
    const one = buffer(T, k);
    let name = how === "role" ? T.labels[one.role] : how === "operator" ? one.operator : one.module;
    if (how === "folded") name = name.replace(/(^|\.)\d+(?=\.|$)/g, "$1*");
    name = name || (how === "operator" ? "(no operator)" : "(no module)");
    const group = sums.get(name) || { name, bytes: 0, buffers: 0 };
    group.bytes += one.bytes;
    group.buffers += 1;
    sums.set(name, group);
  }
  return [...sums.values()].sort((a, b) => b.bytes - a.bytes || (a.name < b.name ? -1 : 1));
}

/* Modules along their dotted paths; a node's bytes are its own buffers' and its children's. */
function moduleTree(T, alive) {
  const make = (name, path, above) => ({ name, path, above, bytes: 0, roles: new Map(), kids: new Map(), own: [] });
  const root = make("model", "", null);
  for (const k of alive) {
    let node = root;
    const path = T.strings[T.module[k]];
    const ways = [root];
    for (const name of path ? path.split(".") : []) {
      if (!node.kids.has(name)) node.kids.set(name, make(name, node.path ? node.path + "." + name : name, node));
      node = node.kids.get(name);
      ways.push(node);
    }
    node.own.push(k);
    for (const one of ways) {
      one.bytes += T.size[k];
      one.roles.set(T.role[k], (one.roles.get(T.role[k]) || 0) + T.size[k]);
    }
  }
  return root;
}
