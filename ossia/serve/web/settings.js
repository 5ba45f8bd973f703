// What a conversation asks of the model beside its messages, and the fields that set it.

import { el } from "./dom.js";

const NUMBERS = [
  ["temperature", "Temperature", { min: 0, max: 5, step: 0.05 }, "0 always takes the likeliest token"],
  ["top_p", "Top p", { min: 0.01, max: 1, step: 0.01 }, "keeps the likeliest tokens up to this share"],
  ["top_k", "Top k", { min: 0, step: 1 }, "keeps this many tokens; 0 keeps all"],
  ["min_p", "Min p", { min: 0, max: 1, step: 0.01 }, "drops tokens below this share of the likeliest"],
  ["repetition_penalty", "Repetition penalty", { min: 0.01, max: 100, step: 0.01 }, "1 is none"],
  ["presence_penalty", "Presence penalty", { min: -2, max: 2, step: 0.1 }, ""],
  ["frequency_penalty", "Frequency penalty", { min: -2, max: 2, step: 0.1 }, ""],
  ["max_tokens", "Max tokens", { min: 1, step: 1 }, "of an answer, including its reasoning"],
  ["seed", "Seed", { step: 1 }, "the same seed gives the same answer"],
];

export const EFFORTS = [
  ["", "Default effort"],
  ["none", "No reasoning"],
  ["low", "Low effort"],
  ["medium", "Medium effort"],
  ["high", "High effort"],
];

// The body of a request with these settings and messages. What is not set is the server's to choose.
export function requestBody(settings, model, messages) {
  const body = { model, messages, stream: true, stream_options: { include_usage: true } };
  if (settings.effort) body.reasoning_effort = settings.effort;
  for (const [name] of NUMBERS) {
    if (settings[name] !== undefined) body[name] = settings[name];
  }
  if (settings.xray) body.xray = true;
  if (settings.stop?.length) body.stop = settings.stop;
  if (settings.tools?.trim()) body.tools = readTools(settings.tools);
  return body;
}

// The functions that a text describes, as a list or by themselves, in either shape of OpenAI's API.
export function readTools(text) {
  let read;
  try {
    read = JSON.parse(text);
  } catch (error) {
    throw new Error(`the functions are not JSON: ${error.message}`);
  }
  return [read].flat().map((tool) => {
    if (!tool || typeof tool !== "object") throw new Error("a function must be a JSON object");
    if (tool.function) return tool;
    const { type: _, ...described } = tool;
    return { type: "function", function: described };
  });
}

// The fields of a conversation's settings. change(name, value) is called with undefined for none.
export function settingsFields(settings, change) {
  const system = field("System prompt", area("system", 5, "How the model should answer"), "");
  const numbers = NUMBERS.map(([name, label, limits, help]) => {
    const input = el("input", { type: "number", name, placeholder: "default", ...limits });
    input.value = settings[name] ?? "";
    input.addEventListener("change", () => {
      const value = input.value === "" ? undefined : Number(input.value);
      if (input.reportValidity()) change(name, value);
    });
    const entry = field(label, input, help);
    entry.classList.add("number");
    return entry;
  });
  const stop = area("stop", 2, "one per line");
  stop.value = (settings.stop ?? []).join("\n");
  const tools = area("tools", 4, '[{"name": "weather", "parameters": {"type": "object"}}]');
  for (const input of [system.querySelector("textarea"), tools]) {
    input.value = settings[input.name] ?? "";
    input.addEventListener("input", () => change(input.name, input.value || undefined));
  }
  stop.addEventListener("input", () => change("stop", stop.value.split("\n").filter(Boolean)));
  tools.addEventListener("change", () => {
    tools.setCustomValidity(problemOf(tools.value));
    tools.reportValidity();
  });
  const inside = el("input", { type: "checkbox", name: "xray", id: "setting-xray" });
  inside.checked = Boolean(settings.xray);
  inside.addEventListener("change", () => change("xray", inside.checked || undefined));
  const xray = el("div", { class: "field" },
    el("label", { class: "check", for: inside.id }, inside, " Look inside the model"),
    el("small", {}, "experts, attention and entropy of each token; the model then reads its answer twice"));
  const help = "as JSON; you give the result of each call on its card";
  const stops = field("Stop at", stop, "texts that end an answer");
  return [
    system,
    el("fieldset", {}, el("legend", {}, "Sampling"), numbers, stops),
    field("Functions", tools, help),
    xray,
  ];
}

function problemOf(text) {
  if (!text.trim()) return "";
  try {
    readTools(text);
    return "";
  } catch (error) {
    return error.message;
  }
}

function area(name, rows, placeholder) {
  return el("textarea", { name, rows, placeholder, spellcheck: name === "system" ? "true" : "false" });
}

function field(label, input, help) {
  input.id = `setting-${input.name}`;
  const note = help ? el("small", { id: `${input.id}-help` }, help) : null;
  if (note) input.setAttribute("aria-describedby", note.id);
  return el("div", { class: "field" }, el("label", { for: input.id }, label), input, note);
}
