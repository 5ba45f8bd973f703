// TeX's maths -> MathML, for the part of TeX that answers use. What cannot be read is shown as source.

import { COMMANDS } from "./commands.js";
import { el } from "./dom.js";
import { closing, fence, m, row, space, Unreadable } from "./mathml.js";
import {
  ENVIRONMENTS, FONTS, FUNCTIONS, INTEGRALS, LETTERS, LIMITS, OPERATORS, OVER, SPACES, STRETCHED,
  SUMS, UNDER,
} from "./symbols.js";

const DEEPEST = 60;
const TOKEN = /\\(operatorname\*|[a-zA-Z]+|[^])|\s+|(\d+(?:\.\d+)?)|%[^\n]*|([^])/gu;

// A <math> element, or its source where that is not understood.
export function maths(source, display) {
  try {
    const parser = new Parser(source, display);
    const attributes = display ? { display: "block", tabindex: "0" } : {};
    const annotation = m("annotation", { encoding: "application/x-tex" }, source.trim());
    const math = m("math", attributes, m("semantics", {}, parser.whole(), annotation));
    return display ? el("span", { class: "wide maths" }, math) : math;
  } catch (error) {
    if (!(error instanceof Unreadable)) throw error;
    const mark = display ? "$$" : "$";
    return el("code", { class: display ? "tex block" : "tex" }, `${mark}${source}${mark}`);
  }
}

// {kind, text, from, to}; kind: "command", "number" or "character".
function tokens(source) {
  const found = [];
  for (const { 0: text, 1: command, 2: number, 3: character, index } of source.matchAll(TOKEN)) {
    const kind = command ? "command" : number ? "number" : character ? "character" : null;
    const place = { from: index, to: index + text.length };
    if (kind && text[0] !== "%") found.push({ kind, text: command ?? text, ...place });
  }
  return found;
}

class Parser {
  constructor(source, display) {
    this.source = source;
    this.tokens = tokens(source);
    this.at = 0;
    this.display = display;
    this.depth = 0;
    this.font = null;
  }

  whole() {
    const nodes = this.row(() => false);
    if (this.at < this.tokens.length) throw new Unreadable();
    return row(nodes);
  }

  peek(text, kind = "character") {
    const token = this.tokens[this.at];
    return Boolean(token) && token.kind === kind && token.text === text;
  }

  take(text, kind) {
    if (!this.peek(text, kind)) return false;
    this.at += 1;
    return true;
  }

  next() {
    const token = this.tokens[this.at];
    if (!token) throw new Unreadable();
    this.at += 1;
    return token;
  }

  // Atoms with their scripts, until what ends a row.
  row(ends) {
    if ((this.depth += 1) > DEEPEST) throw new Unreadable();
    const nodes = [];
    while (this.at < this.tokens.length && !ends()) {
      const token = this.tokens[this.at];
      nodes.push(this.scripts(this.atom(), token));
      if (token.kind === "command" && FUNCTIONS.has(token.text) && this.operandFollows()) {
        nodes.push(space("0.1667em"));
      }
    }
    this.depth -= 1;
    return nodes;
  }

  operandFollows() {
    const token = this.tokens[this.at];
    if (!token || token.text === "left") return false;
    return token.kind !== "character" || /[\p{L}{]/u.test(token.text);
  }

  scripts(base, token) {
    let under = null;
    let over = null;
    const primes = [];
    const sum = SUMS.has(token.text) || LIMITS.has(token.text);
    let limits = this.display && token.kind === "command" && sum;
    limits ||= token.text.startsWith("operatorname*") || /^(over|under)brace/.test(token.text);
    for (;;) {
      if (this.take("limits", "command")) limits = true;
      else if (this.take("nolimits", "command")) limits = false;
      else if (this.take("'")) primes.push("′");
      else if (!under && this.take("_")) under = this.argument();
      else if (!over && this.take("^")) over = this.argument();
      else break;
    }
    if (primes.length) over = row([m("mo", {}, primes.join("")), ...(over ? [over] : [])]);
    if (under && over) return m(limits ? "munderover" : "msubsup", {}, base, under, over);
    if (under) return m(limits ? "munder" : "msub", {}, base, under);
    if (over) return m(limits ? "mover" : "msup", {}, base, over);
    return base;
  }

  // A group or one token, of a number its first digit.
  argument() {
    if ((this.depth += 1) > DEEPEST) throw new Unreadable();
    const token = this.tokens[this.at];
    if (token?.kind === "number" && token.text.length > 1) {
      const rest = { ...token, text: token.text.slice(1), from: token.from + 1 };
      this.tokens.splice(this.at, 1, { ...token, text: token.text[0], to: rest.from }, rest);
    }
    const node = this.atom();
    this.depth -= 1;
    return node;
  }

  group() {
    const nodes = this.row(() => this.peek("}"));
    if (!this.take("}")) throw new Unreadable();
    return nodes.length === 1 ? nodes[0] : m("mrow", {}, ...nodes);
  }

  atom() {
    const token = this.next();
    if (token.kind === "command") return this.command(token.text);
    if (token.kind === "number") return m("mn", {}, this.styled(token.text));
    if (token.text === "{") return this.group();
    if (token.text === "~") return space("0.25em");
    if ("}^_&#$".includes(token.text)) throw new Unreadable();
    if (/\p{L}/u.test(token.text)) return this.letter(token.text);
    if (token.text === "'") return m("mo", {}, "′");
    return this.operator(token.text === "-" ? "−" : token.text === "*" ? "∗" : token.text);
  }

  // A bracket or bar that \left did not ask for keeps its size.
  operator(text) {
    if (/[|‖]/.test(text)) return m("mo", { stretchy: "false", lspace: "0", rspace: "0" }, text);
    return m("mo", /[()[\]{}⟨⟩⌊⌋⌈⌉/]/.test(text) ? { stretchy: "false" } : {}, text);
  }

  letter(text) {
    const upright = this.font === "mathrm";
    return m("mi", upright || this.font ? { mathvariant: "normal" } : {}, this.styled(text));
  }

  styled(text) {
    if (!this.font) return text;
    const [capital, small, digit, elsewhere = {}] = FONTS[this.font];
    return [...text].map((character) => {
      if (Object.hasOwn(elsewhere, character)) return elsewhere[character];
      const shift = (first, zero) =>
        first === null ? character : String.fromCodePoint(first + character.charCodeAt(0) - zero);
      if (/[A-Z]/.test(character)) return shift(capital, 65);
      if (/[a-z]/.test(character)) return shift(small, 97);
      return /\d/.test(character) ? shift(digit, 48) : character;
    }).join("");
  }

  command(name) {
    if (LETTERS.has(name)) return m("mi", {}, LETTERS.get(name));
    if (OPERATORS.has(name)) return this.operator(OPERATORS.get(name));
    if (SUMS.has(name)) return m("mo", { movablelimits: "false", largeop: "true" }, SUMS.get(name));
    if (INTEGRALS.has(name)) return m("mo", { largeop: "true" }, INTEGRALS.get(name));
    if (SPACES.has(name)) return space(SPACES.get(name));
    if (FUNCTIONS.has(name) || LIMITS.has(name)) {
      return m("mi", {}, name.replace(/^(arg|lim)(?=m|s|i)/, "$1 ")); // arg max, lim sup
    }
    if (Object.hasOwn(FONTS, name)) return this.inFont(name);
    if (OVER.has(name)) return this.marked("mover", OVER.get(name), STRETCHED.has(name));
    if (UNDER.has(name)) return this.marked("munder", UNDER.get(name), STRETCHED.has(name));
    if (Object.hasOwn(COMMANDS, name)) return COMMANDS[name](this);
    if ("{}|%&#$_".includes(name)) return this.operator(name === "|" ? "‖" : name);
    throw new Unreadable();
  }

  inFont(name) {
    const before = this.font;
    this.font = name;
    const node = this.argument();
    this.font = before;
    return node;
  }

  marked(tag, mark, stretchy) {
    const over = m("mo", { stretchy: String(stretchy) }, mark);
    return m(tag, { accent: String(!stretchy), accentunder: "true" }, this.argument(), over);
  }

  // The text between braces, as it was written.
  raw() {
    const open = this.next();
    if (open.text !== "{" || open.kind !== "character") return open.text;
    let depth = 1;
    for (;;) {
      const token = this.next();
      if (token.kind === "command") continue;
      if (token.text === "{") depth += 1;
      if (token.text === "}" && (depth -= 1) === 0) return this.source.slice(open.to, token.from);
    }
  }

  // A bracket after \left and its like; "." is none.
  delimiter() {
    const { kind, text } = this.next();
    if (kind === "command") {
      if (OPERATORS.has(text)) return OPERATORS.get(text);
      if ("{}|".includes(text)) return text === "|" ? "‖" : text;
      throw new Unreadable();
    }
    if (text === ".") return "";
    if (!"()[]|/<>".includes(text)) throw new Unreadable();
    return { "<": "⟨", ">": "⟩" }[text] ?? text;
  }

  left() {
    const nodes = [fence(this.delimiter())];
    for (;;) {
      nodes.push(...this.row(() => this.peek("right", "command") || this.peek("middle", "command")));
      const { text } = this.next();
      const mark = this.delimiter();
      nodes.push(text === "middle" ? m("mo", { stretchy: "true" }, mark) : closing(mark));
      if (text === "right") return m("mrow", {}, ...nodes);
    }
  }

  environment() {
    const name = this.raw();
    if (!Object.hasOwn(ENVIRONMENTS, name)) throw new Unreadable();
    const columns = name === "array" || name === "alignedat" ? this.raw() : "";
    const [open, close, set = ""] = ENVIRONMENTS[name];
    const display = this.display;
    this.display = set === "pairs" || name.startsWith("d");
    const rows = this.rows();
    this.display = display;
    if (this.raw() !== name) throw new Unreadable();
    const table = m("mtable", set ? { class: `columns-${set}` } : {}, ...rows);
    if (columns) alignColumns(rows, columns);
    if (set === "pairs") table.setAttribute("displaystyle", "true");
    const nodes = [open ? fence(open) : null, table, close ? closing(close) : null];
    return m("mrow", {}, ...nodes.filter(Boolean));
  }

  rows() {
    const rows = [];
    let cells = [];
    const commands = ["\\", "end", "hline"];
    const ends = () => this.peek("&") || commands.some((name) => this.peek(name, "command"));
    for (;;) {
      const nodes = this.row(ends);
      cells.push(m("mtd", {}, ...nodes));
      if (this.take("&")) continue;
      if (this.take("hline", "command")) {
        cells.pop();
        continue;
      }
      if (cells.length > 1 || nodes.length) rows.push(m("mtr", {}, ...cells));
      cells = [];
      if (this.take("end", "command")) return rows;
      if (!this.take("\\", "command")) throw new Unreadable();
      if (this.peek("[")) while (this.next().text !== "]");
    }
  }
}

// The columns of an array, as {lcr} says. MathML Core leaves alignment to style sheets.
function alignColumns(rows, columns) {
  const letters = columns.replace(/[^lcr]/g, "");
  for (const { children } of rows) {
    for (let n = 0; n < children.length; n += 1) {
      if (letters[n]) children[n].setAttribute("class", `column-${letters[n]}`);
    }
  }
}
