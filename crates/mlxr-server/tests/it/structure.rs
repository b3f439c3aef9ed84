//! Structured output, calls of tools and reasoning, in every dialect: streamed and whole answers agree, and what was
//! demanded holds. The bundled model is small, but it cannot leave a grammar.

use std::sync::Arc;

use mlxr_server::App;
use serde_json::{Map, Value, json};

use crate::harness::{HOUSE, TINY, app, ask, ask_json, assert_idle, post, thinker};

const CHAT: &str = "/v1/chat/completions";
const OLLAMA: &str = "/api/chat";
const ANTHROPIC: &str = "/v1/messages";

fn with(mut body: Value, extra: Value) -> Value {
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "animal": {"enum": ["cat", "dog"]},
            "age": {"type": "integer", "minimum": 1, "maximum": 20},
            "name": {"type": "string", "maxLength": 8},
        },
        "required": ["animal", "age", "name"],
        "additionalProperties": false,
    })
}

fn weather_parameters() -> Value {
    json!({
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 10}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": false,
    })
}

fn tools() -> Value {
    json!([
        {"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": weather_parameters()}},
        {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "properties": {}}}},
    ])
}

/// A tool that leaves room in the context of the tiny model, which counts bytes.
fn small_tool() -> Value {
    json!({"name": "dice", "parameters": small_parameters()})
}

fn small_parameters() -> Value {
    json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["n"]})
}

fn is_valid(schema: &Value, instance: &Value) -> bool {
    jsonschema::validator_for(schema).unwrap().is_valid(instance)
}

fn chat(extra: Value) -> Value {
    let messages = json!([{"role": "user", "content": "What is the weather in Rome?"}]);
    with(json!({"model": HOUSE, "messages": messages, "temperature": 0, "max_tokens": 200}), extra)
}

/// The message that a stream's deltas add up to, as clients add them up, and how it ended.
fn accumulated(events: &[Value]) -> (Value, Value) {
    let (mut message, mut reason) = (Map::new(), Value::Null);
    let append = |target: &mut Map<String, Value>, key: &str, more: &Value| {
        let Some(more) = more.as_str() else { return };
        let before = target.get(key).and_then(Value::as_str).unwrap_or_default();
        target.insert(key.to_owned(), json!(format!("{before}{more}")));
    };
    for choice in events.iter().flat_map(|event| event["choices"].as_array().unwrap()) {
        let delta = &choice["delta"];
        for key in ["role", "content", "reasoning_content"] {
            append(&mut message, key, &delta[key]);
        }
        for part in delta["tool_calls"].as_array().into_iter().flatten() {
            let calls = message.entry("tool_calls").or_insert_with(|| json!([])).as_array_mut().unwrap();
            let index = part["index"].as_u64().unwrap() as usize;
            if index == calls.len() {
                assert!(part["id"].is_string() && part["type"] == "function", "{part}");
                calls.push(json!({"id": part["id"], "type": "function", "function": {}}));
            } else {
                assert!(part.get("id").is_none() && part["function"].get("name").is_none(), "{part}");
            }
            let function = calls[index]["function"].as_object_mut().unwrap();
            append(function, "name", &part["function"]["name"]);
            append(function, "arguments", &part["function"]["arguments"]);
        }
        if let Some(part) = delta.get("function_call") {
            let function = message.entry("function_call").or_insert_with(|| json!({}));
            append(function.as_object_mut().unwrap(), "name", &part["name"]);
            append(function.as_object_mut().unwrap(), "arguments", &part["arguments"]);
        }
        if !choice["finish_reason"].is_null() {
            reason = choice["finish_reason"].clone();
        }
    }
    (Value::Object(message), reason)
}

/// A message without what differs from answer to answer, or between the two shapes of nothing.
fn comparable(message: &Value) -> Value {
    let mut message = message.clone();
    for call in message["tool_calls"].as_array_mut().into_iter().flatten() {
        assert!(call["id"].as_str().unwrap().starts_with("call_"), "{call}");
        call["id"] = Value::Null;
    }
    message.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    message
}

/// Asks for a whole answer and a stream, which must agree; gives back the first choice.
async fn both(app: &Arc<App>, body: Value) -> Value {
    let whole = ask_json(app, CHAT, body.clone()).await;
    let stream = with(body.clone(), json!({"stream": true, "stream_options": {"include_usage": true}}));
    let events = ask(app, post(CHAT, stream)).await.events();
    let choice = whole["choices"][0].clone();
    let (message, reason) = accumulated(&events);
    assert_eq!(comparable(&choice["message"]), comparable(&message), "{body}");
    assert_eq!(choice["finish_reason"], reason, "{body}");
    // What was computed before need not be again.
    let tokens = |usage: &Value| {
        let (prompt, answer) = (&usage["prompt_tokens"], &usage["completion_tokens"]);
        (prompt.clone(), answer.clone(), usage["completion_tokens_details"].clone())
    };
    assert_eq!(tokens(&whole["usage"]), tokens(&events.last().unwrap()["usage"]));
    choice
}

fn arguments(call: &Value) -> Value {
    serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn an_answer_follows_its_schema() {
    let app = app();
    for (body, seed) in (0..4).map(|seed| (json!({"temperature": 1.2, "seed": seed}), seed)) {
        let format = json!({"type": "json_schema", "json_schema": {"name": "pet", "strict": true, "schema": schema()}});
        let choice = both(&app, with(chat(body), json!({"response_format": format}))).await;
        let content = choice["message"]["content"].as_str().unwrap();
        let pet: Value = serde_json::from_str(content).unwrap();
        assert!(is_valid(&schema(), &pet), "{seed}: {pet}");
        assert_eq!(choice["finish_reason"], "stop");
    }
    for extra in [
        json!({"response_format": {"type": "regex", "pattern": "[0-9]{3}-[a-c]+"}, "stop": null}),
        json!({"guided_regex": "[0-9]{3}-[a-c]{1,9}"}),
        json!({"grammar": "root ::= [0-9] [0-9] [0-9] \"-\" [a-c]"}),
        json!({"structured_outputs": {"choice": ["123-a", "456-b"]}}),
    ] {
        let choice = both(&app, with(chat(json!({"max_tokens": 12})), extra)).await;
        let content = choice["message"]["content"].as_str().unwrap();
        let (digits, letters) = content.split_once('-').unwrap();
        assert!(digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit()), "{content}");
        assert!(!letters.is_empty() && letters.bytes().all(|b| (b'a'..=b'c').contains(&b)), "{content}");
    }
    let object =
        both(&app, chat(json!({"response_format": {"type": "json_object"}, "max_tokens": 400}))).await;
    if object["finish_reason"] == "stop" {
        let content = object["message"]["content"].as_str().unwrap();
        assert!(serde_json::from_str::<Map<String, Value>>(content).is_ok(), "{content}");
    }
    let body =
        json!({"model": HOUSE, "prompt": "My number is ", "max_tokens": 9, "guided_regex": "[0-9]{4}"});
    let completion = ask_json(&app, "/v1/completions", body).await;
    assert!(completion["choices"][0]["text"].as_str().unwrap().parse::<u16>().is_ok(), "{completion}");
    assert_idle(&app, HOUSE).await;
}

#[tokio::test]
async fn a_tool_is_called_when_it_must_be() {
    let app = app();
    let named = json!({"type": "function", "function": {"name": "get_weather"}});
    for choice in [named, json!("required")] {
        let extra = json!({"tools": tools(), "tool_choice": choice, "parallel_tool_calls": false});
        let choice = both(&app, chat(extra)).await;
        assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
        assert_eq!(choice["message"]["content"], Value::Null);
        let calls = choice["message"]["tool_calls"].as_array().unwrap();
        assert_eq!(calls.len(), 1);
        if calls[0]["function"]["name"] == "get_weather" {
            assert!(is_valid(&weather_parameters(), &arguments(&calls[0])), "{calls:?}");
        } else {
            assert_eq!(arguments(&calls[0]), json!({}));
        }
    }
}

#[tokio::test]
async fn a_model_whose_template_knows_no_tools_is_told_of_them() {
    let app = app();
    let call = json!({"name": "dice", "arguments": "{\"n\": 1}"});
    let messages = json!([
        {"role": "user", "content": "Go"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "c", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "c", "content": "5"},
    ]);
    let extra = json!({
        "model": TINY, "messages": messages, "max_tokens": 90,
        "tools": [{"type": "function", "function": small_tool()}], "tool_choice": "required", "parallel_tool_calls": false,
    });
    let choice = both(&app, chat(extra.clone())).await;
    assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
    let call = &choice["message"]["tool_calls"][0];
    assert!(is_valid(&small_parameters(), &arguments(call)), "{call}");
    let n_prompt = async |extra: Value| {
        let answer = ask_json(&app, CHAT, chat(extra)).await;
        answer["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    // Tools, call and result are all in the prompt, byte by byte.
    let all = n_prompt(with(extra.clone(), json!({"max_tokens": 1}))).await;
    let without = n_prompt(json!({"model": TINY, "messages": [messages[0]], "max_tokens": 1})).await;
    let spelt =
        [small_tool().to_string().len(), "<tool_call>dice</tool_call><tool_response>5</tool_response>".len()];
    assert!(without + (spelt.iter().sum::<usize>() as u64) < all, "{all} {without}");
}

#[tokio::test]
async fn arguments_stream_while_they_are_written() {
    let app = app();
    let named = json!({"type": "function", "function": {"name": "get_weather"}});
    let body = chat(json!({"tools": tools(), "tool_choice": named, "stream": true}));
    let events = ask(&app, post(CHAT, body)).await.events();
    let deltas: Vec<&Value> = events.iter().map(|event| &event["choices"][0]["delta"]).collect();
    assert_eq!(deltas[0], &json!({"role": "assistant"}));
    let first = &deltas[1]["tool_calls"][0];
    assert_eq!((&first["index"], &first["type"]), (&json!(0), &json!("function")));
    assert_eq!(first["function"], json!({"name": "get_weather", "arguments": ""}));
    let is_fragment = |delta: &&&Value| delta["tool_calls"][0]["function"]["arguments"].is_string();
    assert!(deltas[2..].iter().filter(is_fragment).count() > 3, "{deltas:?}");
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn a_call_cut_off_by_its_length_is_seen_as_far_as_it_came() {
    let app = app();
    let named = json!({"type": "function", "function": {"name": "get_weather"}});
    let choice = both(&app, chat(json!({"tools": tools(), "tool_choice": named, "max_tokens": 22}))).await;
    assert_eq!(choice["finish_reason"], "length", "{choice}");
    let call = &choice["message"]["tool_calls"][0]["function"];
    assert_eq!(call["name"], "get_weather");
    assert!(serde_json::from_str::<Value>(call["arguments"].as_str().unwrap()).is_err(), "{call}");
    // Before anybody knows that it is a call it is text.
    let choice =
        both(&app, chat(json!({"tools": tools(), "tool_choice": "required", "max_tokens": 3}))).await;
    assert_eq!(choice["finish_reason"], "length");
    assert!(choice["message"].get("tool_calls").is_none(), "{choice}");
    assert!(choice["message"]["content"].as_str().unwrap().contains("<tool_call>"), "{choice}");
}

#[tokio::test]
async fn tools_need_not_be_called_and_a_form_may_stand_beside_them() {
    let app = app();
    let hidden = ask_json(&app, CHAT, chat(json!({"tools": tools(), "tool_choice": "none"}))).await;
    let without = ask_json(&app, CHAT, chat(json!({}))).await;
    assert_eq!(
        hidden["usage"]["prompt_tokens"], without["usage"]["prompt_tokens"],
        "tools that may not be called are not shown"
    );
    assert_eq!(hidden["choices"], without["choices"]);
    let shown = ask_json(&app, CHAT, chat(json!({"tools": tools(), "max_tokens": 5}))).await;
    assert!(shown["usage"]["prompt_tokens"].as_u64() > hidden["usage"]["prompt_tokens"].as_u64());

    let format = json!({"type": "json_schema", "json_schema": {"name": "pet", "schema": schema()}});
    for seed in 0..6 {
        let extra = json!({"tools": tools(), "response_format": format, "temperature": 1.5, "seed": seed, "parallel_tool_calls": false});
        let choice = both(&app, chat(extra)).await;
        match choice["message"].get("tool_calls") {
            Some(calls) => assert!(calls[0]["function"]["name"].is_string()),
            None => {
                let content = choice["message"]["content"].as_str().unwrap();
                assert!(is_valid(&schema(), &serde_json::from_str(content).unwrap()), "{content}");
            }
        }
    }
}

#[tokio::test]
async fn functions_are_called_in_the_manner_before_tools() {
    let app = app();
    let functions = json!([{"name": "get_weather", "parameters": weather_parameters()}]);
    let extra = json!({"functions": functions, "function_call": {"name": "get_weather"}});
    let choice = both(&app, chat(extra)).await;
    assert_eq!(choice["finish_reason"], "function_call");
    let call = &choice["message"]["function_call"];
    assert_eq!(call["name"], "get_weather");
    assert!(is_valid(
        &weather_parameters(),
        &serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap()
    ));
    assert!(choice["message"].get("tool_calls").is_none());

    // What was called and what it gave back read the same in both manners.
    let user = json!({"role": "user", "content": "What is the weather in Rome?"});
    let call = json!({"name": "get_weather", "arguments": "{\"city\": \"Rome\", \"days\": 1}"});
    let old = json!([user, {"role": "assistant", "content": null, "function_call": call},
        {"role": "function", "name": "get_weather", "content": "sunny"}]);
    let new = json!([user, {"role": "assistant", "content": null, "tool_calls": [{"id": "call_1", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}]);
    for model in [HOUSE, TINY] {
        let ask = async |messages: &Value| {
            ask_json(&app, CHAT, chat(json!({"model": model, "messages": messages, "max_tokens": 9}))).await
        };
        let (old, new) = (ask(&old).await, ask(&new).await);
        assert_eq!(old["choices"], new["choices"]);
        assert_eq!(old["usage"]["prompt_tokens"], new["usage"]["prompt_tokens"]);
    }
}

#[tokio::test]
async fn several_choices_each_have_their_calls() {
    let app = app();
    let named = json!({"type": "function", "function": {"name": "get_weather"}});
    let extra = json!({"tools": tools(), "tool_choice": named, "n": 3, "temperature": 1.3, "seed": 3, "logprobs": true});
    let answer = ask_json(&app, CHAT, chat(extra)).await;
    let mut ids = Vec::new();
    for choice in answer["choices"].as_array().unwrap() {
        let call = &choice["message"]["tool_calls"][0];
        assert!(is_valid(&weather_parameters(), &arguments(call)), "{call}");
        ids.push(call["id"].as_str().unwrap().to_owned());
        let tokens = choice["logprobs"]["content"].as_array().unwrap();
        let text: String = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
        assert!(text.starts_with("<tool_call>") && text.contains("get_weather"), "{text}");
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 3);
}

#[tokio::test]
async fn reasoning_is_told_from_the_answer_and_has_its_budget() {
    let (_dir, app) = thinker();
    let format = json!({"type": "json_schema", "json_schema": {"name": "pet", "schema": schema()}});
    let extra = json!({"model": "thinker", "temperature": 1, "seed": 2, "response_format": format, "thinking_budget": 20});
    let choice = both(&app, chat(extra.clone())).await;
    assert_eq!(choice["finish_reason"], "stop", "{choice}");
    let message = &choice["message"];
    assert!(!message["reasoning_content"].as_str().unwrap().is_empty());
    assert!(
        is_valid(&schema(), &serde_json::from_str(message["content"].as_str().unwrap()).unwrap()),
        "{message}"
    );
    let usage = ask_json(&app, CHAT, chat(extra)).await["usage"].clone();
    let n_reasoning = usage["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap();
    // The forced end, a line and the closing tag, is spelt in single bytes.
    assert_eq!(n_reasoning, 20 + "\n</think>".len() as u64, "{usage}");

    for extra in
        [json!({"reasoning_effort": "none"}), json!({"chat_template_kwargs": {"enable_thinking": false}})]
    {
        let body = with(chat(json!({"model": "thinker", "max_tokens": 8})), extra);
        let answer = ask(&app, post(CHAT, body)).await;
        assert!(answer.headers.get("x-mlxr-unsupported").is_none(), "{}", answer.text);
        let answer = answer.json();
        assert!(answer["choices"][0]["message"].get("reasoning_content").is_none(), "{answer}");
        assert!(answer["usage"].get("completion_tokens_details").is_none(), "{answer}");
    }
    let low = ask_json(
        &app,
        CHAT,
        chat(json!({"model": "thinker", "reasoning_effort": "low", "max_tokens": 8, "ignore_eos": true})),
    )
    .await;
    assert_eq!(low["usage"]["completion_tokens_details"]["reasoning_tokens"], 8);
    assert_eq!(low["choices"][0]["message"]["content"], "");

    let tool = json!([{"type": "function", "function": small_tool()}]);
    let extra = json!({
        "model": "thinker", "temperature": 1, "seed": 2, "tools": tool, "tool_choice": "required",
        "parallel_tool_calls": false, "thinking_budget": 5, "max_tokens": 150,
    });
    let choice = both(&app, chat(extra)).await;
    assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
    assert!(!choice["message"]["reasoning_content"].as_str().unwrap().is_empty());
}

#[tokio::test]
async fn an_answer_that_goes_round_in_circles_is_ended() {
    let app = app();
    let bias = json!({"4": 100});
    let extra = json!({"logit_bias": bias, "max_tokens": 400});
    let choice = both(&app, chat(extra.clone())).await;
    assert_eq!(choice["finish_reason"], "loop");
    let choice = both(&app, chat(with(extra, json!({"loop_guard": false})))).await;
    assert_eq!(choice["finish_reason"], "length");
}

/// Lines of a streamed answer in Ollama's dialect.
fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A whole answer of Ollama's; a stream must say the same.
async fn ollama(app: &Arc<App>, extra: Value) -> Value {
    let messages = json!([{"role": "user", "content": "What is the weather in Rome?"}]);
    let body = json!({"model": HOUSE, "messages": messages, "options": {"temperature": 0, "num_predict": 150}, "stream": false});
    let body = with(body, extra);
    let whole = ask_json(app, OLLAMA, body.clone()).await;
    let streamed = lines(&ask(app, post(OLLAMA, with(body, json!({"stream": true})))).await.text);
    for key in ["content", "thinking"] {
        let joined: String = streamed.iter().filter_map(|line| line["message"][key].as_str()).collect();
        assert_eq!(whole["message"][key].as_str().unwrap_or_default(), joined);
    }
    let calls: Vec<&Value> =
        streamed.iter().filter_map(|line| line["message"]["tool_calls"].as_array()).flatten().collect();
    let functions =
        |calls: Vec<&Value>| calls.iter().map(|call| call["function"].clone()).collect::<Vec<_>>();
    let whole_calls = whole["message"]["tool_calls"].as_array().into_iter().flatten().collect();
    assert_eq!(functions(calls), functions(whole_calls));
    assert_eq!(streamed.last().unwrap()["done_reason"], whole["done_reason"]);
    whole
}

#[tokio::test]
async fn ollama_s_format_tools_and_thinking_are_honoured() {
    let app = app();
    let answer = ollama(&app, json!({"format": schema()})).await;
    let content = answer["message"]["content"].as_str().unwrap();
    assert!(is_valid(&schema(), &serde_json::from_str(content).unwrap()), "{content}");
    let body = json!({"model": HOUSE, "prompt": "A pet:", "format": schema(), "stream": false, "options": {"temperature": 0}});
    for raw in [false, true] {
        let answer = ask_json(&app, "/api/generate", with(body.clone(), json!({"raw": raw}))).await;
        let content = answer["response"].as_str().unwrap();
        assert!(is_valid(&schema(), &serde_json::from_str(content).unwrap()), "{content}");
    }
    let answer =
        ollama(&app, json!({"format": "json", "options": {"temperature": 0, "num_predict": 9}})).await;
    assert!(answer["message"]["content"].as_str().unwrap().starts_with('{'), "{answer}");

    // There is no way to insist on a call but a form that leaves nothing else.
    let impossible = json!({"type": "object", "properties": {"x": {"const": "never"}}, "required": ["x"], "additionalProperties": false});
    let tools = json!([{"type": "function", "function": {"name": "get_weather", "parameters": weather_parameters()}}]);
    let system = "Reply with <tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\", \"days\": 1}}</tool_call>";
    let messages = json!([{"role": "system", "content": system}, {"role": "user", "content": "What is the weather in Rome?"}]);
    let bias = ollama(&app, json!({"tools": tools, "messages": messages, "format": impossible})).await;
    match bias["message"].get("tool_calls") {
        Some(calls) => {
            let call = &calls[0]["function"];
            assert_eq!(call["name"], "get_weather");
            assert!(is_valid(&weather_parameters(), &call["arguments"]), "{call}");
        }
        None => assert_eq!(bias["message"]["content"], "{\"x\": \"never\"}"),
    }

    let (_dir, thinker) = thinker();
    // A form leaves the model no way to end before it has thought and answered.
    for (think, has_thinking) in [(json!(true), true), (json!("low"), true), (json!(false), false)] {
        let options = json!({"temperature": 0, "num_predict": 12});
        let extra = json!({"model": "thinker", "think": think, "options": options, "format": schema()});
        let answer = ollama(&thinker, extra).await;
        assert_eq!(answer["message"].get("thinking").is_some(), has_thinking, "{answer}");
    }
}

/// Events of a streamed answer in Anthropic's dialect.
fn anthropic_events(text: &str) -> Vec<Value> {
    let data = |event: &str| serde_json::from_str(event.split_once("\ndata: ").unwrap().1).unwrap();
    text.split_terminator("\n\n").map(data).collect()
}

/// A whole answer of Anthropic's; a stream must say the same.
async fn anthropic(app: &Arc<App>, extra: Value) -> Value {
    let messages = json!([{"role": "user", "content": "What is the weather in Rome?"}]);
    let body = json!({"model": HOUSE, "messages": messages, "temperature": 0, "max_tokens": 150});
    let body = with(body, extra);
    let whole = ask_json(app, ANTHROPIC, body.clone()).await;
    let events = anthropic_events(&ask(app, post(ANTHROPIC, with(body, json!({"stream": true})))).await.text);
    let mut content: Vec<Value> = Vec::new();
    for event in &events {
        match event["type"].as_str().unwrap() {
            "content_block_start" => content.push(event["content_block"].clone()),
            "content_block_delta" => {
                let block = content.last_mut().unwrap();
                let delta = &event["delta"];
                match delta["type"].as_str().unwrap() {
                    "text_delta" => {
                        block["text"] = json!(format!(
                            "{}{}",
                            block["text"].as_str().unwrap(),
                            delta["text"].as_str().unwrap()
                        ))
                    }
                    "thinking_delta" => {
                        block["thinking"] = json!(format!(
                            "{}{}",
                            block["thinking"].as_str().unwrap(),
                            delta["thinking"].as_str().unwrap()
                        ));
                    }
                    "input_json_delta" => {
                        assert_eq!(block["input"], json!({}));
                        block["input"] =
                            serde_json::from_str(delta["partial_json"].as_str().unwrap()).unwrap();
                    }
                    other => panic!("{other}"),
                }
            }
            "message_delta" => assert_eq!(event["delta"]["stop_reason"], whole["stop_reason"]),
            _ => {}
        }
    }
    let without_ids = |content: &[Value]| {
        let mut content = content.to_vec();
        content.iter_mut().for_each(|block| drop(block.as_object_mut().unwrap().remove("id")));
        content
    };
    assert_eq!(without_ids(whole["content"].as_array().unwrap()), without_ids(&content));
    whole
}

#[tokio::test]
async fn anthropic_s_tools_forms_and_thinking_are_honoured() {
    let app = app();
    let tools = json!([
        {"name": "get_weather", "description": "The weather.", "input_schema": weather_parameters()},
        {"name": "stop", "input_schema": {"type": "object", "properties": {}}},
    ]);
    for choice in [
        json!({"type": "tool", "name": "get_weather"}),
        json!({"type": "any", "disable_parallel_tool_use": true}),
    ] {
        let answer = anthropic(&app, json!({"tools": tools, "tool_choice": choice})).await;
        assert_eq!(answer["stop_reason"], "tool_use", "{answer}");
        let block = &answer["content"][0];
        assert_eq!(block["type"], "tool_use");
        assert!(block["name"] == "stop" || is_valid(&weather_parameters(), &block["input"]), "{block}");
    }
    let cut = anthropic(
        &app,
        json!({"tools": tools, "tool_choice": {"type": "tool", "name": "get_weather"}, "max_tokens": 22}),
    )
    .await;
    assert_eq!((&cut["stop_reason"], &cut["content"][0]["type"]), (&json!("max_tokens"), &json!("text")));
    assert!(cut["content"][0]["text"].as_str().unwrap().contains("get_weather"), "what breaks off is text");

    let format = json!({"type": "json_schema", "schema": schema()});
    for extra in [json!({"output_config": {"format": format}}), json!({"output_format": format})] {
        let answer = anthropic(&app, extra).await;
        let text = answer["content"][0]["text"].as_str().unwrap();
        assert!(is_valid(&schema(), &serde_json::from_str(text).unwrap()), "{text}");
    }
    let messages = json!([
        {"role": "user", "content": "What is the weather in Rome?"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "get_weather", "input": {"city": "Rome", "days": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "sunny"}]},
    ]);
    anthropic(&app, json!({"messages": messages, "tools": tools, "max_tokens": 9})).await;
    let tool = json!({"name": "dice", "input_schema": small_parameters()});
    let extra = json!({"model": TINY, "tools": [tool], "tool_choice": {"type": "tool", "name": "dice"}});
    let answer = anthropic(&app, extra).await;
    assert!(is_valid(&small_parameters(), &answer["content"][0]["input"]), "{answer}");

    let (_dir, thinker) = thinker();
    let extra = json!({"model": "thinker", "thinking": {"type": "enabled", "budget_tokens": 10}, "output_config": {"format": format}});
    let answer = anthropic(&thinker, with(extra, json!({"max_tokens": 200}))).await;
    assert_eq!(answer["content"][0]["type"], "thinking", "{answer}");
    let text = answer["content"][1]["text"].as_str().unwrap();
    assert!(is_valid(&schema(), &serde_json::from_str(text).unwrap()), "{text}");
    let quiet = json!({"model": "thinker", "thinking": {"type": "disabled"}, "max_tokens": 9});
    assert_eq!(anthropic(&thinker, quiet).await["content"][0]["type"], "text");
}

#[tokio::test]
async fn what_a_tool_gave_back_goes_on() {
    let app = app();
    let messages = json!([
        {"role": "user", "content": "What is the weather in Rome?"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "call_1", "type": "function",
            "function": {"name": "get_weather", "arguments": "{\"city\": \"Rome\", \"days\": 1}"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny, 25 degrees"},
    ]);
    let more =
        ask_json(&app, CHAT, chat(json!({"messages": messages, "tools": tools(), "max_tokens": 12}))).await;
    let fewer = ask_json(&app, CHAT, chat(json!({"tools": tools(), "max_tokens": 1}))).await;
    let n_prompt = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(n_prompt(&more) > n_prompt(&fewer), "calls and results are shown");
}
