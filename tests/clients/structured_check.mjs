// Structured output and tools against `mlxr serve`, as Node's packages of all three dialects ask for them.
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import { Ollama } from "ollama";
import OpenAI from "openai";

const url = process.env.MLXR_URL;
const model = "mlxr-27m";
const messages = [{ role: "user", content: "What is the weather in Rome?" }];
const object = (properties) => ({ type: "object", properties, required: Object.keys(properties), additionalProperties: false });
const pet = object({ animal: { enum: ["cat", "dog"] }, age: { type: "integer", minimum: 1, maximum: 20 } });
const parameters = object({ city: { type: "string", maxLength: 10 }, days: { type: "integer", minimum: 1, maximum: 9 } });

const checkPet = (text) => {
  const found = JSON.parse(text);
  assert.ok(["cat", "dog"].includes(found.animal) && Number.isInteger(found.age), text);
};
const checkWeather = (found) => {
  assert.deepEqual(Object.keys(found).sort(), ["city", "days"]);
  assert.ok(typeof found.city === "string" && found.days >= 1 && found.days <= 9, JSON.stringify(found));
};

const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const chat = { model, messages, temperature: 0, max_tokens: 200 };
const format = { type: "json_schema", json_schema: { name: "pet", strict: true, schema: pet } };
checkPet((await openai.chat.completions.create({ ...chat, response_format: format })).choices[0].message.content);
const tools = [{ type: "function", function: { name: "get_weather", parameters, strict: true } }];
const forced = { ...chat, tools, tool_choice: "required", parallel_tool_calls: false };
const called = (await openai.chat.completions.create(forced)).choices[0];
assert.equal(called.finish_reason, "tool_calls");
checkWeather(JSON.parse(called.message.tool_calls[0].function.arguments));
const runner = await openai.chat.completions.stream(forced).finalChatCompletion();
assert.deepEqual(runner.choices[0].message.tool_calls[0].function.arguments, called.message.tool_calls[0].function.arguments);

const ollama = new Ollama({ host: url });
const options = { temperature: 0, num_predict: 200 };
checkPet((await ollama.chat({ model, messages, format: pet, options })).message.content);
checkPet((await ollama.generate({ model, prompt: messages[0].content, format: pet, options })).response);
let streamed = "";
for await (const line of await ollama.chat({ model, messages, format: pet, options, stream: true })) streamed += line.message.content;
checkPet(streamed);
await assert.rejects(ollama.chat({ model, messages, format: { uniqueItems: true } }), /uniqueItems/);

const anthropic = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
const ask = { model, messages, max_tokens: 200, temperature: 0 };
const tool = { name: "get_weather", input_schema: parameters };
const use = { ...ask, tools: [tool], tool_choice: { type: "tool", name: "get_weather" } };
const used = await anthropic.messages.create(use);
assert.equal(used.stop_reason, "tool_use");
checkWeather(used.content[0].input);
assert.deepEqual((await anthropic.messages.stream(use).finalMessage()).content[0].input, used.content[0].input);
const output = { format: { type: "json_schema", schema: pet } };
checkPet((await anthropic.messages.create({ ...ask, output_config: output })).content[0].text);
await assert.rejects(anthropic.messages.create({ ...ask, tool_choice: { type: "any" } }), Anthropic.BadRequestError);
console.log("ok");
