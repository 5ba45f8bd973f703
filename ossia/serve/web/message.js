// One message as an article: its parts, what it cost, and what can be done with it.

import { renderMarkdown } from "./blocks.js";
import { highlighted } from "./code.js";
import { callsOf, textOf } from "./conversation.js";
import { copyButton, counted, el, icon, iconButton } from "./dom.js";
import { speed } from "./reply.js";
import { XrayPanel } from "./xray.js";

// actions: edit(node, text), again(node), turn(node, step), answer(node), key(); what buttons do.
export class MessageView {
  constructor(node, actions) {
    this.node = node;
    this.actions = actions;
    this.parts = [];
    this.body = el("div", { class: "body" });
    this.xray = node.role === "user" ? null : new XrayPanel(node);
    this.problem = el("div", { class: "problem", role: "alert", hidden: true });
    this.foot = el("footer");
    this.who = el("h2", { class: "unseen" }, node.role === "user" ? "You" : node.model || "Assistant");
    const attributes = { class: `message ${node.role}`, tabindex: "-1", "data-id": node.id };
    this.article = el("article", attributes, this.who, this.body, this.xray?.box, this.problem, this.foot);
    this.article.addEventListener("keydown", (event) => this.key(event));
  }

  // place: {index, count} among the versions of the message. running: whether it is being written.
  show(place, running) {
    this.place = place;
    this.running = running;
    if (this.node.role === "user") this.showText();
    else this.showParts();
    this.xray?.show();
    this.showProblem();
    if (!this.foot.contains(document.activeElement) || running !== this.footRunning) this.showFoot();
    this.article.setAttribute("aria-label", this.name());
    this.article.setAttribute("aria-busy", String(running));
  }

  name() {
    const who = this.node.role === "user" ? "You" : this.node.model || "Assistant";
    const { index, count } = this.place;
    return count > 1 ? `${who}, version ${index + 1} of ${count}` : who;
  }

  showText() {
    if (!this.editor) this.body.textContent = this.node.content;
  }

  showParts() {
    const { parts } = this.node;
    const waiting = this.running && !parts.length;
    if (waiting && !this.waiting) this.body.append((this.waiting = waitingMark()));
    if (!waiting) this.waiting?.remove();
    parts.forEach((part, n) => {
      this.parts[n] ??= this.addPart(part);
      this.parts[n](this.running && n === parts.length - 1, this.running);
    });
  }

  // Append what shows a part. Returns what shows it anew, given whether it may still grow, and
  // whether the message does.
  addPart(part) {
    if (part.type === "call") {
      const card = el("section", { class: "call", "aria-label": `Call of ${part.name}` });
      this.body.append(card);
      const answered = () => this.actions.answer(this.node);
      return (_, running) => showCall(card, part, statusOf(part, running), answered);
    }
    if (part.type === "text") {
      const prose = el("div", { class: "prose" });
      this.body.append(prose);
      return once(part, () => renderMarkdown(prose, part.text));
    }
    // As it was written: a model thinks in formulas like 3*4*5, which are no Markdown.
    const title = el("span");
    const text = el("div", { class: "thoughts" });
    const details = el("details", { class: "reasoning" }, el("summary", {}, title), text);
    this.body.append(details);
    details.addEventListener("toggle", () => (text.textContent = part.text));
    return (growing) => {
      title.textContent = growing ? "Thinking…" : `Thought${duration(part.seconds)}`;
      if (details.open) text.textContent = part.text;
    };
  }

  showProblem() {
    const { error, status, state } = this.node;
    const shown = `${state} ${error} ${this.running}`;
    if (shown === this.shownProblem) return;
    this.shownProblem = shown;
    const text = this.running ? null : error ?? NOTES[this.node.finish] ?? NOTES[state];
    this.problem.hidden = !text;
    this.problem.classList.toggle("failed", Boolean(error));
    if (!text) return this.problem.replaceChildren();
    const button = (label, click) => el("button", { type: "button", click }, label);
    const again = button("Try again", () => this.actions.again(this.node));
    const key = button("Enter the key", () => this.actions.key());
    this.problem.replaceChildren(el("span", {}, text), error ? (status === 401 ? key : again) : "");
  }

  showFoot() {
    this.footRunning = this.running;
    const { node, actions } = this;
    const buttons = [];
    if (!this.running) {
      buttons.push(copyButton("Copy this message", () => textOf(node)));
      const edit = () => iconButton("Edit this message", "edit", () => this.edit());
      const again = () => iconButton("Answer again", "again", () => actions.again(node));
      buttons.push(node.role === "user" ? edit() : again());
    }
    const versions = this.place.count > 1 ? [this.versions()] : [];
    const cost = node.stats?.tokens ? costOf(node.stats, this.running) : [];
    const focused = this.foot.contains(document.activeElement) ? document.activeElement : null;
    this.foot.replaceChildren(...versions, ...buttons, el("span", { class: "cost" }, ...cost));
    if (focused) this.foot.querySelector(`[title="${focused.title}"]`)?.focus({ preventScroll: true });
  }

  versions() {
    const { index, count } = this.place;
    const go = (step) => () => this.actions.turn(this.node, step);
    const before = iconButton("Previous version", "left", go(-1), { disabled: index === 0 });
    const after = iconButton("Next version", "right", go(1), { disabled: index === count - 1 });
    return el("span", { class: "versions" }, before, el("span", {}, `${index + 1}/${count}`), after);
  }

  edit() {
    if (this.editor) return;
    const area = el("textarea", { "aria-label": "Edit this message", rows: "3" });
    area.value = this.node.content;
    const close = () => {
      this.editor = null;
      this.article.classList.remove("edited");
      this.showText();
      this.article.focus();
    };
    const save = () => {
      const text = area.value.trim();
      close();
      if (text) this.actions.edit(this.node, text);
    };
    area.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Escape") close();
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
    });
    const cancel = el("button", { type: "button", click: close }, "Cancel");
    const send = el("button", { type: "button", class: "primary", click: save }, "Send");
    this.editor = el("div", { class: "editor" }, area, el("div", { class: "row" }, cancel, send));
    this.article.classList.add("edited");
    this.body.replaceChildren(this.editor);
    area.focus();
  }

  key(event) {
    if (event.target !== this.article || event.ctrlKey || event.metaKey || event.altKey) return;
    const { node, actions, running } = this;
    const does = {
      ArrowLeft: () => actions.turn(node, -1),
      ArrowRight: () => actions.turn(node, 1),
      e: () => node.role === "user" && this.edit(),
      r: () => node.role !== "user" && !running && actions.again(node),
      c: () => this.foot.querySelector("[aria-label='Copy this message']")?.click(),
    }[event.key];
    if (!does) return;
    event.preventDefault();
    does();
  }
}

const NOTES = {
  length: "Cut off at the maximum number of tokens.",
  stopped: "Stopped.",
  running: "The page was closed while this was written.",
};

// A function that does its work only when a part's text has changed.
function once(part, work) {
  let shown = null;
  return () => {
    if (shown !== part.text) work();
    shown = part.text;
  };
}

function waitingMark() {
  const dots = [el("i"), el("i"), el("i")];
  return el("div", { class: "waiting", role: "img", "aria-label": "Waiting for the answer" }, ...dots);
}

function duration(seconds) {
  if (!(seconds >= 0.1)) return "";
  return seconds < 10 ? ` for ${seconds.toFixed(1)} s` : ` for ${Math.round(seconds)} s`;
}

function costOf(stats, running) {
  const about = stats.exact || running ? "" : "about ";
  const said = [about + counted(stats.tokens, "token")];
  const rate = speed(stats);
  if (rate) said.unshift(`${rate < 10 ? rate.toFixed(1) : Math.round(rate).toLocaleString()} tokens/s`);
  if (stats.wait !== null) said.push(`first after ${short(stats.wait)}`);
  if (stats.prompt) said.push(`prompt ${stats.prompt.toLocaleString()}`);
  if (stats.cached) said.push(`${stats.cached.toLocaleString()} of it cached`);
  const last = said.pop();
  return [...said.flatMap((text) => [el("span", {}, `${text} ·`), " "]), el("span", {}, last)];
}

function short(seconds) {
  return seconds < 1 ? `${Math.round(1000 * seconds)} ms` : `${seconds.toFixed(1)} s`;
}

// A call as a card: its name, its arguments, and its result or the fields to give one.
function showCall(card, part, status, answered) {
  const state = `${status} ${part.arguments.length}`;
  if (card.state === state) return;
  card.state = state;
  const labelled = part.server && part.server !== part.name;
  const name = labelled ? `${part.server} · ${part.name}` : part.name;
  const head = el("header", {}, icon("tool"), el("strong", {}, name), el("span", {}, status));
  const rest = [argumentsOf(part, status === WRITING)];
  if (part.result !== null) rest.push(resultOf(part));
  else if (status === WAITING) rest.push(resultForm(part, answered));
  card.replaceChildren(head, ...rest);
}

const WRITING = "writing…";
const WAITING = "waits for a result";

function statusOf(part, running) {
  if (part.result !== null) return part.failed ? "failed" : "done";
  if (part.server) return running ? "running…" : "has no result";
  return running ? WRITING : WAITING; // of a message that is complete
}

function argumentsOf(part, growing) {
  let value = null;
  try {
    value = JSON.parse(part.arguments);
  } catch {
    // Not finished, or not JSON: it is shown as it was written.
  }
  if (growing || value === null || typeof value !== "object" || Array.isArray(value)) {
    const language = part.name === "python" ? "python" : ""; // whose calls are code, not JSON
    return el("pre", {}, highlighted(part.arguments, language));
  }
  if (!Object.keys(value).length) return "";
  const rows = Object.entries(value).flatMap(([name, given]) => [
    el("dt", {}, name),
    el("dd", {}, typeof given === "string" ? given : JSON.stringify(given, null, 1)),
  ]);
  return el("dl", {}, ...rows);
}

function resultOf(part) {
  return el("details", { class: "result", open: part.result.length < 400 },
    el("summary", {}, "Result"), el("pre", { tabindex: "0" }, part.result));
}

function resultForm(part, answered) {
  const label = { "aria-label": `Result of ${part.name}`, placeholder: "The result of this call" };
  const area = el("textarea", { rows: "2", ...label });
  const send = () => {
    part.result = area.value;
    answered();
  };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
  });
  const button = el("button", { type: "button", click: send }, "Give this result");
  return el("div", { class: "row result-form" }, area, button);
}
