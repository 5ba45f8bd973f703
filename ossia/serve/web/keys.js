// The keyboard: every shortcut, what it does, and how the page explains it.

import { el } from "./dom.js";

const MAC = /Mac|iPhone|iPad/.test(navigator.platform);
const CONTROL = MAC ? "⌘" : "Ctrl";

// does: the functions by name. Those that a message handles itself are only explained.
const SHORTCUTS = [
  ["Enter", "send; Shift+Enter begins a line"],
  ["Escape", "stop the answer, or leave a field", { key: "Escape", does: "stop" }],
  [`${CONTROL}+Shift+O`, "new conversation", { key: "o", control: true, shift: true, does: "fresh" }],
  [`${CONTROL}+K`, "find a conversation", { key: "k", control: true, does: "find" }],
  [`${CONTROL}+B`, "show or hide the conversations", { key: "b", control: true, does: "sidebar" }],
  [`${CONTROL}+,`, "settings", { key: ",", control: true, does: "settings" }],
  [`${CONTROL}+/`, "these shortcuts", { key: "/", control: true, does: "help" }],
  ["Alt+↑ Alt+↓", "previous or next message"],
  ["← →", "on a message: its previous or next version"],
  ["e", "on your message: edit it"],
  ["r", "on an answer: answer again"],
  ["c", "on a message: copy it"],
];

export function listen(does) {
  document.addEventListener("keydown", (event) => {
    if (event.altKey && (event.key === "ArrowUp" || event.key === "ArrowDown")) {
      event.preventDefault();
      return does.walk(event.key === "ArrowUp" ? -1 : 1);
    }
    const control = event.ctrlKey || event.metaKey;
    const found = SHORTCUTS.map(([, , shortcut]) => shortcut).find(
      (shortcut) =>
        shortcut?.key === (event.key.length === 1 ? event.key.toLowerCase() : event.key) &&
        Boolean(shortcut.control) === control &&
        Boolean(shortcut.shift) === event.shiftKey,
    );
    if (!found || document.querySelector("dialog:modal, :popover-open")) return undefined;
    if (control) event.preventDefault();
    return does[found.does]();
  });
}

export function explain(into) {
  for (const [keys, text] of SHORTCUTS) into.append(el("dt", {}, keys), el("dd", {}, text));
}
