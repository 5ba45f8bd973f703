// The page: which conversation is shown, what its controls do, and what is being written.

import { Connection } from "./connection.js";
import * as conversations from "./conversation.js";
import { answerOf, arrange, el, icon } from "./dom.js";
import { Generation } from "./generation.js";
import { explain, listen } from "./keys.js";
import { Panel } from "./panels.js";
import { EFFORTS, settingsFields } from "./settings.js";
import * as store from "./store.js";
import { Thread } from "./thread.js";

const SAVE_EVERY = 1000; // milliseconds, while an answer grows
const ICONS = {
  "open-sidebar": "menu",
  "open-menu": "more",
  "open-settings": "sliders",
  "close-settings": "close",
  latest: "down",
};

const $ = (id) => document.getElementById(id);

class Page {
  constructor() {
    this.server = new Connection(() => this.showState());
    this.generations = new Map(); // by the id of their conversation
    this.removed = new Set(); // ids of conversations
    this.saves = 0; // that have begun
    this.conversation = this.newConversation(); // the one that is shown
    this.visiting = null; // the visit under way, until its conversation is loaded
    this.thread = new Thread($("scroller"), $("thread"), $("latest"), {
      edit: (node, text) => this.ask(node.parent, text),
      again: (node) => this.again(node),
      turn: (node, step) => this.turn(node, step),
      answer: (node) => this.results(node),
      key: () => this.server.askKey(),
    });
    this.sidebar = new Panel($("sidebar"), $("open-sidebar"), "(min-width: 60rem)", true);
    this.settings = new Panel($("settings"), $("open-settings"), "(min-width: 75rem)", false);
    this.drawing = false;
  }

  async start() {
    this.controls();
    $("message").focus(); // at once: later, something else may have been focused
    await this.visit(location.hash.slice(1));
    await this.listConversations();
    await this.server.ask();
  }

  // Show the conversation of this id, or `instead`, or a new one where there is none. If another is
  // shown before it is loaded, that one stays.
  async visit(id, instead = null) {
    const visit = (this.visiting = { id });
    const found = id && (await this.find(id).catch((error) => this.unkept(error)));
    if (this.visiting === visit) this.open(found || instead || this.newConversation());
  }

  // The conversation of this id. What is shown, or is being answered, is not loaded a second time.
  async find(id) {
    if (id === this.conversation.id) return this.conversation;
    return this.generations.get(id)?.conversation ?? (await store.load(id));
  }

  // Show what another tab has added to the conversation, unless that would disturb what is under way.
  async catchUp() {
    const { conversation: shown, saves } = this;
    this.listConversations();
    const found = await store.load(shown.id).catch(() => undefined);
    const changed = this.conversation !== shown || this.saves !== saves;
    if (changed || this.busy || !(found?.updated > shown.updated)) return;
    this.open(found, this.thread.follows);
  }

  // Whether something is being answered, loaded or typed that another copy would take away.
  get busy() {
    const typed = document.querySelector(".editor, .result-form textarea:not(:placeholder-shown)");
    return this.generation || this.visiting || this.field || typed;
  }

  // The field beside the messages that is being typed in: the title, or a setting.
  get field() {
    const { activeElement } = document;
    return activeElement?.closest("#title, #fields") ? activeElement : null;
  }

  newConversation() {
    return conversations.newConversation(this.usualSettings());
  }

  usualSettings() {
    try {
      return JSON.parse(store.setting("settings")) ?? {};
    } catch {
      return {};
    }
  }

  // --- What is shown

  open(conversation, follows = true) {
    this.visiting = null;
    this.field?.blur(); // what is typed there belongs to the conversation that was shown
    this.conversation = conversation;
    const fields = settingsFields(conversation.settings, (name, value) => this.set(name, value));
    $("fields").replaceChildren(...fields);
    $("effort").value = conversation.settings.effort ?? "";
    const saved = Object.keys(conversation.nodes).length > 1;
    history.replaceState(null, "", saved ? `#${conversation.id}` : location.pathname);
    this.thread.follows = follows;
    this.show();
  }

  // Show the conversation after a change of its path.
  show() {
    const { conversation } = this;
    const empty = !conversation.nodes.root.chosen;
    $("welcome").hidden = !empty;
    document.body.classList.toggle("empty", empty);
    if (document.activeElement !== $("title")) $("title").value = conversation.title;
    document.title = conversation.title ? `${conversation.title} — ossia` : "ossia";
    this.thread.show(conversation, this.generation?.node);
    this.showState();
    this.showCurrent();
  }

  // Mark the conversation in the sidebar.
  showCurrent() {
    for (const item of $("conversations").children) {
      const current = item.dataset.id === this.conversation.id;
      if (current) item.firstElementChild.setAttribute("aria-current", "true");
      else item.firstElementChild.removeAttribute("aria-current");
    }
  }

  showState() {
    const running = Boolean(this.generation);
    const label = running ? "Stop" : "Send";
    const button = $("send");
    if (button.title !== label) button.replaceChildren(icon(running ? "stop" : "send"));
    button.title = label;
    button.setAttribute("aria-label", label);
    button.disabled = !running && (!$("message").value.trim() || !this.server.model);
    this.showContext();
  }

  // How much of the model's context the last answer's prompt and text fill.
  showContext() {
    const most = this.server.model?.max_model_len;
    const { stats, parts = [] } = conversations.path(this.conversation).at(-1) ?? {};
    const once = !parts.some((part) => part.server); // else the prompt was read more than once
    const used = stats?.exact && once ? stats.prompt + stats.tokens : 0;
    const said = used && most ? `${used.toLocaleString()} of ${most.toLocaleString()} tokens` : "";
    $("context").textContent = said;
  }

  get generation() {
    return this.generations.get(this.conversation.id);
  }

  say(text) {
    $("said").textContent = text;
  }

  // --- What the controls do

  send() {
    const text = $("message").value.trim();
    if (this.generation || !text || !this.server.model) return;
    $("message").value = "";
    this.fit();
    this.ask(conversations.leaf(this.conversation), text);
  }

  ask(parent, content) {
    const node = conversations.add(this.conversation, parent, { role: "user", content });
    this.write(node.id);
  }

  again(node) {
    if (this.generation) return;
    if (conversations.neverBegan(node)) conversations.drop(this.conversation, node);
    this.write(node.parent);
  }

  results(node) {
    const open = conversations.callsOf(node).some((call) => call.result === null);
    if (open) this.thread.update(node, null);
    else this.write(node.id);
    this.save(this.conversation);
  }

  turn(node, step) {
    if (!conversations.turn(this.conversation, node, step)) return;
    this.show();
    const shown = this.conversation.nodes[this.conversation.nodes[node.parent].chosen];
    this.thread.focus(shown);
    this.save(this.conversation);
  }

  // Have the model answer the path that ends with `parent`.
  async write(parent) {
    const { conversation } = this;
    const message = { role: "assistant", model: $("model").value, state: "running", parts: [] };
    const node = conversations.add(conversation, parent, message);
    const generation = new Generation(conversation, node, this.server.key);
    this.generation?.stop(); // one at a time
    this.generations.set(conversation.id, generation);
    this.thread.follows = true;
    this.show();
    this.say("Answering");
    await this.save(conversation);
    this.listConversations();
    let saved = performance.now();
    await generation.run(() => {
      this.draw();
      if (performance.now() - saved > SAVE_EVERY) {
        saved = performance.now();
        this.save(conversation);
      }
    });
    const last = this.generations.get(conversation.id) === generation;
    if (last) this.generations.delete(conversation.id);
    if (this.conversation === conversation) this.show();
    const said = node.error ? "" : node.state === "stopped" ? "Stopped" : "The answer is complete";
    if (last) this.say(said);
    await this.save(conversation);
  }

  // Draw what has grown of the answer that is shown by then: at most once a frame, and less often the
  // longer drawing takes.
  draw() {
    if (this.drawing) return;
    this.drawing = true;
    setTimeout(() => requestAnimationFrame(() => {
      const began = performance.now();
      this.drawing = false;
      const node = this.generation?.node;
      if (node) this.thread.update(node, node);
      this.cost = performance.now() - began;
    }), Math.min(500, 3 * (this.cost ?? 0)));
  }

  set(name, value) {
    const { settings } = this.conversation;
    if (value === undefined || value === "") delete settings[name];
    else settings[name] = value;
    store.keep("settings", JSON.stringify(settings));
    if (this.conversation.nodes.root.chosen) this.save(this.conversation);
  }

  fit() {
    const area = $("message");
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight + 2}px`; // and its borders
    this.showState();
  }

  // --- What is kept

  async save(conversation) {
    if (this.removed.has(conversation.id)) return; // while its answer was being written
    this.saves += 1;
    try {
      await store.save(conversation);
      // An address that names another has just been entered: `hashchange` comes next.
      const unnamed = conversation === this.conversation && !location.hash;
      if (unnamed) history.replaceState(null, "", `#${conversation.id}`);
    } catch (error) {
      this.unkept(error);
    }
  }

  unkept(error) {
    const text = `This browser keeps no conversations: ${error.message}`;
    this.server.notice(text, "Close", () => this.server.notice(null));
  }

  async listConversations() {
    const found = await store.list().catch(() => []);
    const wanted = $("filter").value.trim().toLowerCase();
    const shown = found.filter(({ title }) => title.toLowerCase().includes(wanted));
    // A button that is replaced loses its focus, and a click.
    const there = new Map([...$("conversations").children].map((item) => [item.dataset.id, item]));
    const items = shown.map(({ id, title }) => {
      const item = there.get(id) ?? this.entry(id);
      item.firstElementChild.textContent = title || "Untitled";
      return item;
    });
    arrange($("conversations"), items);
    this.showCurrent();
  }

  // What the sidebar shows of a conversation.
  entry(id) {
    const open = async () => {
      if (!this.sidebar.beside) this.sidebar.close();
      await this.visit(id, this.conversation);
      this.listConversations(); // without it, if another tab has deleted it
    };
    return el("li", { "data-id": id }, el("button", { type: "button", click: open }));
  }

  fresh() {
    this.open(this.newConversation());
    if (!this.sidebar.beside && $("sidebar").open) this.sidebar.close();
    $("message").focus();
  }

  async remove() {
    const { conversation } = this;
    if ((await answerOf($("confirm"))) !== "delete") return;
    this.generations.get(conversation.id)?.stop();
    this.removed.add(conversation.id);
    if (this.conversation === conversation) this.fresh(); // nothing more is said in it
    await store.remove(conversation.id).catch((error) => this.unkept(error));
    await this.listConversations();
  }

  rename(title) {
    Object.assign(this.conversation, { title, renamed: Date.now() });
    $("title").value = title;
    this.show();
    if (!this.conversation.nodes.root.chosen) return;
    this.save(this.conversation).then(() => this.listConversations());
  }

  exportAs(extension) {
    const { conversation } = this;
    const markdown = () => conversations.toMarkdown(conversation);
    if (extension === "md") this.download(markdown(), "text/markdown", extension);
    else this.download(JSON.stringify(conversation, null, 1), "application/json", extension);
  }

  download(text, type, extension) {
    const plain = this.conversation.title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 50);
    const name = plain || "conversation";
    const address = URL.createObjectURL(new Blob([text], { type }));
    el("a", { href: address, download: `${name}.${extension}` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  }

  // --- Listening

  controls() {
    for (const [id, name] of Object.entries(ICONS)) $(id).append(icon(name));
    $("new").prepend(icon("plus"));
    $("effort").append(...EFFORTS.map(([value, label]) => el("option", { value }, label)));
    $("effort").addEventListener("change", () => this.set("effort", $("effort").value));
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.generation) this.generation.stop();
      else this.send();
    });
    $("message").addEventListener("input", () => this.fit());
    $("message").addEventListener("keydown", (event) => this.typed(event));
    $("title").addEventListener("change", () => this.rename($("title").value.trim()));
    $("model").addEventListener("change", () => this.showState());
    $("new").addEventListener("click", () => this.fresh());
    $("filter").addEventListener("input", () => this.listConversations());
    $("close-settings").addEventListener("click", () => this.settings.close());
    window.addEventListener("hashchange", ({ newURL }) => this.visit(new URL(newURL).hash.slice(1)));
    window.addEventListener("focus", () => this.catchUp());
    this.menu();
    this.themes();
    explain($("shortcuts"));
    listen({
      stop: () => this.generation?.stop(),
      fresh: () => this.fresh(),
      find: () => this.search(),
      sidebar: () => this.sidebar.toggle(),
      settings: () => this.settings.toggle(),
      help: () => answerOf($("help")),
      walk: (step) => this.thread.walk(step),
    });
  }

  typed(event) {
    const touch = window.matchMedia("(pointer: coarse)").matches; // where Enter begins a line
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || touch) return;
    event.preventDefault();
    this.send();
  }

  search() {
    if (!$("sidebar").open) this.sidebar.open();
    $("filter").focus();
  }

  menu() {
    const items = {
      "export-markdown": () => this.exportAs("md"),
      "export-json": () => this.exportAs("json"),
      "enter-key": () => this.server.askKey(),
      "open-help": () => answerOf($("help")),
      delete: () => this.remove(),
    };
    for (const [id, action] of Object.entries(items)) {
      $(id).addEventListener("click", () => {
        $("menu").hidePopover();
        action();
      });
    }
  }

  themes() {
    const show = () => (document.documentElement.dataset.theme = $("theme").value);
    $("theme").value = store.setting("theme") ?? "";
    $("theme").addEventListener("change", () => {
      store.keep("theme", $("theme").value);
      show();
    });
    show();
  }
}

new Page().start();
