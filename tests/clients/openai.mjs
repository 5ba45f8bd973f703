// What a program of Node's client does; prints what came back as JSON.
import OpenAI, { NotFoundError } from "openai";

const client = new OpenAI({ baseURL: process.env.OPENAI_BASE_URL, apiKey: "none", maxRetries: 0 });
const model = "scripted";
const messages = [{ role: "user", content: "What is the weather in Oslo?" }];
const parameters = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
};
const seen = {};

const models = await client.models.list();
seen.models = models.data.map((model) => model.id);

const answer = await client.chat.completions.create({ model, messages });
seen.answer = answer.choices[0].message.content;
seen.usage = answer.usage;

const stream = client.chat.completions.stream({
  model,
  messages,
  stream_options: { include_usage: true },
});
seen.streamed = "";
stream.on("content", (delta) => (seen.streamed += delta));
seen.streamedUsage = (await stream.finalChatCompletion()).usage;

const runner = client.chat.completions.runTools({
  model,
  messages,
  tools: [
    {
      type: "function",
      function: {
        name: "weather",
        parameters,
        parse: JSON.parse,
        function: ({ city }) => {
          seen.city = city;
          return "rain";
        },
      },
    },
  ],
});
seen.afterCall = await runner.finalContent();

const responses = client.responses.stream({
  model,
  input: "What is the weather in Oslo?",
  tools: [{ type: "function", name: "weather", parameters, strict: false }],
});
seen.events = [];
for await (const event of responses) seen.events.push(event.type);
const response = await responses.finalResponse();
const called = response.output.find((item) => item.type === "function_call");
seen.arguments = called.arguments;
const last = await client.responses.create({
  model,
  previous_response_id: response.id,
  input: [{ type: "function_call_output", call_id: called.call_id, output: "rain" }],
});
seen.last = last.output_text;

try {
  await client.chat.completions.create({ model: "other", messages });
} catch (error) {
  seen.error = [error instanceof NotFoundError, error.status, error.code];
}
console.log(JSON.stringify(seen));
