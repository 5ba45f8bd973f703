// What MathML is built of.

const MATHML = "http://www.w3.org/1998/Math/MathML";

// TeX that is not understood.
export class Unreadable extends Error {}

export function m(tag, attributes = {}, ...children) {
  const node = document.createElementNS(MATHML, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export const row = (nodes) => (nodes.length === 1 ? nodes[0] : m("mrow", {}, ...nodes));
export const fence = (text) => m("mo", { fence: "true", stretchy: "true", form: "prefix" }, text);
export const closing = (text) => m("mo", { fence: "true", stretchy: "true", form: "postfix" }, text);
export const space = (width) => m("mspace", { width });
