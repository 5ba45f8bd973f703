// What happens inside the model while it answers: what the server has seen at each token, drawn as
// it comes. It is kept for this tab alone, and not with the conversation.

import { counted, el } from "./dom.js";

// What attention looks at, as the server counts it.
const LOOKS = ["sinks", "first token", "itself", "previous token", "near", "beyond the window"];
const ROWS = [
  ["entropy", (token) => (token.entropy ?? 0) / 5, (token) => `${(token.entropy ?? 0).toFixed(2)} nats`],
  ["surprise", (token) => -(token.logprob ?? 0) / 8, (token) => `(p ${percent(Math.exp(token.logprob ?? 0))})`],
  ["sinks", (token) => token.attention[0] + token.attention[1], (token) => percent(token.attention[0] + token.attention[1])],
  ["beyond", (token) => token.attention[5], (token) => percent(token.attention[5])],
];
const LABELS = {
  entropy: "how unsure the model was",
  surprise: "how unlikely the token was",
  sinks: "attention on sinks and the first token",
  beyond: "attention beyond the window",
};
const HEIGHT = 16; // pixels of a row

const readings = new WeakMap(); // of each message

// More tokens of a message have been looked at.
export function see(node, tokens) {
  const found = readings.get(node) ?? [];
  found.push(...tokens);
  readings.set(node, found);
}

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / (values.length || 1);

// The panel of a message, which is hidden until there is something to show.
export class XrayPanel {
  constructor(node) {
    this.node = node;
    this.shown = 0;
    this.title = el("span");
    this.strip = el("canvas", { role: "img", "aria-label": "What is measured at each token" });
    this.map = el("canvas", { role: "img", "aria-label": "How often each expert was chosen" });
    this.reading = el("div", { class: "note" });
    this.mapTitle = el("div", { class: "note" }, "Experts: a row for each layer");
    const names = el("div", { class: "names" }, ROWS.map(([name]) => el("span", { title: LABELS[name] }, name)));
    const body = el("div", { class: "strip" }, names, this.strip);
    this.box = el("details", { class: "xray", open: true, hidden: true },
      el("summary", {}, this.title), body, this.reading, this.mapTitle, this.map);
    this.box.addEventListener("toggle", () => this.draw());
    this.strip.addEventListener("pointermove", (event) => this.point(event));
    this.strip.addEventListener("pointerleave", () => (this.reading.textContent = ""));
    new ResizeObserver(() => this.draw()).observe(this.box);
  }

  // Show what has come since.
  show() {
    const tokens = readings.get(this.node) ?? [];
    if (tokens.length === this.shown) return;
    this.shown = tokens.length;
    this.box.hidden = false;
    const entropy = mean(tokens.map((token) => token.entropy ?? 0)).toFixed(2);
    const sinks = mean(tokens.map((token) => token.attention[0] + token.attention[1]));
    const count = counted(tokens.length, "token");
    this.title.textContent = `Inside the model · ${count} · entropy ${entropy} nats · ${percent(sinks)} of attention on sinks and the first token`;
    this.draw();
  }

  draw() {
    const tokens = readings.get(this.node) ?? [];
    if (!tokens.length || !this.box.open) return;
    const style = getComputedStyle(this.box);
    const ink = style.getPropertyValue("color");
    const accent = style.getPropertyValue("accent-color");
    this.drawStrip(tokens, accent, ink);
    this.drawMap(tokens, accent);
  }

  drawStrip(tokens, accent, ink) {
    const { drawing, width, ratio } = sized(this.strip, ROWS.length * HEIGHT);
    const step = Math.min(14 * ratio, width / tokens.length);
    ROWS.forEach(([, value], row) => {
      const bottom = (row + 1) * HEIGHT * ratio - ratio;
      drawing.fillStyle = accent;
      tokens.forEach((token, n) => {
        const tall = Math.min(1, Math.max(0.03, value(token))) * (HEIGHT - 3) * ratio;
        drawing.fillRect(n * step, bottom - tall, Math.max(1, step - ratio), tall);
      });
      drawing.fillStyle = ink;
      drawing.globalAlpha = 0.15;
      drawing.fillRect(0, bottom, width, ratio);
      drawing.globalAlpha = 1;
    });
    this.step = step / ratio;
  }

  drawMap(tokens, accent) {
    const layers = tokens[0].experts.length;
    this.map.hidden = this.mapTitle.hidden = !layers;
    if (!layers) return;
    const counts = range(layers).map(() => new Map());
    for (const token of tokens) {
      token.experts.forEach((chosen, layer) => {
        for (const expert of chosen) counts[layer].set(expert, (counts[layer].get(expert) ?? 0) + 1);
      });
    }
    const experts = 1 + Math.max(...counts.flatMap((own) => [...own.keys()]));
    const most = Math.max(...counts.flatMap((own) => [...own.values()]));
    const tall = Math.max(3, Math.min(10, 160 / layers));
    const { drawing, width, ratio } = sized(this.map, layers * tall);
    drawing.fillStyle = accent;
    counts.forEach((own, layer) => {
      for (const [expert, count] of own) {
        drawing.globalAlpha = 0.12 + (0.88 * count) / most;
        const across = width / experts;
        drawing.fillRect(expert * across, layer * tall * ratio, Math.max(1, across - ratio), Math.max(1, (tall - 1) * ratio));
      }
    });
    drawing.globalAlpha = 1;
  }

  // Read the token under the pointer.
  point(event) {
    const tokens = readings.get(this.node) ?? [];
    const n = Math.floor((event.clientX - this.strip.getBoundingClientRect().left) / this.step);
    const token = tokens[Math.min(tokens.length - 1, Math.max(0, n))];
    const text = token.token.replaceAll("\n", "↵");
    const measured = ROWS.map(([name, , said]) => `${name} ${said(token)}`).join(" · ");
    const rank = token.rank === null ? "" : ` · rank ${token.rank.toLocaleString()}`;
    const looked = token.attention.indexOf(Math.max(...token.attention));
    this.reading.textContent = `“${text}” · ${measured}${rank} · looks most at: ${LOOKS[looked]}`;
  }
}

const range = (count) => Array.from({ length: count }, (_, n) => n);

// A canvas of its place's width, cleared: what draws on it, and its width in pixels of the screen.
function sized(canvas, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.style.height = `${height}px`;
  canvas.width = Math.max(1, Math.round((canvas.clientWidth || 300) * ratio));
  canvas.height = Math.round(height * ratio);
  return { drawing: canvas.getContext("2d"), width: canvas.width, ratio };
}
