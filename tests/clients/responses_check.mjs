// The responses of Node's openai package against `mlxr serve`.
import assert from "node:assert/strict";
import OpenAI from "openai";

const api = new OpenAI({ baseURL: `${process.env.MLXR_URL}/v1`, apiKey: "none", maxRetries: 0 });
const ask = { model: "mlxr-27m", input: "Tell me a story about a cat.", temperature: 0, max_output_tokens: 40 };

const whole = await api.responses.create(ask);
assert.ok(whole.output_text.length > 20, whole.output_text);
let text = "";
for await (const event of await api.responses.create({ ...ask, stream: true })) {
  if (event.type === "response.output_text.delta") text += event.delta;
}
assert.equal(text, whole.output_text);

const next = await api.responses.create({ ...ask, input: "And then?", previous_response_id: whole.id });
assert.ok(next.usage.input_tokens > whole.usage.input_tokens);
const items = [];
for await (const item of api.responses.inputItems.list(next.id)) items.unshift(item.content[0].text);
assert.deepEqual(items, [ask.input, whole.output_text, "And then?"]);

const parameters = {
  type: "object",
  properties: { city: { type: "string", maxLength: 10 } },
  required: ["city"],
  additionalProperties: false,
};
const tools = [{ type: "function", name: "get_weather", parameters, strict: true }];
const runner = api.responses.stream({ ...ask, max_output_tokens: 200, tools, tool_choice: "required", parallel_tool_calls: false });
const called = await runner.finalResponse();
assert.equal(called.output[0].name, "get_weather");
assert.equal(typeof JSON.parse(called.output[0].arguments).city, "string");

await api.responses.delete(whole.id);
await assert.rejects(api.responses.retrieve(whole.id), OpenAI.NotFoundError);
await assert.rejects(api.responses.create({ ...ask, tools: [{ type: "web_search" }] }), (error) => {
  assert.equal(error.param, "tools[0].type");
  return true;
});
console.log("ok");
