// The page's line to the server: status, votes, receipts, and chats read as a stream of server-sent events.
// The session cookie that came with the page is all the proof needed; no key is ever in here.

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function answered(response) {
  if (response.ok) return response;
  let message = `the server answered ${response.status}`;
  try {
    message = (await response.json()).error.message || message;
  } catch {
    // Not our error body: a proxy may have answered. The status says enough.
  }
  throw new Refused(message, response.status);
}

async function call(path, options = {}) {
  const body = options.body === undefined ? undefined : JSON.stringify(options.body);
  const headers = { ...(body ? { "content-type": "application/json" } : {}), ...options.headers };
  const response = await fetch(path, { ...options, body, headers }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("the server cannot be reached");
  });
  return answered(response);
}

export const status = async () => (await call("/v1/attune/status")).json();
export const receipt = async (id) => (await call(`/v1/feedback/${encodeURIComponent(id)}`)).json();
export const withdraw = async (id) => (await call(`/v1/feedback/${encodeURIComponent(id)}`, { method: "DELETE" })).json();

/** Send a vote; repeats it under one idempotency key while the server is away, so that it counts once. */
export async function vote(body) {
  const key = crypto.randomUUID ? crypto.randomUUID() : `${Date.now()}-${Math.random()}`;
  for (let attempt = 0; ; attempt += 1) {
    try {
      return await (await call("/v1/feedback", { method: "POST", body, headers: { "idempotency-key": key } })).json();
    } catch (error) {
      const passing = !(error instanceof Refused) || error.status >= 500 || error.status === 429;
      if (!passing || attempt >= 6) throw error;
      await new Promise((resume) => setTimeout(resume, 300 * 2 ** attempt));
    }
  }
}

/** Ask, and yield every chunk of the streamed reply as it comes; throws what the server says went wrong. */
export async function* chat(request, signal) {
  const body = { ...request, stream: true, stream_options: { include_usage: true } };
  const response = await call("/v1/chat/completions", { method: "POST", body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the reply broke off");
    rest += value;
    const events = rest.split(/\r?\n\r?\n/);
    rest = events.pop();
    for (const event of events) {
      const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
      if (data === "[DONE]") return;
      if (!data) continue;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
}
