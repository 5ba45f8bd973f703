// The data of the page, and what all of its parts draw with. The parts are joined into one script.

const DATA = JSON.parse(document.getElementById("data").textContent);
const LOOKS = ["sink", "first token", "itself", "previous token", "near", "beyond", "repeats"];
const SIDES = ["A", "B"];

function bytesOf(text) {
  return Uint8Array.from(atob(text ?? ""), (character) => character.charCodeAt(0));
}

// One x-ray. Masses are shares from 0 to 1.
class Trace {
  constructor(raw, side) {
    Object.assign(this, raw);
    this.side = side;
    this.shown = raw.ids.length;
    this.heads16 = new Uint16Array(bytesOf(raw.headMass).buffer);
    this.mass8 = bytesOf(raw.tokenMass);
    this.maps8 = bytesOf(raw.maps);
    const routing = bytesOf(raw.routing);
    this.routing8 = raw.routingBytes === 2 ? new Uint16Array(routing.buffer) : routing;
    this.hasSinks = this.layerMass().some((row) => row[0] > 0);
  }

  head(layer, head, look) {
    return this.heads16[(layer * this.heads + head) * 7 + look] / 65535;
  }

  at(layer, token, look) {
    return this.mass8[(layer * this.shown + token) * 6 + look] / 255;
  }

  // For each layer, the mean of its heads' masses.
  layerMass() {
    return range(this.layers).map((layer) => LOOKS.map((_, look) =>
      mean(range(this.heads).map((head) => this.head(layer, head, look)))));
  }

  chosenBy(layer, token) {
    const from = (layer * this.shown + token) * this.chosen;
    return this.routing8.subarray(from, from + this.chosen);
  }

  word(id) {
    return this.words[id] ?? `#${id}`;
  }

  // The share of a query's attention in a cell of a head's map; null if the map is not here.
  map(layer, head) {
    const place = this.mapHeads.findIndex(([l, h]) => l === layer && h === head);
    if (place < 0) return null;
    const size = (this.mapCells * (this.mapCells + 1)) / 2;
    const cells = this.maps8.subarray(place * size, (place + 1) * size);
    return (row, column) => (column > row ? 0 : cells[(row * (row + 1)) / 2 + column] / 255);
  }
}

const range = (count) => Array.from({ length: count }, (_, n) => n);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / (values.length || 1);
const percent = (share) => {
  const value = 100 * share;
  return `${value >= 99.95 ? "100" : value >= 10 ? value.toFixed(1) : value.toPrecision(2)} %`;
};
const small = (share) => (share > 0 && share < 0.00005 ? "< 0.01 %" : percent(share));

// An element. A function as an attribute listens to the event of that name; text stays text.
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (name === "style") for (const [key, x] of Object.entries(value)) node.style.setProperty(key, x);
    else if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? "" : value);
    }
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

// A token's text where it must be seen: with marks for what has no shape of its own.
function visible(text) {
  if (text === "") return "∅";
  return text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ +| +$/g, (blank) => "␣".repeat(blank.length));
}

// --- Colours, which follow the scheme of the page

const scheme = window.matchMedia("(prefers-color-scheme: dark)");
const redraws = [];
scheme.addEventListener("change", () => redraws.forEach((redraw) => redraw()));
let resizing = 0;
window.addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => redraws.forEach((redraw) => redraw()), 120);
});

// Ramps from the paper to the ink, by luminance: 0 is next to nothing, 1 all of it.
const RAMPS = {
  light: [[247, 247, 244], [200, 221, 240], [122, 175, 222], [44, 110, 184], [12, 47, 105]],
  dark: [[30, 33, 39], [24, 58, 94], [36, 104, 163], [95, 168, 226], [214, 236, 255]],
};
const DIVERGING = {
  light: [[176, 58, 10], [235, 170, 130], [247, 247, 244], [140, 185, 226], [20, 82, 160]],
  dark: [[255, 170, 120], [150, 76, 40], [30, 33, 39], [40, 92, 146], [130, 196, 250]],
};

function colour(value, ramps = RAMPS) {
  const ramp = ramps[scheme.matches ? "dark" : "light"];
  const place = Math.min(1, Math.max(0, value)) * (ramp.length - 1);
  const low = Math.min(ramp.length - 2, Math.floor(place));
  const part = place - low;
  return ramp[low].map((x, n) => Math.round(x + (ramp[low + 1][n] - x) * part));
}

const css = ([red, green, blue]) => `rgb(${red} ${green} ${blue})`;

// --- Heat maps on a canvas, with a reading of the cell under the pointer

// rows, columns: counts. value(row, column): 0 to 1. say(row, column): the reading. options: ramps,
// pick(row, column) for clicks, mark(): a [row, column] to frame, ratio: height by width,
// cell: [least, most] height of a row in pixels, label: for readers of the screen.
function heat(rows, columns, value, say, options = {}) {
  const canvas = el("canvas", { role: "img", "aria-label": options.label ?? "", class: "heat" });
  const reading = el("div", { class: "reading", "aria-live": "off" }, options.hint ?? "");
  const box = el("div", { class: "heatbox" }, canvas, reading);
  const [least, most] = options.cell ?? [4, 18];
  function draw() {
    const width = box.clientWidth || 300;
    const ratio = window.devicePixelRatio || 1;
    const tall = options.square
      ? width
      : rows * Math.min(most, Math.max(least, (width * (options.ratio ?? 0.4)) / rows));
    canvas.style.height = `${tall}px`;
    canvas.width = Math.max(1, Math.round(width * ratio));
    canvas.height = Math.max(1, Math.round(tall * ratio));
    const image = new ImageData(columns, rows);
    for (let row = 0; row < rows; row += 1) {
      for (let column = 0; column < columns; column += 1) {
        const shade = value(row, column);
        const at = 4 * (row * columns + column);
        if (shade === null) continue;
        image.data.set(colour(shade, options.ramps), at);
        image.data[at + 3] = 255;
      }
    }
    const drawing = canvas.getContext("2d");
    drawing.imageSmoothingEnabled = columns > canvas.width;
    const cells = new OffscreenCanvas(columns, rows);
    cells.getContext("2d").putImageData(image, 0, 0);
    drawing.drawImage(cells, 0, 0, canvas.width, canvas.height);
    const across = canvas.width / columns;
    const down = canvas.height / rows;
    if (across / ratio >= 7 && down / ratio >= 7) grid(drawing, rows, columns, across, down, ratio);
    const marked = options.mark?.();
    if (marked) {
      drawing.strokeStyle = getComputedStyle(document.body).getPropertyValue("--s1");
      drawing.lineWidth = 2 * ratio;
      drawing.strokeRect(marked[1] * across, marked[0] * down, across, down);
    }
  }
  const place = (event) => {
    const frame = canvas.getBoundingClientRect();
    const row = Math.floor(((event.clientY - frame.top) / frame.height) * rows);
    const column = Math.floor(((event.clientX - frame.left) / frame.width) * columns);
    return [Math.min(rows - 1, Math.max(0, row)), Math.min(columns - 1, Math.max(0, column))];
  };
  canvas.addEventListener("pointermove", (event) => (reading.textContent = say(...place(event))));
  canvas.addEventListener("pointerleave", () => (reading.textContent = options.hint ?? ""));
  if (options.pick) {
    canvas.classList.add("pickable");
    canvas.addEventListener("click", (event) => options.pick(...place(event)));
  }
  box.draw = draw;
  redraws.push(() => box.isConnected && draw());
  requestAnimationFrame(draw);
  return box;
}

function grid(drawing, rows, columns, across, down, ratio) {
  drawing.strokeStyle = getComputedStyle(document.body).getPropertyValue("--paper");
  drawing.lineWidth = ratio;
  drawing.beginPath();
  for (let column = 1; column < columns; column += 1) {
    drawing.moveTo(Math.round(column * across), 0);
    drawing.lineTo(Math.round(column * across), rows * down);
  }
  for (let row = 1; row < rows; row += 1) {
    drawing.moveTo(0, Math.round(row * down));
    drawing.lineTo(columns * across, Math.round(row * down));
  }
  drawing.stroke();
}

// --- Controls

// Buttons of which one is pressed. options: [value, label]; change(value).
function choice(label, options, value, change) {
  const buttons = options.map(([own, text]) => {
    const button = el("button", { type: "button", "aria-pressed": String(own === value) }, text);
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      change(own);
    });
    return button;
  });
  return el("div", { class: "choice", role: "group", "aria-label": label }, ...buttons);
}

// A select of layers.
function layerSelect(label, layers, value, change) {
  const options = layers.map((n) => el("option", { value: n, selected: n === value }, `layer ${n}`));
  const select = el("select", { "aria-label": label }, ...options);
  select.addEventListener("change", () => change(Number(select.value)));
  return select;
}

// The same part for each x-ray, side by side under its letter where there are two.
function sides(traces, build) {
  const parts = traces.map((trace) =>
    el("div", { class: "side" }, traces.length > 1 ? el("div", { class: "letter" }, `${trace.side} `, el("span", {}, trace.name)) : null, build(trace)));
  return el("div", { class: traces.length > 1 ? "sides two" : "sides" }, ...parts);
}

// A bar of shares in the colours of what attention looks at.
function stack(masses) {
  return el("div", { class: "stack" }, ...masses.slice(0, 6).map((mass, look) =>
    el("i", { class: `look${look}`, style: { width: `${100 * mass}%` }, title: `${LOOKS[look]} ${percent(mass)}` })));
}

function legend(names) {
  return el("div", { class: "legend" }, ...names.map(([kind, name]) =>
    el("span", {}, el("i", { class: kind }), name)));
}

const traces = DATA.traces.map((raw, n) => new Trace(raw, SIDES[n]));
const sameText = traces.length === 2 && traces[0].ids.join() === traces[1].ids.join();
