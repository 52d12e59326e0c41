'use strict';
// The two graphs side by side. Both are drawn in one layout, in which an operator that is in both
// models has one place, so what was removed leaves a gap on the right and what was added one on
// the left. What is not looked at is folded: the nodes are in an order in which data flows
// forward, and whatever stands between two shown nodes in that order becomes one box. Folding
// stretches of such an order can't close a cycle.
(() => {
  const root = document.getElementById('viewer');
  if (!root) return;
  const data = JSON.parse(document.getElementById('viewer-data').textContent);
  const SVG = 'http://www.w3.org/2000/svg';
  const WIDTH = 168, HEIGHT = 42, GAP = 22, FALL = 34;
  // An edge over more layers than this is drawn as two stubs.
  const FAR = 24;
  const SAME = 0, REWEIGHTED = 1, CHANGED = 2, ADDED = 3, REMOVED = 4;
  const STATES = ['same', 'weights', 'changed', 'added', 'removed'];
  const BEFORE = 1, AFTER = 2;

  const element = (tag, attributes = {}, text) => {
    const made = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const html = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const cut = (text, length) => {
    if (text.length <= length) return text;
    const tail = Math.floor(length * 0.6);
    return text.slice(0, length - tail - 1) + '…' + text.slice(-tail);
  };
  const sides = node => node.s === ADDED ? AFTER : node.s === REMOVED ? BEFORE : BEFORE | AFTER;

  // Neighbours, made when a graph is first shown.
  const prepare = graph => {
    if (graph.near) return graph;
    graph.near = graph.nodes.map(() => []);
    graph.edges = [];
    for (const [list, side] of [[graph.before, BEFORE], [graph.after, AFTER]]) {
      for (let i = 0; i < list.length; i += 2) {
        const from = list[i], to = list[i + 1];
        graph.edges.push([from, to, side]);
        graph.near[from].push(to);
        graph.near[to].push(from);
      }
    }
    return graph;
  };

  // Shown nodes and folded stretches, in order, with the edges between them.
  const fold = (graph, shown) => {
    const cells = [], cellOf = new Int32Array(graph.nodes.length);
    let stretch = null;
    graph.nodes.forEach((node, i) => {
      if (shown.has(i)) {
        stretch = null;
        cells.push({ node: i, sides: sides(node) });
      } else {
        if (!stretch) cells.push(stretch = { members: [], sides: 0, changed: 0 });
        stretch.members.push(i);
        stretch.sides |= sides(node);
        stretch.changed += node.s !== SAME;
      }
      cellOf[i] = cells.length - 1;
    });
    const found = new Map();
    for (const [from, to, side] of graph.edges) {
      const a = cellOf[from], b = cellOf[to];
      if (a === b || (cells[a].members && cells[b].members)) continue;
      const key = a * cells.length + b;
      found.set(key, (found.get(key) || 0) | side);
    }
    const edges = [...found].map(([key, side]) => {
      const a = Math.floor(key / cells.length), b = key % cells.length;
      cells[a].used = cells[b].used = true;
      return { a, b, side };
    });
    cells.forEach(cell => { cell.kept = cell.used || cell.node !== undefined; });
    return { cells, edges };
  };

  // Layers by the longest path, then order within layers by the middle of the neighbours, then
  // places across that pull neighbours under each other without overlaps.
  const layOut = ({ cells, edges }) => {
    const into = cells.map(() => []), outOf = cells.map(() => []);
    for (const e of edges) if (e.a < e.b) { into[e.b].push(e.a); outOf[e.a].push(e.b); }
    const layer = new Int32Array(cells.length);
    cells.forEach((_, i) => { for (const p of into[i]) layer[i] = Math.max(layer[i], layer[p] + 1); });
    for (let i = cells.length - 1; i >= 0; i--) {
      if (!into[i].length && outOf[i].length) layer[i] = Math.min(...outOf[i].map(j => layer[j])) - 1;
    }
    const used = [...new Set(cells.flatMap((c, i) => c.kept ? [layer[i]] : []))].sort((a, b) => a - b);
    const rank = new Map(used.map((l, i) => [l, i]));
    const layers = used.map(() => []);
    const items = cells.map((cell, i) => {
      if (!cell.kept) return null;
      const item = { cell, layer: rank.get(layer[i]), width: WIDTH, up: [], down: [] };
      layers[item.layer].push(item);
      return item;
    });
    const join = (a, b) => { a.down.push(b); b.up.push(a); };
    for (const e of edges) {
      const a = items[e.a], b = items[e.b];
      const span = b.layer - a.layer;
      if (span < 1 || span > FAR) { e.path = [a, b]; e.far = true; continue; }
      e.path = [a];
      for (let l = a.layer + 1; l < b.layer; l++) {
        // A bend of one side takes no room: on that side there may be nothing to go around.
        const width = e.side === (BEFORE | AFTER) ? 14 : -GAP;
        const bend = { layer: l, width, up: [], down: [] };
        layers[l].push(bend);
        join(e.path.at(-1), bend);
        e.path.push(bend);
      }
      join(e.path.at(-1), b);
      e.path.push(b);
    }
    arrange(layers);
    return { items, layers, edges };
  };

  const arrange = layers => {
    const number = l => l.forEach((item, i) => { item.index = i; });
    layers.forEach(number);
    const sweep = (list, side) => {
      for (const l of list) {
        for (const item of l) {
          const near = item[side];
          item.key = near.length ? near.reduce((sum, n) => sum + n.index, 0) / near.length : item.index;
        }
        l.sort((a, b) => a.key - b.key || a.index - b.index);
        number(l);
      }
    };
    const back = [...layers].reverse();
    for (let i = 0; i < 6; i++) { sweep(layers, 'up'); sweep(back, 'down'); }
    for (const l of layers) {
      let x = 0;
      for (const item of l) { item.x = x + item.width / 2; x += item.width + GAP; }
      for (const item of l) item.x -= (x - GAP) / 2;
    }
    const pull = (list, side) => {
      for (const l of list) {
        const want = l.map(item => {
          const near = item[side];
          return near.length ? near.reduce((sum, n) => sum + n.x, 0) / near.length : item.x;
        });
        place(l, want);
      }
    };
    for (let i = 0; i < 8; i++) { pull(layers, 'up'); pull(back, 'down'); }
    layers.forEach((l, i) => l.forEach(item => { item.y = i * (HEIGHT + FALL); }));
  };

  // The places closest to those wanted that keep the order and the gaps: runs that would overlap
  // move as one to the middle of what they want.
  const place = (l, want) => {
    const runs = [];
    let before = 0;
    l.forEach((item, i) => {
      const offset = before + item.width / 2;
      before += item.width + GAP;
      let run = { from: i, sum: want[i] - offset, count: 1, to: i };
      while (runs.length && runs.at(-1).sum / runs.at(-1).count > run.sum / run.count) {
        const last = runs.pop();
        run = { from: last.from, to: run.to, sum: last.sum + run.sum, count: last.count + run.count };
      }
      runs.push(run);
      item.offset = offset;
    });
    for (const run of runs) {
      for (let i = run.from; i <= run.to; i++) l[i].x = run.sum / run.count + l[i].offset;
    }
  };

  // The bends of an edge that something on its side stands in the way of.
  const needed = (layers, { path, side }) => {
    const [a, b] = [path[0], path.at(-1)];
    const free = path.slice(1, -1).every(bend => {
      const x = a.x + (b.x - a.x) * (bend.y - a.y) / (b.y - a.y);
      return layers[bend.layer].every(other =>
        !other.cell || !(other.cell.sides & side) || Math.abs(other.x - x) > WIDTH / 2 + 6);
    });
    return free ? [a, b] : path;
  };
  const curve = path => {
    let d = '';
    path.forEach((item, i) => {
      const top = item.y + (i > 0 ? 0 : HEIGHT);
      if (i === 0) { d = `M${item.x.toFixed(1)} ${top}`; return; }
      const from = path[i - 1];
      const y0 = from.y + HEIGHT, y1 = item.y, middle = (y0 + y1) / 2;
      d += `C${from.x.toFixed(1)} ${middle} ${item.x.toFixed(1)} ${middle} ${item.x.toFixed(1)} ${y1}`;
      if (i < path.length - 1) d += `V${y1 + HEIGHT}`;
    });
    return d;
  };
  const stubs = ([a, b]) =>
    `M${a.x.toFixed(1)} ${a.y + HEIGHT}v14M${b.x.toFixed(1)} ${b.y}v-14`;

  // What is shown now.
  const panes = [...root.querySelectorAll('.pane')].map((pane, i) => ({
    pane, side: i === 0 ? BEFORE : AFTER, svg: pane.querySelector('svg'), layer: pane.querySelector('svg g'),
  }));
  const details = root.querySelector('.details');
  const step = root.querySelector('.step');
  const state = { graph: null, shown: new Set(), focus: [], selected: -1, change: null, at: 0, layout: null };
  let zoom = 1, panX = 0, panY = 0;

  const applyView = () => {
    for (const { layer } of panes) layer.setAttribute('transform', `translate(${panX} ${panY}) scale(${zoom})`);
  };
  const visiblePane = () => panes.find(p => p.pane.clientWidth > 0) || panes[0];

  const fit = (only) => {
    const items = state.layout.items.filter(item => item && (!only || only.has(item.cell.node)));
    if (!items.length) return;
    const { clientWidth: w, clientHeight: h } = visiblePane().svg;
    const left = Math.min(...items.map(i => i.x)) - WIDTH / 2, right = Math.max(...items.map(i => i.x)) + WIDTH / 2;
    const top = Math.min(...items.map(i => i.y)), bottom = Math.max(...items.map(i => i.y)) + HEIGHT;
    const margin = 22;
    zoom = Math.min((w - 2 * margin) / (right - left), (h - 2 * margin) / (bottom - top), 1);
    zoom = Math.max(zoom, only ? 0.5 : 0.04);
    panX = w / 2 - zoom * (left + right) / 2;
    panY = h / 2 - zoom * (top + bottom) / 2;
    applyView();
  };

  const drawNode = (item, side) => {
    const { cell } = item;
    const g = element('g', { transform: `translate(${(item.x - WIDTH / 2).toFixed(1)} ${item.y})` });
    const box = element('rect', { width: WIDTH, height: HEIGHT, rx: 5 });
    g.append(box);
    if (cell.members) {
      const n = cell.members.length;
      g.setAttribute('class', 'cell folded');
      g.append(element('text', { x: WIDTH / 2, y: 18, class: 'type' }, `${n} operator${n > 1 ? 's' : ''}`));
      g.append(element('text', { x: WIDTH / 2, y: 33, class: 'label' }, cell.changed ? `${cell.changed} changed` : 'unchanged'));
      g.append(element('title', {}, 'Folded; click to unfold what is next to the shown operators'));
      g.addEventListener('click', () => unfold(cell));
      return g;
    }
    const node = state.graph.nodes[cell.node];
    const name = side === BEFORE ? node.b ?? node.n : node.n;
    const type = side === BEFORE ? node.u ?? node.t : node.t;
    g.setAttribute('class', `cell ${node.k ? 'port' : STATES[node.s]}`);
    g.dataset.node = cell.node;
    g.append(element('text', { x: WIDTH / 2, y: 18, class: 'type' }, cut(type, 21)));
    g.append(element('text', { x: WIDTH / 2, y: 33, class: 'label' }, cut(name, 23)));
    g.append(element('title', {}, `${type} ${name}`));
    g.addEventListener('click', () => select(cell.node));
    return g;
  };

  const draw = () => {
    const layout = state.layout = layOut(fold(state.graph, state.shown));
    for (const { side, layer } of panes) {
      const parts = [];
      for (const e of layout.edges) {
        if (!(e.side & side)) continue;
        const only = e.side !== (BEFORE | AFTER);
        const d = e.far ? stubs(e.path) : curve(needed(layout.layers, e));
        parts.push(element('path', { d, class: `edge${only ? ' only' : ''}${e.far ? ' far' : ''}` }));
      }
      for (const item of layout.items) {
        if (item && item.cell.sides & side) parts.push(drawNode(item, side));
      }
      layer.replaceChildren(...parts);
    }
    mark();
  };

  const mark = () => {
    const focus = new Set(state.focus);
    for (const cell of root.querySelectorAll('svg .cell[data-node]')) {
      const node = Number(cell.dataset.node);
      cell.classList.toggle('focus', focus.has(node));
      cell.classList.toggle('selected', node === state.selected);
    }
  };

  const unfold = cell => {
    const members = new Set(cell.members);
    const next = cell.members.filter(i => state.graph.near[i].some(j => state.shown.has(j)));
    // Of a wide stretch the first ones in order, so that a click never floods the view.
    const chosen = (next.length ? next : [...members]).slice(0, 24);
    chosen.forEach(i => state.shown.add(i));
    draw();
    fit(new Set([...chosen, ...state.focus]));
  };

  // Details of an operator.
  const row = (list, label, before, after) => {
    list.append(html('dt', '', label));
    const dd = html('dd');
    if (before === after) dd.append(html('span', 'name', after ?? 'none'));
    else dd.append(html('span', 'name removed', before ?? 'none'), ' → ', html('span', 'name added', after ?? 'none'));
    list.append(dd);
  };
  const sources = (graph, index, side) => {
    const found = graph.edges.filter(e => e[1] === index && e[2] === side).map(e => graph.nodes[e[0]]);
    return [...new Set(found.map(n => `${n.t} ${side === BEFORE ? n.b ?? n.n : n.n}`))].join(', ');
  };
  const select = index => {
    const node = state.graph.nodes[index];
    state.selected = index;
    mark();
    const head = html('h3', '', `${node.t} `);
    head.append(html('span', 'name', node.n), ' ', html('span', `tag ${STATES[node.s]}`, {
      same: 'unchanged', weights: 'other weights', changed: 'changed', added: 'added', removed: 'removed',
    }[STATES[node.s]]));
    const list = html('dl', 'facts');
    if (node.b !== undefined) row(list, 'Name', node.b, node.n);
    if (node.u !== undefined) row(list, 'Type', node.u, node.t);
    if (node.o) row(list, 'Output', node.p ?? node.o, node.o);
    const from = [BEFORE, AFTER].map(side => sides(node) & side ? sources(state.graph, index, side) : null);
    if (node.s === ADDED) { if (from[1]) row(list, 'Takes', from[1], from[1]); }
    else if (node.s === REMOVED) { if (from[0]) row(list, 'Takes', from[0], from[0]); }
    else if (from[0] || from[1]) row(list, 'Takes', from[0], from[1]);
    for (const [what, before, after] of node.d ?? []) row(list, what, before, after);
    if (node.y) row(list, 'By', node.y, node.y);
    details.replaceChildren(head, list, ...(node.w ?? []).map(weight));
  };
  const weight = i => {
    const tensor = data.tensors[i];
    const part = html('div', 'weight');
    const list = html('dl', 'facts');
    list.append(html('dt', '', 'Weight'), html('dd'));
    list.lastChild.append(html('span', 'name', tensor.n || 'left out here to keep the page small'));
    for (const [label, before, after] of tensor.f) row(list, label, before, after);
    part.append(list);
    const plot = document.getElementById(`histogram-${i}`);
    if (plot) part.append(plot.content.cloneNode(true));
    return part;
  };

  // Changes.
  const context = (graph, nodes) => {
    const all = new Set(nodes);
    for (const i of nodes) {
      const near = graph.near[i];
      if (near.length <= 24) near.forEach(j => all.add(j));
    }
    return all;
  };
  const show = (change, at) => {
    const graph = state.graph = prepare(data.graphs[change.g]);
    const nodes = change.p[at];
    Object.assign(state, { change, at, focus: nodes, shown: context(graph, nodes), selected: -1 });
    root.classList.remove('idle');
    draw();
    fit();
    if (zoom < 0.5) fit(new Set(nodes));
    select(nodes.find(i => graph.nodes[i].s === CHANGED || graph.nodes[i].s === REWEIGHTED) ?? nodes[0]);
    step.hidden = change.p.length < 2;
    step.querySelector('span').textContent = `${at + 1} of ${change.p.length}`;
  };
  const overview = g => {
    const graph = state.graph = prepare(data.graphs[g]);
    const changed = graph.nodes.flatMap((node, i) => node.s === SAME ? [] : [i]);
    Object.assign(state, { change: null, focus: [], selected: -1, shown: new Set(changed) });
    draw();
    fit();
    step.hidden = true;
    details.replaceChildren(html('p', 'muted', 'Click an operator to see what changed in it, or a folded stretch to unfold it.'));
  };

  const buttons = [...root.querySelectorAll('.changes button')];
  const pressed = button => buttons.forEach(b => b.setAttribute('aria-pressed', b === button));
  for (const button of buttons) {
    button.addEventListener('click', () => {
      pressed(button);
      if (button.dataset.graph !== undefined) overview(Number(button.dataset.graph));
      else show(data.changes[Number(button.dataset.change)], 0);
    });
  }
  step.querySelectorAll('button').forEach((button, i) => button.addEventListener('click', () => {
    const n = state.change.p.length;
    show(state.change, (state.at + (i === 0 ? n - 1 : 1)) % n);
  }));
  const search = root.querySelector('input[type=search]');
  const found = root.querySelector('.found');
  search.addEventListener('input', () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let hits = 0;
    for (const button of buttons) {
      const change = data.changes[Number(button.dataset.change)];
      if (!change) continue;
      change.text ??= (button.textContent + ' ' + change.p.flat().map(i => {
        const node = data.graphs[change.g].nodes[i];
        return `${node.t} ${node.n} ${node.b ?? ''}`;
      }).join(' ')).toLowerCase();
      const hit = words.every(word => change.text.includes(word));
      hits += hit;
      button.parentElement.hidden = !hit;
    }
    found.textContent = words.length ? `${hits} of ${data.changes.length}` : '';
  });

  // Panning and zooming, both graphs at once.
  const zoomAt = (factor, x, y) => {
    const next = Math.min(Math.max(zoom * factor, 0.03), 3);
    panX = x - (x - panX) * next / zoom;
    panY = y - (y - panY) * next / zoom;
    zoom = next;
    applyView();
  };
  for (const { svg } of panes) {
    const pointers = new Map();
    let moved = 0;
    svg.addEventListener('pointerdown', event => {
      pointers.set(event.pointerId, [event.clientX, event.clientY]);
      moved = 0;
    });
    svg.addEventListener('pointermove', event => {
      const last = pointers.get(event.pointerId);
      if (!last) return;
      const before = [...pointers.values()];
      const now = [event.clientX, event.clientY];
      moved += Math.abs(now[0] - last[0]) + Math.abs(now[1] - last[1]);
      if (moved > 4 && !svg.hasPointerCapture(event.pointerId)) svg.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, now);
      if (before.length === 2) {
        const after = [...pointers.values()];
        const distance = ([a, b]) => Math.hypot(a[0] - b[0], a[1] - b[1]) || 1;
        const box = svg.getBoundingClientRect();
        const middle = k => (after[0][k] + after[1][k]) / 2;
        zoomAt(distance(after) / distance(before), middle(0) - box.left, middle(1) - box.top);
      } else {
        panX += now[0] - last[0];
        panY += now[1] - last[1];
        applyView();
      }
    });
    const up = event => pointers.delete(event.pointerId);
    svg.addEventListener('pointerup', up);
    svg.addEventListener('pointercancel', up);
    svg.addEventListener('click', event => {
      if (moved > 4) { event.stopPropagation(); event.preventDefault(); }
    }, true);
    svg.addEventListener('wheel', event => {
      // The page scrolls with the wheel alone.
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      const box = svg.getBoundingClientRect();
      zoomAt(Math.exp(-event.deltaY / 300), event.clientX - box.left, event.clientY - box.top);
    }, { passive: false });
  }
  const middle = () => {
    const { clientWidth, clientHeight } = visiblePane().svg;
    return [clientWidth / 2, clientHeight / 2];
  };
  root.querySelector('.zoom-in').addEventListener('click', () => zoomAt(1.4, ...middle()));
  root.querySelector('.zoom-out').addEventListener('click', () => zoomAt(1 / 1.4, ...middle()));
  root.querySelector('.zoom-fit').addEventListener('click', () => fit());
  const tabs = [...root.querySelectorAll('.tabs button')];
  tabs.forEach((tab, i) => tab.addEventListener('click', () => {
    root.dataset.pane = i;
    tabs.forEach(t => t.setAttribute('aria-pressed', t === tab));
    applyView();
  }));
  let width = innerWidth;
  addEventListener('resize', () => {
    if (state.layout && innerWidth !== width) { width = innerWidth; fit(); }
  });

  // Drawn when it comes into sight, since a hidden pane has no size to fit to.
  const first = buttons.find(b => b.dataset.change !== undefined) ?? buttons[0];
  new IntersectionObserver((entries, observer) => {
    if (entries.some(e => e.isIntersecting)) {
      observer.disconnect();
      if (!state.layout) first?.click();
    }
  }).observe(root);
})();
