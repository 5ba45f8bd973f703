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
    this.asked = null; // the latest request for them
    this.problem = null; // why there are none
  }

  // The model that is chosen, if there is one.
  get model() {
    return this.models.find(({ id }) => id === $("model").value);
  }

  async ask() {
    const asked = (this.asked = models(this.key));
    let problem = null;
    const found = await asked.catch((error) => {
      problem = error;
      return [];
    });
    if (this.asked !== asked) return; // asked again since, perhaps with another key
    this.models = found;
    this.tell(problem);
    const chosen = this.model?.id;
    $("model").replaceChildren(...this.models.map(({ id }) => el("option", { value: id }, id)));
    if (chosen) $("model").value = chosen;
    $("model").hidden = !this.models.length;
    this.welcome();
    this.changed();
  }

  // Tell what is wrong with the server, or take away what was told of it.
  tell(problem) {
    if (problem?.status === 401) {
      this.notice("This server needs an API key.", "Enter the key", () => this.askKey());
    } else if (problem) this.notice(problem.message, "Try again", () => this.ask());
    else if (this.problem) this.notice(null);
    this.problem = problem;
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
