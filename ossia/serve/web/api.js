// The server's API: its models, and an answer as a stream of chunks.

const base = () => new URL("v1/", document.baseURI);

// What went wrong: status is that of the response, 0 where the server could not be reached.
export class ApiError extends Error {
  constructor(message, status, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export async function models(key) {
  const response = await request("models", { headers: headers(key) });
  return (await response.json()).data;
}

// The chunks of a streamed chat completion. Throws an ApiError, and an AbortError once `signal` is.
export async function* complete(body, key, signal) {
  const sent = { method: "POST", headers: headers(key), body: JSON.stringify(body), signal };
  const response = await request("chat/completions", sent);
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.message, 500);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof TypeError) throw lost();
    throw error;
  }
  throw lost();
}

const lost = () => new ApiError("The connection ended before the answer did.", 0);

function headers(key) {
  const sent = { "Content-Type": "application/json" };
  if (key) sent.Authorization = `Bearer ${key}`;
  return sent;
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(new URL(path, base()), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.", 0);
  }
  if (response.ok) return response;
  let message = `The server answered with status ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // Not the server's own error, but one of a proxy before it.
  }
  throw new ApiError(message, response.status, response.headers.get("Retry-After"));
}

// The data of each server-sent event.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
    }
  }
}
