// One answer while it is written: the request, its chunks into a message, and how it ended.

import { complete } from "./api.js";
import { messages } from "./conversation.js";
import { Reply } from "./reply.js";
import { requestBody } from "./settings.js";

export class Generation {
  // node: the assistant's message, which answers the path up to its parent.
  constructor(conversation, node, key) {
    this.conversation = conversation;
    this.node = node;
    this.key = key;
    this.aborter = new AbortController();
  }

  // Write the answer into the node; changed() follows each chunk. Never throws.
  async run(changed) {
    const { conversation, node } = this;
    const reply = new Reply(node);
    try {
      const sent = messages(conversation, node.parent);
      const body = requestBody(conversation.settings, node.model, sent);
      for await (const chunk of complete(body, this.key, this.aborter.signal)) {
        reply.add(chunk);
        changed();
      }
      node.state = "done";
    } catch (error) {
      this.end(error);
    }
    for (const part of node.parts) delete part.since;
    conversation.updated = Date.now();
  }

  end(error) {
    const { node } = this;
    node.state = error.name === "AbortError" ? "stopped" : "failed";
    if (node.state === "stopped") return;
    node.error = error.message;
    node.status = error.status ?? 0;
    if (error.retryAfter) node.error += `; try again in ${error.retryAfter} s`;
  }

  stop() {
    this.aborter.abort();
  }
}
