// The messages of a conversation on the page, and the place to which they are scrolled.

import { path, siblings } from "./conversation.js";
import { arrange } from "./dom.js";
import { MessageView } from "./message.js";

const NEAR = 60; // pixels from the end within which a growing answer is followed

export class Thread {
  constructor(scroller, into, latest, actions) {
    this.scroller = scroller;
    this.into = into;
    this.latest = latest;
    this.actions = actions;
    this.views = new Map();
    this.follows = true;
    scroller.addEventListener("scroll", () => this.scrolled());
    latest.addEventListener("click", () => this.toEnd());
    new ResizeObserver(() => this.keepUp()).observe(scroller);
    // What has come into view has its true height from now on.
    into.addEventListener("contentvisibilityautostatechange", () => this.keepUp());
  }

  // Show the path of a conversation; running is the node that is being written, if any.
  show(conversation, running) {
    if (conversation !== this.conversation) this.views.clear();
    this.conversation = conversation;
    const shown = path(conversation);
    const articles = shown.map((node) => {
      const view = this.views.get(node.id) ?? new MessageView(node, this.actions);
      this.views.set(node.id, view);
      this.refresh(view, running);
      return view.article;
    });
    const focused = document.activeElement?.closest("article");
    arrange(this.into, articles);
    if (focused && !focused.isConnected) { // as another view, or not at all
      this.views.get(focused.dataset.id)?.article.focus({ preventScroll: true });
    }
    this.keepUp();
  }

  // Show again the one message that has grown.
  update(node, running) {
    const view = this.views.get(node.id);
    if (view) this.refresh(view, running);
    this.keepUp();
  }

  refresh(view, running) {
    const all = siblings(this.conversation, view.node);
    const place = { index: all.indexOf(view.node.id), count: all.length };
    view.show(place, view.node === running);
  }

  // Focus the message that is `step` places from the focused one, or the last.
  walk(step) {
    const articles = [...this.into.children];
    const at = articles.indexOf(document.activeElement?.closest?.("article"));
    const next = at < 0 ? articles.at(-1) : articles[at + step];
    next?.focus();
    next?.scrollIntoView({ block: "nearest" });
  }

  focus(node) {
    this.views.get(node.id)?.article.focus();
  }

  scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.follows = scrollHeight - scrollTop - clientHeight < NEAR;
    this.latest.hidden = this.follows;
  }

  keepUp() {
    if (this.follows) this.toEnd();
  }

  toEnd() {
    this.follows = true;
    this.latest.hidden = true; // also where nothing scrolls, and so no event says it
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }
}
