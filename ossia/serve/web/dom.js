// Elements without markup: text is always a text node, so nothing a model writes is parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

const ICONS = {
  menu: "M4 7h16M4 12h16M4 17h10",
  plus: "M12 5v14M5 12h14",
  sliders: "M4 8h9M17 8h3M4 16h3M11 16h9M15 5.5v5M9 13.5v5",
  more: "M4.5 12h1M11.5 12h1M18.5 12h1",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  again: "M19 12a7 7 0 1 1-2-5M19 4v4h-4",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  down: "M12 5v14M6 13l6 6 6-6",
  trash: "M5 7h14M9 7V4h6v3M7 7l1 13h8l1-13",
  tool: "M8 7l-5 5 5 5M16 7l5 5-5 5",
  close: "M6 6l12 12M18 6L6 18",
  check: "M5 13l5 5L19 7",
};

// A function as an attribute's value listens to the event of that name; null leaves it out.
// Children are nodes, texts and lists of them.
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? "" : value);
    }
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) node.append(child);
  return node;
}

// A number of things, as in "1 token" and "1,234 tokens".
export function counted(number, thing) {
  return `${number.toLocaleString()} ${thing}${number === 1 ? "" : "s"}`;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

// A button that shows an icon and is named by its label.
export function iconButton(label, name, click, attributes = {}) {
  const described = { type: "button", class: "icon", "aria-label": label, title: label };
  return el("button", { ...described, ...attributes, click }, icon(name));
}

// Have an element hold these nodes in this order, and no others. What is in its place stays untouched.
export function arrange(into, nodes) {
  const kept = new Set(nodes);
  for (const node of [...into.children]) if (!kept.has(node)) node.remove();
  nodes.forEach((node, n) => {
    const there = into.children[n];
    if (there !== node) into.insertBefore(node, there ?? null);
  });
}

// Copying works without the clipboard API too, which pages have only over https or on localhost.
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea", { class: "unseen", "aria-hidden": "true" });
    const focused = document.activeElement;
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    focused?.focus({ preventScroll: true });
  }
}

// A button that copies what `text` returns, and shows for a moment that it has.
export function copyButton(label, text) {
  const button = iconButton(label, "copy", async () => {
    await copyText(text());
    button.replaceChildren(icon("check"));
    setTimeout(() => button.replaceChildren(icon("copy")), 1200);
  });
  return button;
}

// What a dialog was closed with; focus then returns to where it was.
export function answerOf(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
  });
}
