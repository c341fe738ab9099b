'use strict';
// What a page shows, as shapes in pixels of the picture, without the page:
// reading the weights, choosing what to draw, and writing SVG.

// viridis: even steps of lightness, for colour-blind eyes and grey prints.
const VIRIDIS = ['#440154', '#482878', '#3e4989', '#31688e', '#26828e',
  '#1f9e89', '#35b779', '#6ece58', '#b5de2b', '#fde725'].map(
  c => [1, 3, 5].map(i => parseInt(c.slice(i, i + 2), 16)));
const STAR = '#00e5ff';
const LARGEST = 0.12;  // width of a circle, relative to the shorter side

function colour(part) {
  const at = Math.min(Math.max(part, 0), 1) * (VIRIDIS.length - 1);
  const i = Math.min(Math.floor(at), VIRIDIS.length - 2);
  const mix = VIRIDIS[i].map(
    (v, k) => Math.round(v + (at - i) * (VIRIDIS[i + 1][k] - v)));
  return `rgb(${mix.join(',')})`;
}

async function unpack(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(
    new DecompressionStream('gzip'));
  return new Response(stream).arrayBuffer();
}

function view(buffer, [type, start, length]) {
  const kinds = {uint8: Uint8Array, uint16: Uint16Array, int16: Int16Array};
  return new kinds[type](buffer, start, length);
}

// One block under one checkpoint: what is known of it.
class Block {
  constructor(buffer, block, run) {
    Object.assign(this, block, {kept: run.kept, held: run.held});
    this.count = block.keys[0] * block.keys[1];
    this.rows = block.queries[0] * block.queries[1];
    const pixels = name => Float64Array.from(
      view(buffer, run[name]), v => v / run.unit);
    this.points = pixels('points');
    this.reference = pixels('reference');
    this.received = Float64Array.from(
      view(buffer, run.received), v => (v / 65535) ** 2);
    for (const name of ['peaks', 'codes', 'falls', 'low', 'high'])
      this[name + '_'] = run[name] ? view(buffer, run[name]) : null;
  }

  groupOf(head) { return Math.floor(head * this.groups / this.heads); }

  queryAt(q) {
    const columns = this.queries[1];
    return [this.start[0] + (q % columns) * this.pace[0],
      this.start[1] + Math.floor(q / columns) * this.pace[1]];
  }

  nearest(x, y) {
    const [rows, columns] = this.queries;
    const near = (v, start, pace, n) => Math.min(Math.max(
      pace ? Math.round((v - start) / pace) : 0, 0), n - 1);
    return near(y, this.start[1], this.pace[1], rows) * columns
      + near(x, this.start[0], this.pace[0], columns);
  }

  pointAt(group, key) {
    const i = 2 * (group * this.count + key);
    return [this.points[i], this.points[i + 1]];
  }

  // Calls back with (key, weight) for the keys kept of a query in a head.
  each(head, query, tell) {
    const row = head * this.rows + query;
    const peak = (this.peaks_[row] / 65535) ** 2;
    if (this.codes_) {
      for (let k = 0; k < this.count; k++)
        tell(k, peak * (this.codes_[row * this.count + k] / 255) ** 2);
      return;
    }
    let code = 255;
    for (let i = row * this.kept; i < (row + 1) * this.kept; i++) {
      code -= this.falls_[i];
      const key = this.low_[i] + (this.high_ ? 256 * this.high_[i] : 0);
      tell(key, peak * (code / 255) ** 2);
    }
  }

  // Keys of a query as {group, key, weight}, the largest first; head null is
  // the mean of all heads, whose groups have keys of their own.
  keysOf(query, head) {
    const heads = head === null ? [...Array(this.heads).keys()] : [head];
    const sums = new Map();
    for (const one of heads) {
      const group = this.groupOf(one);
      this.each(one, query, (key, weight) => {
        const id = group * this.count + key;
        sums.set(id, (sums.get(id) || 0) + weight / heads.length);
      });
    }
    return [...sums].map(([id, weight]) => ({
      group: Math.floor(id / this.count), key: id % this.count, weight,
    })).sort((a, b) => b.weight - a.weight);
  }

  // How much each query looks at a key, in a head or the mean of its group.
  queriesOf(group, key, head) {
    const heads = [...Array(this.heads).keys()].filter(
      h => head === null ? this.groupOf(h) === group : h === head);
    const weights = new Float64Array(this.rows);
    for (const one of heads) for (let q = 0; q < this.rows; q++)
      this.each(one, q, (k, w) => {
        if (k === key) weights[q] += w / heads.length;
      });
    return weights;
  }

  // The group that a head reads, or all of them.
  groupsOf(head) {
    return head === null ? [...Array(this.groups).keys()]
      : [this.groupOf(head)];
  }

  nearestPoint(x, y, head) {
    let best = null, least = Infinity;
    for (const group of this.groupsOf(head))
      for (let key = 0; key < this.count; key++) {
        const [px, py] = this.pointAt(group, key);
        const far = (px - x) ** 2 + (py - y) ** 2;
        if (far < least) { least = far; best = {group, key}; }
      }
    return best;
  }
}

// Area is proportional to weight; the average key fills its share of room.
function scaleOf(block, picture, head, largest) {
  const all = block.groupsOf(head).length * block.count;
  const each = head === null ? all : block.count;
  const usual = 0.42 * Math.sqrt(picture.width * picture.height / all)
    * Math.sqrt(each);
  const side = Math.min(picture.width, picture.height);
  return Math.min(usual, LARGEST * side / Math.sqrt(largest)) / 2;
}

function lineTo(block, group, key, width) {
  const [x, y] = block.pointAt(group, key);
  return {kind: 'line', x1: block.reference[2 * key],
    y1: block.reference[2 * key + 1], x2: x, y2: y, width};
}

// Shapes of one view; unit is how many pixels of the picture one pixel of the
// screen covers.
function scene(block, picture, state, unit) {
  const shapes = [], legend = {};
  const dot = (x, y) => shapes.push(
    {kind: 'circle', x, y, r: 1.3 * unit, fill: '#fff', alpha: 0.8});
  const line = (group, key) => {
    shapes.push({...lineTo(block, group, key, 1.2 * unit), stroke: '#fff'});
    dot(block.reference[2 * key], block.reference[2 * key + 1]);
  };
  const circle = (x, y, r, part) => shapes.push({kind: 'circle', x, y,
    r: Math.max(r, 1.2 * unit), fill: colour(part), alpha: 0.8,
    stroke: '#fff', width: 0.8 * unit});
  const star = ([x, y]) => shapes.push(
    {kind: 'star', x, y, r: 9 * unit, fill: STAR, width: 1.2 * unit});

  if (state.mode === 'query') {
    const keys = block.keysOf(state.query, state.head);
    const top = keys[0].weight, least = keys[keys.length - 1].weight;
    const scale = scaleOf(block, picture, state.head, top);
    if (state.offsets) keys.forEach(k => line(k.group, k.key));
    for (const k of [...keys].reverse()) {
      const [x, y] = block.pointAt(k.group, k.key);
      circle(x, y, scale * Math.sqrt(k.weight),
        (k.weight - least) / (top - least || 1));
    }
    star(block.queryAt(state.query));
    Object.assign(legend, {scale, low: least, high: top, keys,
      what: 'attention weight'});
  } else if (state.mode === 'points') {
    const all = [];
    for (const group of block.groupsOf(state.head))
      for (let key = 0; key < block.count; key++) {
        const heads = [...Array(block.heads).keys()].filter(h =>
          state.head === null ? block.groupOf(h) === group : h === state.head);
        const weight = heads.reduce((sum, h) =>
          sum + block.received[h * block.count + key], 0) / heads.length;
        const [x, y] = block.pointAt(group, key);
        const moved = Math.hypot(x - block.reference[2 * key],
          y - block.reference[2 * key + 1]);
        all.push({group, key, weight, moved, x, y});
      }
    all.sort((a, b) => b.weight - a.weight);
    const top = all[0].weight, most = Math.max(...all.map(k => k.moved));
    const groups = block.groupsOf(state.head).length;
    const scale = scaleOf(block, picture, state.head, top)
      / Math.sqrt(groups);
    all.forEach(k => line(k.group, k.key));
    for (const k of all)
      circle(k.x, k.y, scale * Math.sqrt(k.weight), k.moved / (most || 1));
    Object.assign(legend, {scale, low: 0, high: most, largest: top,
      keys: all, what: 'moved by, pixels', pixels: true});
  } else {
    const {group, key} = state.key;
    const weights = block.queriesOf(group, key, state.head);
    const top = weights.reduce((a, b) => Math.max(a, b), 0);
    const [w, h] = block.pace.map(Math.abs);
    weights.forEach((weight, q) => {
      const [x, y] = block.queryAt(q);
      shapes.push({kind: 'box', x: x - w / 2, y: y - h / 2, w, h,
        fill: colour(weight / (top || 1)),
        alpha: 0.15 + 0.6 * weight / (top || 1)});
    });
    line(group, key);
    const [x, y] = block.pointAt(group, key);
    shapes.push({kind: 'circle', x, y, r: 7 * unit, fill: 'none', alpha: 1,
      stroke: STAR, width: 2.5 * unit});
    Object.assign(legend, {low: 0, high: top, weights,
      what: 'weight that a query gives to the key'});
  }
  return {shapes, legend};
}

// The overlay of what the heads found, and the outline of what they saw.
function findings(found, crop, picture, state, unit) {
  const shapes = [];
  const [left, top, right, bottom] = crop;
  if (left > 0.5 || top > 0.5 || right < picture.width - 1.5
      || bottom < picture.height - 1.5)
    shapes.push({kind: 'box', x: left, y: top, w: right - left,
      h: bottom - top, fill: 'none', alpha: 1, stroke: '#fff', dash: 5 * unit,
      width: 1.5 * unit});
  if (state.boxes)
    for (const [x1, y1, x2, y2, name, score, stroke] of found.boxes) {
      shapes.push({kind: 'box', x: x1, y: y1, w: x2 - x1, h: y2 - y1,
        fill: 'none', alpha: 1, stroke, width: 2 * unit});
      shapes.push({kind: 'text', x: x1 + 3 * unit, y: y1 + 15 * unit,
        size: 13 * unit, text: `${name} ${score.toFixed(2)}`, fill: stroke});
    }
  return shapes;
}

function starPath(x, y, r) {
  return [...Array(10).keys()].map(i => {
    const a = Math.PI * (i / 5 - 0.5), l = i % 2 ? 0.42 * r : r;
    return [x + l * Math.cos(a), y + l * Math.sin(a)];
  });
}

function svgOf(shapes, box, picture, veils) {
  const n = v => +v.toFixed(2), safe = text => text.replace(/[<>&"]/g,
    c => `&#${c.charCodeAt(0)};`);
  const [x, y, w, h] = box.map(n);
  const parts = [`<svg xmlns="http://www.w3.org/2000/svg" width="${w}"
    height="${h}" viewBox="${x} ${y} ${w} ${h}" font-family="sans-serif">`];
  for (const veil of veils)
    parts.push(veil.source ? `<image x="-0.5" y="-0.5"
      width="${picture.width}" height="${picture.height}"
      preserveAspectRatio="none" opacity="${veil.alpha}"
      href="${veil.source}"/>` : `<rect x="-0.5" y="-0.5"
      width="${picture.width}" height="${picture.height}"
      fill="${veil.fill}" opacity="${veil.alpha}"/>`);
  for (const s of shapes) {
    const stroke = s.stroke ? ` stroke="${s.stroke}" stroke-width="${
      n(s.width)}"${s.dash ? ` stroke-dasharray="${n(s.dash)}"` : ''}` : '';
    const fill = ` fill="${s.fill || 'none'}" opacity="${n(s.alpha ?? 1)}"`;
    if (s.kind === 'circle') parts.push(`<circle cx="${n(s.x)}"
      cy="${n(s.y)}" r="${n(s.r)}"${fill}${stroke}/>`);
    if (s.kind === 'line') parts.push(`<line x1="${n(s.x1)}" y1="${n(s.y1)}"
      x2="${n(s.x2)}" y2="${n(s.y2)}" opacity="0.6"${stroke}/>`);
    if (s.kind === 'box') parts.push(`<rect x="${n(s.x)}" y="${n(s.y)}"
      width="${n(s.w)}" height="${n(s.h)}"${fill}${stroke}/>`);
    if (s.kind === 'text') parts.push(`<text x="${n(s.x)}" y="${n(s.y)}"
      font-size="${n(s.size)}" fill="${s.fill}" stroke="#000"
      stroke-width="${n(s.size / 5)}" paint-order="stroke">${
      safe(s.text)}</text>`);
    if (s.kind === 'star') parts.push(`<polygon points="${starPath(s.x, s.y,
      s.r).map(p => p.map(n).join(',')).join(' ')}" fill="${s.fill}"
      stroke="#000" stroke-width="${n(s.width)}"/>`);
  }
  return parts.join('\n') + '\n</svg>\n';
}
