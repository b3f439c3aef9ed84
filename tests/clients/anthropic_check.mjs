// The Anthropic package of Node against `mlxr serve`: over TCP and over the Unix socket.
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import { Agent, fetch as fetchWith } from "undici";

const ask = {
  model: "mlxr-27m",
  max_tokens: 40,
  temperature: 0,
  messages: [{ role: "user", content: "Tell me a story about a cat." }],
};

async function check(api) {
  const whole = await api.messages.create(ask);
  const [{ type, text }] = whole.content;
  assert.ok(type === "text" && text.length > 20, JSON.stringify(whole));
  const stream = api.messages.stream(ask);
  const seen = [];
  stream.on("text", (piece) => seen.push(piece));
  const final = await stream.finalMessage();
  assert.equal(seen.join(""), text);
  assert.deepEqual(final.content.map((block) => block.text), [text]);
  assert.deepEqual([final.stop_reason, final.usage.output_tokens], [whole.stop_reason, whole.usage.output_tokens]);
  const names = [];
  for await (const event of await api.messages.create({ ...ask, stream: true })) names.push(event.type);
  assert.deepEqual(names.slice(0, 2), ["message_start", "content_block_start"]);
  assert.deepEqual(names.slice(-3), ["content_block_stop", "message_delta", "message_stop"]);
  const counted = await api.messages.countTokens({ model: ask.model, messages: ask.messages });
  assert.equal(counted.input_tokens, whole.usage.input_tokens);

  await assert.rejects(api.messages.create({ ...ask, model: "claude" }), Anthropic.NotFoundError);
  const long = [{ role: "user", content: "word ".repeat(5000) }];
  await assert.rejects(api.messages.create({ ...ask, messages: long, stream: true }), (error) => {
    assert.ok(error instanceof Anthropic.BadRequestError);
    assert.match(error.message, /prompt is too long: 5009 tokens > 2048 maximum/);
    return true;
  });

  const aborted = api.messages.stream({ ...ask, max_tokens: 1500 });
  aborted.on("text", () => aborted.abort());
  await assert.rejects(aborted.finalMessage(), Anthropic.APIUserAbortError);
  return text;
}

const settings = { apiKey: "none", maxRetries: 0 };
const socket = new Agent({ connect: { socketPath: process.env.MLXR_SOCKET } });
const overSocket = (url, init) => fetchWith(url, { ...init, dispatcher: socket });
const overTcp = await check(new Anthropic({ ...settings, baseURL: process.env.MLXR_URL }));
assert.equal(await check(new Anthropic({ ...settings, baseURL: "http://localhost", fetch: overSocket })), overTcp);
await socket.close();
console.log("ok");
