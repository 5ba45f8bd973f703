// TeX's commands that take arguments: each reads them from the parser and returns its element.

import { closing, fence, m, row, space, Unreadable } from "./mathml.js";

const fraction = (parser) => m("mfrac", {}, parser.argument(), parser.argument());
const style = (displaystyle, node) => m("mstyle", { displaystyle }, node);
const text = (parser) => m("mtext", {}, parser.raw().replaceAll(" ", "\u00a0"));
const sized = (parser) => m("mo", { stretchy: "true", minsize: "1.4em" }, parser.delimiter());
const lined = (side) => (parser) => m("mrow", { class: side }, parser.argument());
const nothing = () => m("mrow");

function root(parser) {
  if (!parser.take("[")) return m("msqrt", {}, parser.argument());
  const index = row(parser.row(() => parser.peek("]")));
  if (!parser.take("]")) throw new Unreadable();
  return m("mroot", {}, parser.argument(), index);
}

function binomial(parser) {
  const both = m("mfrac", { linethickness: "0" }, parser.argument(), parser.argument());
  return m("mrow", {}, fence("("), both, closing(")"));
}

function stacked(parser) {
  const over = parser.argument();
  return m("mover", {}, parser.argument(), over);
}

function beneath(parser) {
  const under = parser.argument();
  return m("munder", {}, parser.argument(), under);
}

function negated(parser) {
  const node = parser.atom();
  node.append("\u0338");
  return node;
}

function modulo(parser) {
  const inner = [m("mi", {}, "mod"), space("0.3333em"), parser.argument()];
  return m("mrow", {}, space("1em"), parser.operator("("), ...inner, parser.operator(")"));
}

export const COMMANDS = {
  frac: fraction,
  tfrac: (parser) => style("false", fraction(parser)),
  dfrac: (parser) => style("true", fraction(parser)),
  cfrac: (parser) => style("true", fraction(parser)),
  binom: binomial,
  dbinom: binomial,
  tbinom: binomial,
  sqrt: root,
  text, textrm: text, textnormal: text, textbf: text, textit: text, texttt: text, mbox: text,
  operatorname: (parser) => m("mi", { mathvariant: "normal" }, parser.raw()),
  "operatorname*": (parser) => m("mi", { mathvariant: "normal" }, parser.raw()),
  left: (parser) => parser.left(),
  begin: (parser) => parser.environment(),
  big: sized, Big: sized, bigg: sized, Bigg: sized, bigl: sized, bigr: sized, Bigl: sized,
  Bigr: sized, biggl: sized, biggr: sized, Biggl: sized, Biggr: sized, bigm: sized,
  stackrel: stacked, overset: stacked, underset: beneath,
  boxed: lined("boxed"),
  overline: lined("overline"),
  underline: lined("underline"),
  not: negated,
  pmod: modulo,
  bmod: () => m("mo", { lspace: "0.2222em", rspace: "0.2222em" }, "mod"),
  mod: () => m("mo", { lspace: "1em", rspace: "0.3333em" }, "mod"),
  phantom: (parser) => m("mphantom", {}, parser.argument()),
  displaystyle: nothing, textstyle: nothing, limits: nothing, nolimits: nothing, nonumber: nothing,
  notag: nothing,
  tag: (parser) => m("mtext", {}, `\u2003(${parser.raw()})`),
};
