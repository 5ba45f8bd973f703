// A conversation is a tree of messages: editing and regenerating add a sibling, and nothing is lost.
// Each node names the child that is shown; following these from the root gives the shown path.

export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(12))]
    .map((byte) => byte.toString(16).padStart(2, "0"))
    .join("");
}

export function newConversation(settings = {}) {
  const created = Date.now();
  const root = { id: "root", children: [], chosen: null };
  return { id: newId(), title: "", created, updated: created, settings, nodes: { root } };
}

// Add a message under `parent` (an id) and show it. Returns its node.
export function add(conversation, parent, message) {
  const node = { id: newId(), parent, children: [], chosen: null, created: Date.now(), ...message };
  conversation.nodes[node.id] = node;
  conversation.nodes[parent].children.push(node.id);
  conversation.nodes[parent].chosen = node.id;
  conversation.updated = node.created;
  if (!conversation.title && node.role === "user") conversation.title = titleOf(node.content);
  return node;
}

export function path(conversation) {
  const found = [];
  let node = conversation.nodes.root;
  while (node.chosen) {
    node = conversation.nodes[node.chosen];
    found.push(node);
  }
  return found;
}

// The id of the last message shown, or of the root.
export function leaf(conversation) {
  return path(conversation).at(-1)?.id ?? "root";
}

export function siblings(conversation, node) {
  return conversation.nodes[node.parent].children;
}

// Show the sibling `step` places further, if there is one.
export function turn(conversation, node, step) {
  const all = siblings(conversation, node);
  const next = all[all.indexOf(node.id) + step];
  if (next) conversation.nodes[node.parent].chosen = next;
  return Boolean(next);
}

// An answer that failed before it began, and that nothing follows. There is nothing in it to keep.
export function neverBegan(node) {
  return Boolean(node.error) && !node.parts.length && !node.children.length;
}

// Forget a message without children.
export function drop(conversation, node) {
  const parent = conversation.nodes[node.parent];
  parent.children = parent.children.filter((id) => id !== node.id);
  parent.chosen = parent.children.at(-1) ?? null;
  delete conversation.nodes[node.id];
  (conversation.dropped ??= []).push(node.id);
}

// Take over what another tab has added to the stored copy of a conversation. Messages are only ever
// added, so nothing is lost, whichever tab saves last.
export function merge(conversation, stored) {
  const { nodes } = conversation;
  const { title, renamed = 0 } = stored;
  if (renamed > (conversation.renamed ?? 0)) Object.assign(conversation, { title, renamed });
  for (const theirs of Object.values(stored.nodes)) {
    const ours = nodes[theirs.id];
    // What was dropped before its end was saved is stored as if it were still being written.
    if (!ours && (neverBegan(theirs) || conversation.dropped?.includes(theirs.id))) continue;
    nodes[theirs.id] ??= theirs;
    if (!ours) continue;
    const ended = ours.state === "running" && theirs.state !== "running"; // in the tab that asked
    if (ended) Object.assign(ours, theirs, { chosen: ours.chosen });
    const given = callsOf(theirs);
    callsOf(ours).forEach((call, n) => (call.result ??= given[n]?.result ?? null));
  }
  const all = Object.values(nodes).sort((one, other) => (one.created ?? 0) - (other.created ?? 0));
  for (const node of all) {
    node.children = all.filter(({ parent }) => parent === node.id).map(({ id }) => id);
    const chosen = stored.nodes[node.id]?.chosen;
    if (node.children.includes(chosen)) node.chosen ??= chosen;
  }
}

// What a message says, without reasoning and calls.
export function textOf(node) {
  if (node.role === "user") return node.content;
  return joined(node, "text");
}

function joined(node, type) {
  const parts = (node.parts ?? []).filter((part) => part.type === type);
  return parts.map((part) => part.text).join(type === "text" ? "" : "\n\n");
}

// The calls whose results the user gives.
export function callsOf(node) {
  return (node.parts ?? []).filter((part) => part.type === "call" && !part.server);
}

// The calls that the server ran itself.
function servedOf(node) {
  return (node.parts ?? []).filter((part) => part.type === "call" && part.server);
}

// The messages, up to and with `last`, as Chat Completions takes them.
export function messages(conversation, last) {
  const system = conversation.settings.system?.trim();
  const sent = system ? [{ role: "system", content: system }] : [];
  for (const node of lineage(conversation, last)) sent.push(...wire(node));
  return sent;
}

function lineage(conversation, id) {
  const found = [];
  for (let node = conversation.nodes[id]; node.parent; node = conversation.nodes[node.parent]) {
    found.unshift(node);
  }
  return found;
}

function wire(node) {
  if (node.role === "user") return [{ role: "user", content: node.content }];
  const calls = callsOf(node);
  const content = textOf(node);
  if (!calls.length && !content) return []; // it failed, or was stopped while it thought
  const message = { role: "assistant", content };
  const reasoning = joined(node, "reasoning");
  if (reasoning) message.reasoning_content = reasoning;
  const served = servedOf(node).filter((call) => call.result !== null);
  if (served.length) message.server_tool_calls = served.map(servedWire);
  if (!calls.length) return [message];
  message.tool_calls = calls.map(callWire);
  const results = calls
    .filter((call) => call.result !== null)
    .map((call) => ({ role: "tool", tool_call_id: call.id, content: call.result }));
  return [message, ...results];
}

function callWire({ id, name, arguments: given }) {
  return { id, type: "function", function: { name, arguments: given } };
}

function servedWire(call) {
  const ran = { server_label: call.server, output: call.result, is_error: Boolean(call.failed) };
  return { ...callWire(call), ...ran };
}

function titleOf(text) {
  const line = text.trim().split("\n")[0];
  return line.length > 60 ? `${line.slice(0, 59)}…` : line;
}

// What is shown of the conversation, as a Markdown document.
export function toMarkdown(conversation) {
  const lines = [`# ${conversation.title || "Conversation"}`, ""];
  const system = conversation.settings.system?.trim();
  if (system) lines.push("## System", "", system, "");
  for (const node of path(conversation)) {
    lines.push(node.role === "user" ? "## User" : `## ${node.model ?? "Assistant"}`, "");
    if (node.role === "user") lines.push(node.content, "");
    for (const part of node.parts ?? []) lines.push(...partLines(part), "");
    if (node.error) lines.push(`*Error: ${node.error}*`, "");
  }
  return lines.join("\n");
}

function partLines(part) {
  if (part.type === "text") return [part.text];
  if (part.type === "reasoning") {
    return ["**Reasoning**", "", ...part.text.split("\n").map((line) => `> ${line}`)];
  }
  const lines = [`**Call of \`${part.name}\`**`, "", ...fenced(part.arguments)];
  return part.result === null ? lines : [...lines, "", "**Result**", "", ...fenced(part.result)];
}

function fenced(text) {
  const longest = Math.max(2, ...(text.match(/`+/g) ?? []).map((run) => run.length));
  const fence = "`".repeat(longest + 1);
  return [fence, text, fence];
}
