// The page: pointer, keys, controls, and drawing the scene on a canvas.

const $ = id => document.getElementById(id);
const header = JSON.parse($('header').textContent);
const picture = header.picture;
const state = {mode: 'query', block: header.blocks.length - 1, head: null,
  run: header.runs.length - 1, query: 0, key: {group: 0, key: 0},
  held: false, boxes: false, masks: false, offsets: false, dim: true};
const pictures = {};  // decoded, by source
let buffer = null, drawn = null, box = [0, 0, 1, 1];
const blocks = new Map();

function current() {
  const id = `${state.run},${state.block}`;
  if (!blocks.has(id))
    blocks.set(id, new Block(buffer, header.blocks[state.block],
      header.runs[state.run].blocks[state.block]));
  return blocks.get(id);
}

// The picture, and around it room for the points outside.
function viewBox() {
  const low = [0, 0], size = [picture.width, picture.height];
  const high = [...size];
  for (const run of header.runs.keys()) {
    const one = new Block(buffer, header.blocks[state.block],
      header.runs[run].blocks[state.block]);
    for (let i = 0; i < one.points.length; i++) {
      low[i % 2] = Math.min(low[i % 2], one.points[i]);
      high[i % 2] = Math.max(high[i % 2], one.points[i]);
    }
  }
  const side = Math.min(...size), room = LARGEST * side / 2;
  // Whole circles, but nothing further out than a tenth.
  const from = low.map(v => Math.max(v, -0.1 * side) - room - 0.5);
  const to = high.map((v, i) => Math.min(v, size[i] + 0.1 * side)
    + room - 0.5);
  return [from[0], from[1], to[0] - from[0], to[1] - from[1]];
}

// What lies below the shapes.
function veils() {
  const found = header.runs[state.run].found, under = [
    {source: picture.source, alpha: 1}];
  if (state.dim) under.push({fill: '#101418', alpha: 0.5});
  if (state.masks && found.masks)
    under.push({source: found.masks, alpha: 0.55});
  return under;
}

function paint(canvas, scale) {
  const pen = canvas.getContext('2d');
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.setTransform(scale, 0, 0, scale, -box[0] * scale, -box[1] * scale);
  for (const veil of veils()) {
    pen.globalAlpha = veil.alpha;
    if (veil.fill) {
      pen.fillStyle = veil.fill;
      pen.fillRect(-0.5, -0.5, picture.width, picture.height);
    } else if (pictures[veil.source]) {
      pen.imageSmoothingEnabled = veil.source === picture.source;
      pen.drawImage(
        pictures[veil.source], -0.5, -0.5, picture.width, picture.height);
    }
  }
  for (const s of drawn.shapes) {
    pen.globalAlpha = s.kind === 'line' ? 0.6 : s.alpha ?? 1;
    pen.beginPath();
    pen.setLineDash(s.dash ? [s.dash, s.dash] : []);
    if (s.kind === 'circle') pen.arc(s.x, s.y, s.r, 0, 2 * Math.PI);
    if (s.kind === 'line') { pen.moveTo(s.x1, s.y1); pen.lineTo(s.x2, s.y2); }
    if (s.kind === 'box') pen.rect(s.x, s.y, s.w, s.h);
    if (s.kind === 'star') {
      starPath(s.x, s.y, s.r).forEach(p => pen.lineTo(...p));
      pen.closePath();
    }
    if (s.kind === 'text') {
      pen.font = `${s.size}px sans-serif`;
      pen.lineWidth = s.size / 5;
      pen.strokeStyle = '#000';
      pen.fillStyle = s.fill;
      pen.strokeText(s.text, s.x, s.y);
      pen.fillText(s.text, s.x, s.y);
      continue;
    }
    if (s.fill && s.fill !== 'none') { pen.fillStyle = s.fill; pen.fill(); }
    const edge = s.kind === 'star' ? '#000' : s.stroke;
    if (edge) {
      pen.strokeStyle = edge;
      pen.lineWidth = s.width;
      pen.stroke();
    }
  }
  pen.globalAlpha = 1;
}

function draw() {
  const canvas = $('view'), wide = canvas.clientWidth || 640;
  const sharp = window.devicePixelRatio || 1;
  const tallest = Math.max(window.innerHeight - 150, 260);
  const width = Math.min(wide, tallest * box[2] / box[3]);
  canvas.style.maxWidth = `${tallest * box[2] / box[3]}px`;
  canvas.width = Math.round(width * sharp);
  canvas.height = Math.round(width * box[3] / box[2] * sharp);
  const unit = box[2] / width;
  drawn = scene(current(), picture, state, unit);
  drawn.shapes.unshift(...findings(header.runs[state.run].found, header.crop,
    picture, state, unit));
  drawn.unit = unit;
  paint(canvas, canvas.width / box[2]);
  tell();
}

const percent = w => w >= 0.0995 ? `${(100 * w).toFixed(0)} %`
  : `${(100 * w).toPrecision(2)} %`;
const brief = (v, pixels) => pixels ? v.toPrecision(2) : percent(v);

function tell() {
  const block = current(), run = header.runs[state.run], {legend} = drawn;
  const where = xy => xy.map(v => Math.round(v)).join(', ');
  const head = state.head === null ? 'mean of all heads'
    : `head ${state.head}`;
  const rows = [];
  if (state.mode === 'query') {
    const sum = legend.keys.reduce((all, k) => all + k.weight, 0);
    $('says').textContent = `Query at pixel ${where(block.queryAt(
      state.query))}, ${head}: ${legend.keys.length} keys with ${
      percent(Math.min(sum, 1))} of its attention.`;
    for (const k of legend.keys.slice(0, 6))
      rows.push([where(block.pointAt(k.group, k.key)), k.weight,
        (k.weight - legend.low) / (legend.high - legend.low || 1)]);
  } else if (state.mode === 'points') {
    const mean = legend.keys.reduce((all, k) => all + k.moved, 0)
      / legend.keys.length;
    $('says').textContent = `${legend.keys.length} points, moved by ${
      mean.toPrecision(2)} pixels on average; areas are the attention they ` +
      `receive from all queries.`;
  } else {
    const best = legend.weights.indexOf(Math.max(...legend.weights));
    $('says').textContent = `Key at pixel ${where(block.pointAt(
      state.key.group, state.key.key))}, group ${state.key.group}, ${
      state.head === null ? 'mean of its heads' : head}: the query at ${
      where(block.queryAt(best))} gives it most, ${percent(legend.high)}.`;
  }
  $('top').replaceChildren(...rows.map(([place, weight, part]) => {
    const row = document.createElement('tr');
    row.innerHTML = '<td></td><td></td><td><span class="bar"></span></td>';
    row.children[0].textContent = place;
    row.children[1].textContent = percent(weight);
    Object.assign(row.querySelector('.bar').style, {
      width: `${100 * weight / legend.high}%`, background: colour(part)});
    return row;
  }));
  const all = block.kept === block.count, every = block.step === 1;
  $('kept').textContent = (all && every
    ? 'All queries and keys of this block are in the page'
    : `In the page are ${every ? 'all queries' : `every ${block.step}${
      ['th', 'st', 'nd', 'rd'][block.step] || 'th'} query on both axes`} of a `
      + `map of ${block.map.join(' x ')}, and of each ${all ? 'all'
        : `the largest ${block.kept} of`} ${block.count} keys, with ${
        percent(block.held)} of the attention`)
    + ', weights in one byte.';
  $('kept').textContent += run.found.top?.length ? ' Classes: ' + run.found.top.map(
    ([name, score]) => `${name} ${score.toFixed(2)}`).join(', ') + '.' : '';
  if (run.found.classes) $('kept').textContent += ' Classes: '
    + run.found.classes.map(([name]) => name).join(', ') + '.';
  showLegend();
}

function showLegend() {
  const {legend, unit} = drawn;
  const stops = [0, 0.25, 0.5, 0.75, 1].map(colour).join(', ');
  let text = `<span>${legend.what}: ${brief(legend.low, legend.pixels)}
    <span style="display:inline-block;width:110px;height:10px;
    background:linear-gradient(90deg, ${stops})"></span>
    ${brief(legend.high, legend.pixels)}</span>`;
  if (legend.scale) {
    const top = legend.largest || legend.high;
    text += '<span>area: ' + [0.5, 0.1].map(part => {
      const r = Math.max(legend.scale * Math.sqrt(part * top) / unit, 1.2);
      return `<svg width="${2 * r + 2}" height="${2 * r + 2}"><circle
        cx="${r + 1}" cy="${r + 1}" r="${r}" fill="none"
        stroke="currentColor"/></svg> ${percent(part * top)}`;
    }).join(' ') + '</span>';
  }
  $('legend').innerHTML = text;
}

function choose(change) {
  const block = header.blocks[state.block], before = current();
  const at = state.mode === 'key'
    ? before.pointAt(state.key.group, state.key.key)
    : before.queryAt(state.query);
  Object.assign(state, change);
  const runs = header.runs.length, next = current();
  if (header.blocks[state.block] !== block) {
    if (state.head !== null && state.head >= next.heads) state.head = null;
    fillHeads();
    box = viewBox();
    state.query = next.nearest(...at);
    state.key = next.nearestPoint(...at, state.head);
  }
  if ('mode' in change && state.mode === 'key')
    state.key = next.nearestPoint(...next.queryAt(state.query), state.head);
  if (state.head !== null && state.key.group !== next.groupOf(state.head))
    state.key = next.nearestPoint(
      ...next.pointAt(state.key.group, state.key.key), state.head);
  for (const button of document.querySelectorAll('#modes button')) {
    button.setAttribute('role', 'radio');
    button.setAttribute('aria-checked', button.dataset.mode === state.mode);
  }
  $('block').value = state.block;
  $('head').value = state.head === null ? '' : state.head;
  $('run').value = state.run;
  $('run-name').textContent = `${header.runs[state.run].name}${
    runs > 1 ? ` (${state.run + 1} of ${runs})` : ''}`;
  for (const name of ['boxes', 'masks', 'offsets', 'dim'])
    $(name).checked = state[name];
  const found = header.runs[state.run].found;
  $('boxes').disabled = !found.boxes.length;
  $('masks').disabled = !found.masks;
  draw();
}

function fillHeads() {
  const block = current();
  $('head').replaceChildren(new Option('mean of all heads', ''),
    ...[...Array(block.heads).keys()].map(
      h => new Option(`head ${h} (group ${block.groupOf(h)})`, h)));
}

function pointAt(event) {
  const canvas = $('view'), area = canvas.getBoundingClientRect();
  return [box[0] + (event.clientX - area.left) * box[2] / area.width,
    box[1] + (event.clientY - area.top) * box[3] / area.height];
}

function lookAt(x, y) {
  const block = current();
  if (state.mode === 'key') {
    choose({key: block.nearestPoint(x, y, state.head)});
  } else choose({query: block.nearest(x, y)});
}

// From query to query, or from key to key.
function step(right, down) {
  const block = current(), keys = state.mode === 'key';
  const [rows, columns] = keys ? block.keys : block.queries;
  const now = keys ? state.key.key : state.query;
  const limit = (v, n) => Math.min(Math.max(v, 0), n - 1);
  const sign = i => !keys && block.pace[i] < 0 ? -1 : 1;
  const to = limit(Math.floor(now / columns) + sign(1) * down, rows) * columns
    + limit(now % columns + sign(0) * right, columns);
  choose({held: true, ...keys ? {key: {...state.key, key: to}}
    : {query: to, mode: 'query'}});
}

function save(blob, suffix) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(blob);
  const block = header.blocks[state.block];
  link.download = `${header.name.replace(/\.\w+$/, '')}_stage${block.stage}`
    + `_block${block.block}_${state.mode}.${suffix}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function svg() {
  return svgOf(drawn.shapes, box, picture, veils());
}

function savePng() {
  const canvas = document.createElement('canvas');
  const scale = Math.max(1600 / Math.max(box[2], box[3]), 2);
  canvas.width = Math.round(box[2] * scale);
  canvas.height = Math.round(box[3] * scale);
  paint(canvas, scale);
  canvas.toBlob(blob => save(blob, 'png'), 'image/png');
}

function saveSvg() {
  save(new Blob([svg()], {type: 'image/svg+xml'}), 'svg');
}

function theme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === 'dark'
    : matchMedia('(prefers-color-scheme: dark)').matches;
  root.dataset.theme = dark ? 'light' : 'dark';
}

function listen() {
  const canvas = $('view'), turn = (n, by, name) =>
    choose({[name]: (state[name] + by + n) % n});
  canvas.addEventListener('pointermove', event => {
    if (state.mode !== 'points' && (!state.held || event.buttons))
      lookAt(...pointAt(event));
  });
  canvas.addEventListener('pointerdown', event => {
    canvas.focus();
    if (event.pointerType !== 'mouse') canvas.setPointerCapture(
      event.pointerId);
    const release = state.held && event.pointerType === 'mouse';
    state.held = !release;
    if (state.mode === 'points') {
      state.key = current().nearestPoint(...pointAt(event), state.head);
      const {key} = state;
      choose({mode: 'key'});
      choose({key});
    } else lookAt(...pointAt(event));
  });
  for (const button of document.querySelectorAll('#modes button'))
    button.addEventListener('click', () => choose({mode: button.dataset.mode}));
  $('block').addEventListener('change', e => choose({block: +e.target.value}));
  $('head').addEventListener('change', e => choose(
    {head: e.target.value === '' ? null : +e.target.value}));
  $('run').addEventListener('input', e => choose({run: +e.target.value}));
  for (const name of ['boxes', 'masks', 'offsets', 'dim'])
    $(name).addEventListener('change', e =>
      choose({[name]: e.target.checked}));
  $('png').addEventListener('click', savePng);
  $('svg').addEventListener('click', saveSvg);
  $('theme').addEventListener('click', theme);
  const heads = by => {
    const n = current().heads + 1, now = state.head === null ? 0
      : state.head + 1;
    const next = (now + by + n) % n;
    choose({head: next ? next - 1 : null});
  };
  const flip = name => $(name).disabled || choose({[name]: !state[name]});
  const keys = {
    ArrowLeft: () => step(-1, 0), ArrowRight: () => step(1, 0),
    ArrowUp: () => step(0, -1), ArrowDown: () => step(0, 1),
    Enter: () => choose({held: !state.held}),
    Escape: () => choose({held: false}),
    q: () => choose({mode: 'query'}), p: () => choose({mode: 'points'}),
    k: () => choose({mode: 'key'}),
    '[': () => turn(header.blocks.length, -1, 'block'),
    ']': () => turn(header.blocks.length, 1, 'block'),
    ',': () => heads(-1), '.': () => heads(1),
    '-': () => turn(header.runs.length, -1, 'run'),
    '+': () => turn(header.runs.length, 1, 'run'),
    b: () => flip('boxes'), m: () => flip('masks'),
    o: () => flip('offsets'), d: () => flip('dim'), t: theme, s: savePng,
    v: saveSvg,
  };
  window.addEventListener('keydown', event => {
    const own = event.key.startsWith('Arrow') || event.key === 'Enter';
    if (own && !['view', ''].includes(document.activeElement.id)) return;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const act = keys[event.key.length > 1 ? event.key
      : event.key.toLowerCase()];
    if (act) { event.preventDefault(); act(); }
  });
  new ResizeObserver(() => requestAnimationFrame(draw)).observe($('stage'));
}

async function decode(source) {
  const image = new Image();
  image.src = source;
  await image.decode();
  pictures[source] = image;
}

async function start() {
  if (header.warning) {
    $('warning').hidden = false;
    $('warning').textContent = `These are ${header.warning}: what is drawn `
      + 'is noise, not what a trained model looks at.';
  }
  const sources = [picture.source, ...header.runs.map(r => r.found.masks)];
  await Promise.all([...new Set(sources.filter(Boolean))].map(decode));
  buffer = await unpack($('weights').textContent);
  $('block').replaceChildren(...header.blocks.map((b, i) => new Option(
    `stage ${b.stage}, block ${b.block} (stride ${b.stride})`, i)));
  $('run').max = header.runs.length - 1;
  $('run').hidden = header.runs.length < 2;
  fillHeads();
  box = viewBox();
  state.query = current().nearest(picture.width / 2, picture.height / 2);
  choose({});
  listen();
}

// For tests, and for those who want numbers.
window.explorer = {state, header, choose, current, lookAt, svg,
  shown: () => drawn, toScreen: (x, y) => {
    const area = $('view').getBoundingClientRect();
    return [area.left + (x - box[0]) * area.width / box[2],
      area.top + (y - box[1]) * area.height / box[3]];
  }};
window.explorer.ready = start().catch(error => {
  $('warning').hidden = false;
  $('warning').textContent = 'This page needs a browser of 2023 or later: '
    + error.message;
  throw error;
});
