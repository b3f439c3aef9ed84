// The ollama package of Node against `mlxr serve`: over TCP and, with a fetch of its own, over the Unix socket.
import assert from "node:assert/strict";
import { Ollama } from "ollama";
import { Agent, fetch as fetchWith } from "undici";

const model = "mlxr-27m";
const messages = [{ role: "user", content: "Tell me a story about a cat." }];
const greedy = { temperature: 0, repeat_penalty: 1, num_predict: 40 };

async function checkModels(api) {
  const { models } = await api.list();
  const listed = models.find((found) => found.model === model);
  assert.equal(listed.details.format, "gguf");
  const shown = await api.show({ model });
  assert.deepEqual(shown.details, listed.details);
  assert.ok(shown.capabilities.includes("completion"), shown.capabilities);
  assert.match((await api.version()).version, /^\d+\.\d+/);
  const loaded = await api.generate({ model, prompt: "", keep_alive: "10m" });
  assert.equal(loaded.done_reason, "load");
  assert.ok((await api.ps()).models.some((running) => running.model === model));
}

async function checkChat(api) {
  const whole = await api.chat({ model, messages, options: greedy });
  const text = whole.message.content;
  assert.ok(text.length > 20 && whole.done && whole.eval_count <= 40, JSON.stringify(whole));
  let streamed = "";
  let last = null;
  for await (const part of await api.chat({ model, messages, options: greedy, stream: true })) {
    assert.ok(!last?.done, "something came after the end");
    streamed += part.message.content;
    last = part;
  }
  assert.equal(streamed, text);
  assert.deepEqual([last.done, last.done_reason, last.eval_count], [true, whole.done_reason, whole.eval_count]);
  const generated = await api.generate({ model, prompt: messages[0].content, options: greedy });
  assert.equal(generated.response, text);
  assert.ok(generated.total_duration >= generated.eval_duration && generated.context.length > 0);
  return text;
}

async function checkErrors(api) {
  await assert.rejects(api.chat({ model: "nothing", messages }), (error) => {
    assert.equal(error.name, "ResponseError");
    assert.equal(error.status_code, 404);
    assert.match(error.message, /mlxr-27m/);
    return true;
  });
  const long = [{ role: "user", content: "word ".repeat(5000) }];
  await assert.rejects(api.chat({ model, messages: long, stream: true }), (error) => {
    assert.equal(error.status_code, 400);
    assert.match(error.message, /5009.*2048/);
    return true;
  });
}

async function checkEmbed(api) {
  const input = ["a cat", "a story about a dog"];
  const found = await api.embed({ model, input });
  assert.equal(found.embeddings.length, 2);
  assert.ok(found.prompt_eval_count > 4, found.prompt_eval_count);
  assert.deepEqual((await api.embeddings({ model, prompt: input[1] })).embedding, found.embeddings[1]);
}

// The package's own abort: the loop ends with an error of that name, and the server goes on.
async function checkAbort(api, text) {
  const endless = { ...greedy, num_predict: 1500 };
  const going = await api.chat({ model, messages, options: endless, stream: true });
  await assert.rejects(
    async () => {
      for await (const _ of going) going.abort();
    },
    { name: "AbortError" },
  );
  assert.equal((await api.chat({ model, messages, options: greedy })).message.content, text);
}

const socket = new Agent({ connect: { socketPath: process.env.MLXR_SOCKET } });
const ways = [
  new Ollama({ host: process.env.MLXR_URL }),
  new Ollama({ host: "http://localhost:80", fetch: (url, init) => fetchWith(url, { ...init, dispatcher: socket }) }),
];
for (const api of ways) {
  await checkModels(api);
  const text = await checkChat(api);
  await checkEmbed(api);
  await checkErrors(api);
  await checkAbort(api, text);
}
await socket.close();
console.log("ok");
