// A reply as it arrives: the parts of a message, in the order in which the model wrote them.
//
// A part is {type: "reasoning", text, seconds}, {type: "text", text}, or
// {type: "call", id, name, arguments, result, server, failed}, whose result is null until there is
// one; server is the label of the server's tool that it calls, null where the user gives the result.

import { see } from "./xray.js";

export class Reply {
  // message: the assistant's message, whose parts and statistics grow with each chunk.
  constructor(message, now = () => performance.now()) {
    this.message = message;
    this.now = now;
    this.began = now();
    this.first = this.last = null;
    this.idle = 0; // milliseconds while the server's tools ran, and the model did not
    this.waits = false;
    this.calls = new Map();
    message.parts = [];
    message.stats = { tokens: 0, exact: false, wait: null, seconds: 0 };
  }

  add(chunk) {
    const { message } = this;
    if (chunk.usage) this.count(chunk.usage);
    if (chunk.xray) see(message, chunk.xray);
    const choice = chunk.choices?.[0];
    if (!choice) return;
    const delta = choice.delta ?? {};
    if (delta.reasoning_content) this.text("reasoning", delta.reasoning_content);
    if (delta.content) this.text("text", delta.content);
    for (const call of delta.tool_calls ?? []) this.call(call, `user ${call.index}`);
    for (const call of delta.server_tool_calls ?? []) this.call(call, `server ${call.index}`);
    if (choice.finish_reason) message.finish = choice.finish_reason;
  }

  text(type, text) {
    const { parts } = this.message;
    this.tick();
    const last = parts.at(-1);
    if (last?.type === type) last.text += text;
    else parts.push({ type, text });
    if (type === "reasoning") {
      const part = parts.at(-1);
      part.since ??= this.now();
      part.seconds = (this.now() - part.since) / 1000;
    }
  }

  call(delta, key) {
    if (delta.function) this.tick();
    let part = this.calls.get(key);
    if (!part) {
      part = { type: "call", id: delta.id, name: "", arguments: "", result: null };
      part.server = delta.server_label ?? null;
      this.calls.set(key, part);
      this.message.parts.push(part);
    }
    if (delta.output !== undefined) {
      part.result = delta.output;
      this.waits = true;
    }
    if (delta.is_error) part.failed = true;
    part.name += delta.function?.name ?? "";
    part.arguments += delta.function?.arguments ?? "";
  }

  // A chunk with something of the model in it holds about one token.
  tick() {
    const { stats } = this.message;
    const now = this.now();
    if (this.waits) this.idle += now - this.last;
    this.waits = false;
    this.last = now;
    this.first ??= now;
    stats.tokens += 1;
    stats.wait = (this.first - this.began) / 1000;
    stats.seconds = (this.last - this.first - this.idle) / 1000;
  }

  count(usage) {
    const { stats } = this.message;
    stats.exact = true;
    stats.tokens = usage.completion_tokens;
    stats.prompt = usage.prompt_tokens;
    stats.cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    stats.reasoning = usage.completion_tokens_details?.reasoning_tokens ?? 0;
  }
}

// Tokens per second after the first token, or null where there is no time to divide by.
export function speed(stats) {
  return stats && stats.tokens > 1 && stats.seconds > 0 ? (stats.tokens - 1) / stats.seconds : null;
}
