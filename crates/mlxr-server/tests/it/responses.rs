//! `/v1/responses`: the events of a stream in order, what is kept and gone on from, functions, forms, reasoning, and
//! what is refused.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use mlxr_server::App;
use serde_json::{Value, json};

use crate::harness::{HOUSE, TINY, app, ask, ask_json, assert_idle, get, post, thinker};

const PATH: &str = "/v1/responses";

fn body(extra: Value) -> Value {
    let mut body = json!({"model": HOUSE, "input": "What is the weather in Rome?", "temperature": 0, "max_output_tokens": 24});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn events(text: &str) -> Vec<Value> {
    let read = |event: &str| -> Value {
        let (name, data) = event.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["type"], name);
        data
    };
    let events: Vec<Value> = text.split_terminator("\n\n").map(read).collect();
    for (i, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], i);
    }
    events
}

/// An item or a response without what differs from answer to answer.
fn comparable(value: &Value) -> Value {
    let mut value = value.clone();
    let mut open = vec![&mut value];
    while let Some(value) = open.pop() {
        match value {
            Value::Object(fields) => {
                for name in ["id", "call_id", "created_at", "completed_at", "input_tokens_details"] {
                    fields.remove(name);
                }
                open.extend(fields.values_mut());
            }
            Value::Array(list) => open.extend(list),
            _ => {}
        }
    }
    value
}

/// Asks for a whole response and a stream, which must agree, also within itself.
async fn both(app: &Arc<App>, body: Value) -> (Value, Vec<Value>) {
    let whole = ask_json(app, PATH, body.clone()).await;
    let mut streamed = body;
    streamed["stream"] = json!(true);
    let events = events(&ask(app, post(PATH, streamed)).await.text);
    let last = &events.last().unwrap()["response"];
    assert_eq!(comparable(&whole), comparable(last));
    for (i, item) in last["output"].as_array().unwrap().iter().enumerate() {
        let of_item: Vec<&Value> = events.iter().filter(|event| event["output_index"] == i).collect();
        assert_eq!(&of_item.last().unwrap()["item"], item);
        let deltas: String = of_item.iter().filter_map(|event| event["delta"].as_str()).collect();
        let text = item["content"][0]["text"].as_str().or(item["arguments"].as_str()).unwrap();
        assert_eq!(deltas, text);
        for event in &of_item[1..of_item.len() - 1] {
            assert_eq!(event["item_id"], item["id"]);
        }
    }
    (whole, events)
}

fn names(events: &[Value]) -> Vec<&str> {
    let mut names: Vec<&str> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap().strip_prefix("response.").unwrap())
        .collect();
    names.dedup();
    names
}

fn weather() -> Value {
    let parameters = json!({
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 10}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": false,
    });
    json!({"type": "function", "name": "get_weather", "description": "The weather.", "parameters": parameters, "strict": true})
}

async fn request(app: &Arc<App>, method: Method, path: &str) -> (StatusCode, Value) {
    let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
    let answer = ask(app, request).await;
    (answer.status, answer.json())
}

#[tokio::test]
async fn a_text_comes_in_these_events() {
    let app = app();
    let (whole, events) = both(&app, body(json!({"metadata": {"a": "b"}}))).await;
    assert_eq!(
        names(&events),
        [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "incomplete"
        ]
    );
    assert_eq!((&whole["object"], &whole["status"]), (&json!("response"), &json!("incomplete")));
    assert_eq!(whole["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!((&whole["metadata"]["a"], &whole["store"]), (&json!("b"), &json!(true)));
    let message = &whole["output"][0];
    assert_eq!((&message["role"], &message["status"]), (&json!("assistant"), &json!("incomplete")));
    assert_eq!(whole["usage"]["output_tokens"], 24);
    let created = &events[0]["response"];
    assert_eq!((&created["status"], &created["output"]), (&json!("in_progress"), &json!([])));
    assert_eq!(events[2]["item"]["content"], json!([]));
    assert_eq!(
        events[3]["part"],
        json!({"type": "output_text", "text": "", "annotations": [], "logprobs": []})
    );

    // It says what chat completions say.
    let messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]);
    let chat = json!({"model": HOUSE, "messages": messages, "temperature": 0, "max_tokens": 300});
    let chat = ask_json(&app, "/v1/chat/completions", chat).await;
    let extra = json!({"instructions": "Be brief.", "input": "Hello", "max_output_tokens": 300});
    let (whole, events) = both(&app, body(extra)).await;
    assert_eq!(whole["output"][0]["content"][0]["text"], chat["choices"][0]["message"]["content"]);
    assert_eq!(chat["choices"][0]["finish_reason"], "stop");
    assert_eq!(
        (&whole["status"], &events.last().unwrap()["type"]),
        (&json!("completed"), &json!("response.completed"))
    );
    assert_idle(&app, HOUSE).await;
}

#[tokio::test]
async fn log_probabilities_stand_beside_their_text() {
    let app = app();
    let extra = json!({"include": ["message.output_text.logprobs"], "top_logprobs": 2});
    let (whole, events) = both(&app, body(extra)).await;
    let part = &whole["output"][0]["content"][0];
    let tokens = part["logprobs"].as_array().unwrap();
    let text: String = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(part["text"], text);
    assert!(tokens.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 2));
    let streamed = events.iter().filter(|event| event["type"] == "response.output_text.delta");
    let streamed: Vec<Value> =
        streamed.flat_map(|event| event["logprobs"].as_array().unwrap().clone()).collect();
    assert_eq!(&streamed, tokens);
    let (without, _) = both(&app, body(json!({}))).await;
    assert_eq!(without["output"][0]["content"][0]["logprobs"], json!([]));
}

#[tokio::test]
async fn functions_are_called_and_give_back() {
    let app = app();
    for choice in [
        json!("required"),
        json!({"type": "function", "name": "get_weather"}),
        json!({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]}),
    ] {
        let other = json!({"type": "function", "name": "stop", "parameters": {"type": "object", "properties": {}}, "strict": null});
        let tools = if choice == "required" { json!([weather()]) } else { json!([other, weather()]) };
        let extra = json!({"tools": tools, "tool_choice": choice, "parallel_tool_calls": false, "max_output_tokens": 200});
        let (whole, events) = both(&app, body(extra)).await;
        assert_eq!(
            names(&events),
            [
                "created",
                "in_progress",
                "output_item.added",
                "function_call_arguments.delta",
                "function_call_arguments.done",
                "output_item.done",
                "completed"
            ]
        );
        assert_eq!((&whole["tool_choice"], &whole["tools"]), (&choice, &tools));
        let call = &whole["output"][0];
        assert_eq!(
            (&call["type"], &call["name"], &call["status"]),
            (&json!("function_call"), &json!("get_weather"), &json!("completed"))
        );
        let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
        assert!(
            jsonschema::validator_for(&weather()["parameters"]).unwrap().is_valid(&arguments),
            "{arguments}"
        );

        // The output of a call follows it, whether the call is kept here or sent again.
        let output = json!({"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"});
        let user = json!({"role": "user", "content": "What is the weather in Rome?"});
        let kept = json!({"previous_response_id": whole["id"], "input": [output]});
        let kept = ask_json(&app, PATH, body(kept)).await;
        let sent = ask_json(&app, PATH, body(json!({"input": [user, call, output], "store": false}))).await;
        assert_eq!(kept["output"][0]["content"], sent["output"][0]["content"]);
        assert_eq!(kept["usage"]["input_tokens"], sent["usage"]["input_tokens"]);
    }
    let cut = json!({"tools": [weather()], "tool_choice": "required", "max_output_tokens": 22});
    let (cut, _) = both(&app, body(cut)).await;
    assert_eq!((&cut["status"], &cut["output"][0]["status"]), (&json!("incomplete"), &json!("incomplete")));
}

#[tokio::test]
async fn a_text_has_its_form() {
    let app = app();
    let schema = json!({"type": "object", "properties": {"animal": {"enum": ["cat", "dog"]}}, "required": ["animal"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "name": "pet", "strict": true, "schema": schema});
    let (whole, _) = both(&app, body(json!({"text": {"format": format}}))).await;
    let text = whole["output"][0]["content"][0]["text"].as_str().unwrap();
    assert!(jsonschema::validator_for(&schema).unwrap().is_valid(&serde_json::from_str(text).unwrap()));
    assert_eq!(whole["text"]["format"], format);
    let (whole, _) =
        both(&app, body(json!({"text": {"format": {"type": "regex", "pattern": "[0-9]{4}"}}}))).await;
    assert!(whole["output"][0]["content"][0]["text"].as_str().unwrap().parse::<u16>().is_ok());
    let (whole, _) = both(&app, body(json!({"text": {"format": {"type": "json_object"}}}))).await;
    assert!(whole["output"][0]["content"][0]["text"].as_str().unwrap().starts_with('{'));
}

#[tokio::test]
async fn reasoning_is_an_item_of_its_own() {
    let (_dir, app) = thinker();
    let format = json!({"type": "regex", "pattern": "[a-c]{3}"});
    let extra = json!({"model": "thinker", "thinking_budget": 12, "text": {"format": format}, "max_output_tokens": 100});
    let (whole, events) = both(&app, body(extra.clone())).await;
    assert_eq!(
        names(&events),
        [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "reasoning_text.delta",
            "reasoning_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "completed"
        ]
    );
    assert_eq!(whole["output"][0]["type"], "reasoning");
    assert_eq!(whole["output"][1]["content"][0]["text"].as_str().unwrap().len(), 3);
    let n_reasoning = whole["usage"]["output_tokens_details"]["reasoning_tokens"].as_u64().unwrap();
    assert!(n_reasoning >= 12, "{whole}");
    // The reasoning goes on with the conversation.
    let next = json!({"model": "thinker", "previous_response_id": whole["id"], "input": "Go on", "reasoning": {"effort": "none"}});
    let next = ask_json(&app, PATH, body(next)).await;
    let without = json!({"model": "thinker", "reasoning": {"effort": "none"}, "input": [
        {"role": "user", "content": "What is the weather in Rome?"}, whole["output"][1], {"role": "user", "content": "Go on"}]});
    let without = ask_json(&app, PATH, body(without)).await;
    let n_input = |answer: &Value| answer["usage"]["input_tokens"].as_u64().unwrap();
    assert!(n_input(&next) > n_input(&without));
    assert_eq!(next["output"][0]["type"], "message", "{next}");
    let cut = json!({"model": "thinker", "max_output_tokens": 5, "ignore_eos": true});
    let (cut, _) = both(&app, body(cut)).await;
    assert_eq!(
        (&cut["output"][0]["type"], &cut["output"][0]["status"]),
        (&json!("reasoning"), &json!("incomplete"))
    );
}

#[tokio::test]
async fn a_response_is_kept_gone_on_from_and_forgotten() {
    let app = app();
    let first =
        ask_json(&app, PATH, body(json!({"input": "My cat is called Tom.", "instructions": "Be kind."})))
            .await;
    let path = format!("{PATH}/{}", first["id"].as_str().unwrap());
    assert_eq!(get(&app, &path).await.json(), first);
    let second =
        json!({"input": [{"role": "user", "content": "Who is Tom?"}], "previous_response_id": first["id"]});
    let second = ask_json(&app, PATH, body(second)).await;
    assert_eq!(second["previous_response_id"], first["id"]);
    assert_eq!(second["instructions"], Value::Null, "instructions are for one turn");
    // The same as the whole conversation at once.
    let text = first["output"][0]["content"][0]["text"].clone();
    let all = json!([{"role": "user", "content": "My cat is called Tom."}, {"role": "assistant", "content": text},
        {"role": "user", "content": "Who is Tom?"}]);
    let at_once = ask_json(&app, PATH, body(json!({"input": all, "store": false}))).await;
    assert_eq!(second["output"][0]["content"], at_once["output"][0]["content"]);
    assert_eq!(second["usage"]["input_tokens"], at_once["usage"]["input_tokens"]);
    assert!(second["usage"]["input_tokens_details"]["cached_tokens"].is_u64());
    let missing = get(&app, &format!("{PATH}/{}", at_once["id"].as_str().unwrap())).await;
    assert_eq!(
        (missing.status, &missing.json()["error"]["code"]),
        (StatusCode::NOT_FOUND, &json!("response_not_found"))
    );

    let items = format!("{PATH}/{}/input_items", second["id"].as_str().unwrap());
    let list = get(&app, &format!("{items}?order=asc")).await.json();
    let texts: Vec<&str> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["content"][0]["text"].as_str().unwrap())
        .collect();
    assert_eq!(texts, ["My cat is called Tom.", text.as_str().unwrap(), "Who is Tom?"]);
    assert_eq!(list["data"][1]["id"], first["output"][0]["id"]);
    let page = get(&app, &format!("{items}?limit=1")).await.json();
    assert_eq!((&page["data"][0], &page["has_more"]), (&list["data"][2], &json!(true)));
    let next =
        get(&app, &format!("{items}?limit=2&after={}", page["last_id"].as_str().unwrap())).await.json();
    assert_eq!((&next["data"][1], &next["has_more"]), (&list["data"][0], &json!(false)));

    // An item can be named instead of sent.
    let reference = json!({"type": "item_reference", "id": first["output"][0]["id"]});
    let named = json!([{"role": "user", "content": "My cat is called Tom."}, reference, {"role": "user", "content": "Who is Tom?"}]);
    let named = ask_json(&app, PATH, body(json!({"input": named}))).await;
    assert_eq!(named["output"][0]["content"], second["output"][0]["content"]);

    let (status, deleted) = request(&app, Method::DELETE, &path).await;
    assert_eq!(
        (status, &deleted),
        (StatusCode::OK, &json!({"id": first["id"], "object": "response", "deleted": true}))
    );
    assert_eq!(request(&app, Method::DELETE, &path).await.0, StatusCode::NOT_FOUND);
    let gone = ask(&app, post(PATH, body(json!({"previous_response_id": first["id"]})))).await;
    let error = &gone.json()["error"];
    assert_eq!(
        (gone.status, &error["param"], &error["code"]),
        (StatusCode::BAD_REQUEST, &json!("previous_response_id"), &json!("previous_response_not_found"))
    );
    let still =
        ask_json(&app, PATH, body(json!({"previous_response_id": second["id"], "input": "And?"}))).await;
    assert_eq!(still["object"], "response", "a later response has the conversation itself");
}

#[tokio::test]
async fn a_streamed_response_can_be_gone_on_from_at_once() {
    let app = app();
    let answer = ask(&app, post(PATH, body(json!({"stream": true})))).await;
    let streamed = events(&answer.text);
    let response = &streamed.last().unwrap()["response"];
    assert_eq!(&get(&app, &format!("{PATH}/{}", response["id"].as_str().unwrap())).await.json(), response);
    let quiet = ask(&app, post(PATH, body(json!({"stream": true, "store": false})))).await;
    let id = events(&quiet.text)[0]["response"]["id"].as_str().unwrap().to_owned();
    assert_eq!(get(&app, &format!("{PATH}/{id}")).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn work_in_the_background_is_polled_or_cancelled() {
    let app = app();
    let begun = ask_json(&app, PATH, body(json!({"background": true}))).await;
    assert_eq!((&begun["status"], &begun["output"]), (&json!("in_progress"), &json!([])));
    let path = format!("{PATH}/{}", begun["id"].as_str().unwrap());
    let finished = async {
        loop {
            let now = get(&app, &path).await.json();
            if now["status"] != "in_progress" {
                return now;
            }
            tokio::task::yield_now().await;
        }
    };
    let finished = tokio::time::timeout(std::time::Duration::from_secs(60), finished).await.unwrap();
    let whole = ask_json(&app, PATH, body(json!({}))).await;
    assert_eq!(finished["output"][0]["content"], whole["output"][0]["content"]);
    assert_eq!(request(&app, Method::POST, &format!("{path}/cancel")).await.1, finished);

    let long =
        json!({"background": true, "max_output_tokens": 1900, "ignore_eos": true, "loop_guard": false});
    let begun = ask_json(&app, PATH, body(long)).await;
    let path = format!("{PATH}/{}", begun["id"].as_str().unwrap());
    let early = ask(&app, post(PATH, body(json!({"previous_response_id": begun["id"]})))).await;
    assert!(early.text.contains("still in progress"), "{}", early.text);
    let (status, cancelled) = request(&app, Method::POST, &format!("{path}/cancel")).await;
    assert_eq!((status, &cancelled["status"]), (StatusCode::OK, &json!("cancelled")));
    assert_idle(&app, HOUSE).await;
    assert_eq!(get(&app, &path).await.json(), cancelled);

    let other = format!("{PATH}/{}/cancel", whole["id"].as_str().unwrap());
    let (status, error) = request(&app, Method::POST, &other).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(error["error"]["message"].as_str().unwrap().contains("background"), "{error}");
}

#[tokio::test]
async fn a_conversation_too_long_is_refused_or_shortened() {
    let app = app();
    let turn = |i: usize| json!([{"role": "user", "content": format!("{i} ").repeat(30)}, {"role": "assistant", "content": "Yes."}]);
    let mut items: Vec<Value> = vec![json!({"role": "system", "content": "Be brief."})];
    items.extend((0..12).flat_map(|i| turn(i).as_array().unwrap().clone()));
    items.push(json!({"role": "user", "content": "Bye"}));
    let extra = json!({"model": TINY, "input": items, "max_output_tokens": 8});
    let refused = ask(&app, post(PATH, body(extra.clone()))).await;
    assert_eq!(
        (refused.status, &refused.json()["error"]["code"]),
        (StatusCode::BAD_REQUEST, &json!("context_length_exceeded"))
    );
    let mut extra = extra;
    extra["truncation"] = json!("auto");
    let whole = ask_json(&app, PATH, body(extra.clone())).await;
    let n_input = whole["usage"]["input_tokens"].as_u64().unwrap();
    assert!((300..=504).contains(&n_input), "as much as fits stays: {n_input}");
    let counted = ask_json(&app, "/v1/responses/input_tokens", body(extra)).await;
    assert_eq!(counted, json!({"object": "response.input_tokens", "input_tokens": n_input}));
    let one = json!({"model": TINY, "input": "x".repeat(2000), "truncation": "auto"});
    let refused = ask(&app, post(PATH, body(one))).await;
    assert_eq!(
        refused.json()["error"]["code"],
        "context_length_exceeded",
        "nothing is left out of a message"
    );
}

#[tokio::test]
async fn what_cannot_be_honoured_is_refused_by_its_field() {
    let app = app();
    let metadata: Value =
        (0..17).map(|i| (i.to_string(), json!("x"))).collect::<serde_json::Map<_, _>>().into();
    for (extra, param, text) in [
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type", "web_search"),
        (
            json!({"tools": [weather(), {"type": "code_interpreter", "container": {"type": "auto"}}]}),
            "tools[1].type",
            "code_interpreter",
        ),
        (json!({"tools": [{"type": "function"}]}), "tools[0].name", "name"),
        (
            json!({"tools": [weather()], "tool_choice": {"type": "web_search_preview"}}),
            "tool_choice.type",
            "web_search_preview",
        ),
        (
            json!({"tools": [weather()], "tool_choice": {"type": "function", "name": "x"}}),
            "tool_choice",
            "\"x\"",
        ),
        (
            json!({"tools": [weather()], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"name": "x"}]}}),
            "tool_choice.tools[0].name",
            "\"x\"",
        ),
        (json!({"tool_choice": "required"}), "tool_choice", "no tools"),
        (json!({"conversation": "conv_1"}), "conversation", "previous_response_id"),
        (json!({"prompt": {"id": "pmpt_1"}}), "prompt", "instructions"),
        (json!({"background": true, "stream": true}), "background", "streamed"),
        (json!({"background": true, "store": false}), "background", "store"),
        (json!({"input": []}), "input", "empty"),
        (json!({"input": [{"type": "computer_call"}]}), "input[0].type", "computer_call"),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}),
            "input[0].content[0].type",
            "only text",
        ),
        (
            json!({"input": [{"type": "function_call_output", "call_id": "c", "output": ""}]}),
            "input",
            "\"c\"",
        ),
        (json!({"max_output_tokens": 0}), "max_output_tokens", "0"),
        (json!({"top_logprobs": 21}), "top_logprobs", "20"),
        (json!({"metadata": metadata}), "metadata", "17"),
        (json!({"reasoning": {"effort": "enormous"}}), "reasoning.effort", "enormous"),
        (
            json!({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"uniqueItems": true}}}}),
            "text.format.schema",
            "uniqueItems",
        ),
        (json!({"truncation": "sometimes"}), "truncation", "sometimes"),
        (json!({"strict": true, "user": "me"}), "user", "told apart"),
    ] {
        let answer = ask(&app, post(PATH, body(extra.clone()))).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{extra}");
        let error = &answer.json()["error"];
        assert_eq!(error["param"], param, "{error}");
        assert!(error["message"].as_str().unwrap().contains(text), "{error}");
    }
    let extra = json!({"include": ["file_search_call.results"], "reasoning": {"effort": "high", "summary": "auto"}, "max_tool_calls": 1, "fancy": 1});
    let answer = ask(&app, post(PATH, body(extra))).await;
    assert_eq!(
        answer.headers["x-mlxr-unsupported"],
        "reasoning.effort, include.file_search_call.results, max_tool_calls, reasoning.summary, fancy"
    );
    assert_eq!(answer.json()["warnings"].as_array().unwrap().len(), 5);
    let (status, error) = request(&app, Method::GET, "/v1/responses/resp_x?stream=true").await;
    assert_eq!((status, &error["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("stream")));
}
