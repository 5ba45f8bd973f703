// Markdown within a paragraph, as CommonMark and GFM read it: text -> DOM nodes.
//
// HTML stays text, links go to the web or to mail only, and images are links, so that showing an
// answer makes no request.

import { el } from "./dom.js";
import { maths } from "./maths.js";

const SPECIAL = /[\\`*_~$<&![\]\n]|https?:\/\//g;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const ESCAPED = /\\([!-/:-@[-`{-~])/g;
// A link's target and title: (<address>), (address) or (address "title").
const TARGET =
  /\(\s*(?:<([^<>\n]*)>|((?:[^\s()\\]|\\.|\([^\s()]*\))*))(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)/y;
const ENTITY = /&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|(\w{2,8}));/y;
const ENTITIES = {
  amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", copy: "©", ndash: "–",
  mdash: "—", hellip: "…", times: "×", rarr: "→", larr: "←", le: "≤", ge: "≥", ne: "≠", deg: "°",
};
const DISPLAYED = /\$\$((?:[^$\\]|\\[^])+?)\$\$/y;
// As pandoc: no space inside the dollars, and no digit after them, so that prices stay prices.
const BETWEEN_DOLLARS =
  /\$(?![\s$])((?:[^$\\]|\\[^])*?[^\s\\$]|(?:[^$\\]|\\[^])*?\\[^\s])\$(?!\d)/y;
const LONGEST_MATHS = 4000;
const MOST_DELIMITERS = 400; // of emphasis in a paragraph; matching them may take their square

// The nodes of `text`.
export function inline(text) {
  return new Reader(text).read();
}

// A link's address where it is one that may be followed, else null.
export function safeAddress(text) {
  let url;
  try {
    url = new URL(text);
  } catch {
    return null;
  }
  return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
}

export function link(address, children) {
  return el("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, children);
}

class Reader {
  constructor(text) {
    this.source = text;
    this.at = 0;
    // Texts, nodes, and delimiters {mark, count, size, opens, closes} of emphasis or links.
    this.items = [];
    this.brackets = []; // the places of open brackets among the items
    this.places = new Map(); // of texts that were looked for, from `at` on
  }

  read() {
    while (this.at < this.source.length) {
      SPECIAL.lastIndex = this.at;
      const found = SPECIAL.exec(this.source);
      const next = found ? found.index : this.source.length;
      this.text(this.source.slice(this.at, next));
      this.at = next;
      if (found) this.special(found[0]);
    }
    return emphasized(this.items);
  }

  text(text) {
    if (!text) return;
    const last = this.items.length - 1;
    if (typeof this.items[last] === "string") this.items[last] += text;
    else this.items.push(text);
  }

  literal(length = 1) {
    this.text(this.source.slice(this.at, this.at + length));
    this.at += length;
  }

  // The match of a sticky expression here, which is then passed.
  match(expression) {
    expression.lastIndex = this.at;
    const found = expression.exec(this.source);
    if (found) this.at = expression.lastIndex;
    return found;
  }

  special(mark) {
    switch (mark) {
      case "\\": return this.escape();
      case "`": return this.code();
      case "$": return this.dollars();
      case "<": return this.angle();
      case "&": return this.entity();
      case "\n": return this.lineBreak();
      case "!": return this.source[this.at + 1] === "[" ? this.open("![") : this.literal();
      case "[": return this.open("[");
      case "]": return this.close();
      case "*": case "_": case "~": return this.delimiter(mark);
      default: return this.bareLink();
    }
  }

  escape() {
    const next = this.source[this.at + 1];
    if ((next === "(" || next === "[") && this.bracketed()) return;
    this.at += 1;
    if (next === "\n") {
      this.at += 1;
      this.items.push(el("br"));
    } else if (next && ESCAPABLE.test(next)) this.literal();
    else this.text("\\");
  }

  code() {
    const run = this.match(/`+/y)[0];
    const closing = this.run(run.length);
    if (closing === undefined) return this.text(run);
    let code = this.source.slice(this.at, closing).replaceAll("\n", " ");
    if (/^ .* $/.test(code) && code.trim()) code = code.slice(1, -1);
    this.items.push(el("code", {}, code));
    this.at = closing + run.length;
  }

  // Where the next run of so many backticks is.
  run(length) {
    if (!this.runs) {
      this.runs = new Map();
      for (const { 0: { length: size }, index } of this.source.matchAll(/`+/g)) {
        if (!this.runs.has(size)) this.runs.set(size, []);
        this.runs.get(size).push(index);
      }
    }
    const places = this.runs.get(length) ?? [];
    while (places[0] < this.at) places.shift();
    return places[0];
  }

  // The next place of a text, or -1; looked for once, so that many marks without an end cost little.
  place(text) {
    let place = this.places.get(text);
    if (place === undefined || (place >= 0 && place < this.at)) {
      place = this.source.indexOf(text, this.at);
    }
    this.places.set(text, place);
    return place;
  }

  dollars() {
    const displayed = this.match(DISPLAYED);
    const found = displayed ?? this.match(BETWEEN_DOLLARS);
    if (!found) return this.literal();
    return this.items.push(maths(found[1], displayed !== null));
  }

  // What is between \( and \), or \[ and \], if here is the first of them.
  bracketed() {
    const display = this.source[this.at + 1] === "[";
    const end = this.place(display ? "\\]" : "\\)");
    if (end < 0 || end - this.at > LONGEST_MATHS) return false;
    this.items.push(maths(this.source.slice(this.at + 2, end), display));
    this.at = end + 2;
    return true;
  }

  angle() {
    if (this.match(/<br\s*\/?>/iy)) return this.items.push(el("br")); // models write it in tables
    const found = this.match(/<((?:https?|mailto):[^\s<>]+)>/iy);
    const address = found && safeAddress(found[1]);
    if (address) return this.items.push(link(address, found[1]));
    if (found) this.at -= found[0].length;
    return this.literal();
  }

  entity() {
    const found = this.match(ENTITY);
    if (!found) return this.literal();
    const [source, decimal, hexadecimal, name] = found;
    const code = decimal ? parseInt(decimal, 10) : parseInt(hexadecimal, 16);
    if (name) return this.text(Object.hasOwn(ENTITIES, name) ? ENTITIES[name] : source);
    return this.text(code && code <= 0x10ffff ? String.fromCodePoint(code) : "\ufffd");
  }

  // Two spaces before it make it a line of its own.
  lineBreak() {
    const last = this.items.at(-1);
    const hard = typeof last === "string" && last.endsWith("  ");
    if (typeof last === "string") this.items[this.items.length - 1] = last.trimEnd();
    this.at += 1;
    this.match(/[ \t]*/y);
    if (hard) this.items.push(el("br"));
    else this.text("\n");
  }

  bareLink() {
    const before = this.source[this.at - 1] ?? " ";
    const found = /\w/.test(before) ? null : this.match(/https?:\/\/[^\s<>"`\]]+/y);
    if (!found) return this.literal(4);
    const shown = withoutTrail(found[0]);
    this.at -= found[0].length - shown.length;
    const address = safeAddress(shown);
    return address ? this.items.push(link(address, shown)) : this.text(shown);
  }

  delimiter(mark) {
    const before = this.source[this.at - 1] ?? " ";
    const run = this.match(mark === "*" ? /\*+/y : mark === "_" ? /_+/y : /~+/y)[0];
    const after = this.source[this.at] ?? " ";
    if (mark === "~" && run.length !== 2) return this.text(run);
    const left = !/\s/.test(after) && (!PUNCTUATION.test(after) || !inWord(before));
    const right = !/\s/.test(before) && (!PUNCTUATION.test(before) || !inWord(after));
    const within = mark === "_" && left && right;
    const opens = left && (!within || PUNCTUATION.test(before));
    const closes = right && (!within || PUNCTUATION.test(after));
    return this.items.push({ mark, count: run.length, size: run.length, opens, closes });
  }

  open(mark) {
    this.brackets.push(this.items.length);
    this.items.push({ mark, count: 1, size: 1, opens: false, closes: false });
    this.at += mark.length;
  }

  close() {
    const place = this.brackets.pop();
    if (place === undefined) return this.literal();
    this.at += 1;
    const found = this.match(TARGET);
    const address = found && safeAddress((found[1] ?? found[2]).replace(ESCAPED, "$1"));
    if (!address) {
      this.text(`]${found?.[0] ?? ""}`);
      return;
    }
    const [opener, ...inside] = this.items.splice(place);
    const children = emphasized(inside);
    const image = opener.mark === "![";
    const anchor = link(address, children);
    for (const inner of anchor.querySelectorAll("a")) inner.replaceWith(...inner.childNodes);
    if (opener.mark === "![") anchor.prepend(children.length ? "Image: " : "Image");
    this.items.push(anchor);
  }
}

function inWord(character) {
  return !/\s/.test(character) && !PUNCTUATION.test(character);
}

// An address without the punctuation that ends a sentence, nor a bracket that it does not open.
function withoutTrail(address) {
  let end = address.length;
  for (;;) {
    const last = address[end - 1];
    const kept = address.slice(0, end);
    const unopened = last === ")" && kept.split(")").length > kept.split("(").length;
    if (!unopened && !/[.,;:!?'"*_~]/.test(last)) return kept;
    end -= 1;
  }
}

// The nodes and texts of items, in which pairs of delimiters have become elements.
function emphasized(items) {
  if (items.filter(isMark).length <= MOST_DELIMITERS) pair(items);
  return shown(items);
}

function isMark(item) {
  return typeof item !== "string" && !(item instanceof Node);
}

// Items with delimiters as texts, and texts that follow each other as one.
function shown(items) {
  const merged = [];
  let text = "";
  for (const item of items) {
    if (item instanceof Node) {
      if (text) merged.push(text);
      text = "";
      merged.push(item);
    } else if (typeof item === "string") text += item;
    else text += item.mark.endsWith("[") ? item.mark : item.mark.repeat(item.count);
  }
  if (text) merged.push(text);
  return merged;
}

function pair(items) {
  for (let at = 0; at < items.length; at += 1) {
    const closer = items[at];
    if (!isMark(closer) || !closer.closes) continue;
    const from = openerOf(items, at);
    if (from < 0) continue;
    const opener = items[from];
    const used = Math.min(opener.count, closer.count) >= 2 ? 2 : 1;
    const tag = closer.mark === "~" ? "s" : used === 2 ? "strong" : "em";
    const inside = items.slice(from + 1, at);
    opener.count -= used;
    closer.count -= used;
    items.splice(from + 1, inside.length, el(tag, {}, shown(inside)));
    at = from + 2; // the closer's new place
    if (!opener.count) {
      items.splice(from, 1);
      at -= 1;
    }
    if (!closer.count) items.splice(at, 1);
    at -= 1; // it may close another
  }
}

function openerOf(items, at) {
  const closer = items[at];
  for (let from = at - 1; from >= 0; from -= 1) {
    const item = items[from];
    if (!isMark(item) || item.mark !== closer.mark || !item.opens) continue;
    const both = item.closes || closer.opens;
    const odd = both && (item.size + closer.size) % 3 === 0;
    if (!odd || (item.size % 3 === 0 && closer.size % 3 === 0)) return from;
  }
  return -1;
}
