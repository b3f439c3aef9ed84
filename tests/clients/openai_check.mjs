// The openai package of Node against `mlxr serve`.
import assert from "node:assert/strict";
import OpenAI from "openai";

const api = new OpenAI({ baseURL: `${process.env.MLXR_URL}/v1`, apiKey: "none", maxRetries: 0 });
const model = "mlxr-27m";
const ask = {
  model,
  messages: [{ role: "user", content: "Tell me a story about a cat." }],
  max_tokens: 40,
  temperature: 0,
};

const models = [];
for await (const found of api.models.list()) models.push(found.id);
assert.deepEqual(models, [model]);

const whole = await api.chat.completions.create(ask);
const { content } = whole.choices[0].message;
assert.ok(content.length > 20, content);

let text = "";
let usage = null;
const stream = await api.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } });
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, content);
assert.equal(usage.total_tokens, whole.usage.total_tokens);

// The package's own accumulator; it takes an answer cut off by its length for an error.
const runner = api.chat.completions.stream({ ...ask, stop: "." });
assert.equal((await runner.finalChatCompletion()).choices[0].message.content, content.split(".")[0]);

const completion = await api.completions.create({ model, prompt: "Once upon a time", max_tokens: 8, temperature: 0 });
assert.ok(completion.choices[0].text.length > 0);

await assert.rejects(api.chat.completions.create({ ...ask, model: "nothing" }), (error) => {
  assert.ok(error instanceof OpenAI.NotFoundError);
  assert.equal(error.code, "model_not_found");
  return true;
});
const long = [{ role: "user", content: "word ".repeat(5000) }];
await assert.rejects(api.chat.completions.create({ ...ask, messages: long }), (error) => {
  assert.equal(error.code, "context_length_exceeded");
  return true;
});

const texts = ["a cat", "a story about a dog"];
const vectors = await api.embeddings.create({ model, input: texts });
assert.deepEqual(vectors.data.map((item) => item.index), [0, 1]);
const lengths = vectors.data.map((item) => item.embedding.reduce((sum, x) => sum + x * x, 0));
assert.ok(lengths.every((length) => Math.abs(length - 1) < 1e-5), lengths);
const alone = await api.embeddings.create({ model, input: texts[1] });
assert.deepEqual(alone.data[0].embedding, vectors.data[1].embedding);

// A stream that is aborted ends, and the server goes on.
const aborted = await api.chat.completions.create({ ...ask, max_tokens: 1500, stream: true });
for await (const _ of aborted) break;
assert.equal((await api.chat.completions.create(ask)).choices[0].message.content, content);
console.log("ok");
