// The server behind the page: its models, the key that it may ask for, and what is wrong with it.

import { models } from "./api.js";
import { answerOf, el } from "./dom.js";
import * as store from "./store.js";

const $ = (id) => document.getElementById(id);

export class Connection {
  // changed() is called when the models are known, or are known not to be.
  constructor(changed) {
    this.changed = changed;
    this.key = store.setting("key");
    this.models = [];
  }

  // The model that is chosen, if there is one.
  get model() {
    return this.models.find(({ id }) => id === $("model").value);
  }

  async ask() {
    try {
      this.models = await models(this.key);
      this.notice(null);
    } catch (error) {
      this.models = [];
      if (error.status === 401) {
        this.notice("This server needs an API key.", "Enter the key", () => this.askKey());
      } else this.notice(error.message, "Try again", () => this.ask());
    }
    const chosen = this.model?.id;
    $("model").replaceChildren(...this.models.map(({ id }) => el("option", { value: id }, id)));
    if (chosen) $("model").value = chosen;
    $("model").hidden = !this.models.length;
    this.welcome();
    this.changed();
  }

  welcome() {
    const { id = "ossia", max_model_len: length } = this.models[0] ?? {};
    const context = length ? `${length.toLocaleString()} tokens of context. ` : "";
    const note = el("small", {}, `${context}Conversations stay in this browser.`);
    $("welcome").replaceChildren(el("p", {}, id), note);
  }

  async askKey() {
    $("key-value").value = this.key ?? "";
    if ((await answerOf($("key"))) !== "save") return;
    this.key = $("key-value").value.trim();
    store.keep("key", this.key, $("key-kept").checked);
    await this.ask();
  }

  // Tell something above the messages, with a button; null takes it away.
  notice(text, label, action) {
    $("notice").hidden = !text;
    const button = text && el("button", { type: "button", click: action }, label);
    $("notice").replaceChildren(...(text ? [el("span", {}, text), button] : []));
  }
}
