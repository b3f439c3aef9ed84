//! Grammars on a small vocabulary: what they accept, and what they lead a blind sampler to.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use mlxr_text::grammar::{Constraint, Grammar, GrammarError, GrammarFactory, ToolChoice};
use mlxr_text::reasoning::ReasoningTags;
use mlxr_text::tool_calls::{OutputOptions, OutputParser, ToolFormat, ToolSpec};
use mlxr_text::{Detokenizer, EncodeOptions, HfFiles, Tokenizer};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::data;

/// A byte-level vocabulary of 500 whose end token is `<|im_end|>`.
pub fn small() -> Tokenizer {
    let json = fs::read(data::golden_path("byte-level.tokenizer.json")).unwrap();
    let config: Map<String, Value> = json!({"eos_token": "<|im_end|>"}).as_object().unwrap().clone();
    let none = Map::new();
    let files = HfFiles { tokenizer_json: &json, tokenizer_config: &config, special_tokens_map: &none };
    Tokenizer::from_hf(&files).unwrap()
}

static SMALL: LazyLock<(Tokenizer, GrammarFactory)> = LazyLock::new(|| {
    let tokenizer = small();
    let factory = GrammarFactory::for_tokenizer(&tokenizer).unwrap();
    (tokenizer, factory)
});

fn of(grammar: Grammar) -> Constraint {
    Constraint { grammar: Some(grammar), ..Constraint::default() }
}

/// The ids of a text byte by byte, so that every boundary is met.
fn byte_ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let find =
        |byte: u8| (0..tokenizer.n_vocab() as u32).find(|&id| tokenizer.token_bytes(id) == Some(&[byte]));
    text.bytes().map(|byte| find(byte).unwrap_or_else(|| panic!("no token for {byte}"))).collect()
}

/// Whether a constraint lets a whole text through and the end after it.
fn accepts(constraint: &Constraint, text: &str) -> bool {
    let (tokenizer, factory) = &*SMALL;
    let mut state = factory.start(constraint).unwrap();
    for id in byte_ids(tokenizer, text) {
        let mask = state.mask().unwrap();
        if mask.is_some_and(|mask| !mask.allows(id)) {
            return false;
        }
        state.commit(id).unwrap();
    }
    let end = tokenizer.eos().unwrap();
    state.mask().unwrap().is_none_or(|mask| mask.allows(end))
}

/// What a sampler without a model writes: any allowed token, by chance.
fn write_blindly(constraint: &Constraint, seed: u64, max_tokens: usize) -> Option<String> {
    let (tokenizer, factory) = &*SMALL;
    let mut state = factory.start(constraint).unwrap();
    let mut text = Detokenizer::new(tokenizer);
    let mut out = String::new();
    let mut random = seed;
    for _ in 0..max_tokens {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mask = state.mask().unwrap().expect("a grammar masks");
        let ids = mask.ids();
        assert!(!ids.is_empty(), "nothing is allowed after {out:?}");
        let ends = ids.iter().find(|id| tokenizer.eog_ids().contains(id));
        // Leave when it is possible, most of the time: texts stay short.
        let id = match ends {
            Some(&end) if random >> 62 != 0 => end,
            _ => ids[(random >> 33) as usize % ids.len()],
        };
        state.commit(id).unwrap();
        if tokenizer.eog_ids().contains(&id) || state.is_done() {
            if !tokenizer.eog_ids().contains(&id) {
                out.push_str(&text.push(id));
            }
            return Some(out + &text.finish());
        }
        out.push_str(&text.push(id));
    }
    None
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 5},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
            "next": {"anyOf": [{"$ref": "#/$defs/leaf"}, {"type": "null"}]},
        },
        "required": ["name", "age", "tags", "next"],
        "additionalProperties": false,
        "$defs": {"leaf": {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"], "additionalProperties": false}},
    })
}

#[test]
fn schemas_accept_what_they_describe() {
    let constraint = of(Grammar::json_schema(&person()).unwrap());
    for text in [
        r#"{"name": "Ann", "age": 7, "tags": ["a", "b"], "next": null}"#,
        r#"{"name":"é\n","age":120,"tags":[],"next":{"x":false}}"#,
    ] {
        assert!(accepts(&constraint, text), "{text}");
    }
    for text in [
        r#"{"name": "Ann", "age": 121, "tags": [], "next": null}"#,
        r#"{"name": "Annabel", "age": 1, "tags": [], "next": null}"#,
        r#"{"name": "Ann", "age": 7, "tags": ["c"], "next": null}"#,
        r#"{"name": "Ann", "age": 7, "tags": []}"#,
        "{}",
        "",
    ] {
        assert!(!accepts(&constraint, text), "{text}");
    }
}

#[test]
fn json_objects_are_objects() {
    let constraint = of(Grammar::json_object());
    assert!(accepts(&constraint, r#"{"a": [1, {"b": null}], "c": "}"}"#));
    for text in ["[1]", "3", "{\"a\": }", "x"] {
        assert!(!accepts(&constraint, text), "{text}");
    }
}

#[test]
fn regular_expressions_match_as_a_whole() {
    let constraint = of(Grammar::regex(r"[0-9]{4}-[01][0-9]|never/ever").unwrap());
    assert!(accepts(&constraint, "2024-12"));
    assert!(accepts(&constraint, "never/ever"));
    assert!(!accepts(&constraint, "2024-32"));
    assert!(!accepts(&constraint, "2024-1"));
    assert!(matches!(Grammar::regex("(a"), Err(GrammarError::Compile { what: "regex", .. })));
    assert!(Grammar::regex(r"(?=a)b").is_err());
}

#[test]
fn lark_grammars_are_followed_and_their_errors_told() {
    let grammar = Grammar::lark("start: \"(\" start? \")\" | WORD\nWORD: /[a-z]+/\n").unwrap();
    let constraint = of(grammar);
    assert!(accepts(&constraint, "((ab))"));
    assert!(accepts(&constraint, "()"));
    assert!(!accepts(&constraint, "(()"));
    let e = Grammar::lark("start: missing").unwrap_err();
    assert!(e.to_string().contains("missing"), "{e}");
}

#[test]
fn gbnf_has_the_language_it_says() {
    let json = r#"
        # JSON
        root   ::= object
        value  ::= object | array | string | number | ("true" | "false" | "null") ws
        object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
        array  ::= "[" ws ( value ("," ws value)* )? "]" ws
        string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
        number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9]+)? ws
        ws ::= | " " | "\n" [ \t]{0,20}
    "#;
    let constraint = of(Grammar::gbnf(json).unwrap());
    assert!(accepts(&constraint, "{\"a\": [1, -2.5e+3, true], \"b\\n\": {}}"));
    assert!(!accepts(&constraint, "{\"a\": [1,, 2]}"));
    assert!(!accepts(&constraint, "{\"a\": tru}"));
    // A longest match would take "ab" for the end too early.
    let greedy = of(Grammar::gbnf("root ::= [a-z]+ \"ab\" | \"(\" root \")\"").unwrap());
    for (text, is_in) in [("abab", true), ("xab", true), ("((aab))", true), ("ab", false), ("aba", false)] {
        assert_eq!(accepts(&greedy, text), is_in, "{text}");
    }
    let regular = of(Grammar::gbnf("root ::= a{2,3} . b?\na ::= \"ab\" | [0-9]\nb ::= \"é\"").unwrap());
    for (text, is_in) in [("ab1x", true), ("123\n", true), ("12", false), ("ababxé", true), ("1x", false)] {
        assert_eq!(accepts(&regular, text), is_in, "{text}");
    }
}

#[test]
fn a_finished_grammar_leaves_only_the_end() {
    let (tokenizer, factory) = &*SMALL;
    let mut state = factory.start(&of(Grammar::regex("ab").unwrap())).unwrap();
    for id in byte_ids(tokenizer, "ab") {
        assert!(!state.is_done());
        state.commit(id).unwrap();
    }
    assert!(state.is_done());
    let ids = state.mask().unwrap().unwrap().ids();
    assert_eq!(ids, tokenizer.eog_ids());
    let mut state = factory.start(&of(Grammar::regex("ab").unwrap())).unwrap();
    let wrong = byte_ids(tokenizer, "b")[0];
    assert_eq!(state.commit(wrong), Err(GrammarError::Refused { id: wrong }));
}

fn thinking(is_open: bool, budget: Option<usize>) -> Constraint {
    let tags = ReasoningTags { is_open, ..ReasoningTags::new("<think>", "</think>") };
    Constraint {
        grammar: Some(Grammar::regex("[0-9]+").unwrap()),
        reasoning: Some(tags),
        reasoning_budget: budget,
    }
}

#[test]
fn the_grammar_waits_for_the_end_of_the_reasoning() {
    let open = thinking(true, None);
    assert!(accepts(&open, "it is {4}: </think>\n\n42"));
    assert!(!accepts(&open, "hm</think>\n\nforty"));
    assert!(!accepts(&open, "it is {4}"), "the answer is still to come");
    let closed = thinking(false, None);
    assert!(accepts(&closed, "<think>hm</thin </think>42"));
    assert!(accepts(&closed, "42"));
    assert!(!accepts(&closed, "<tank>42"));
    assert!(!accepts(&closed, "hm 42"));
}

#[test]
fn a_spent_budget_forces_the_end_of_the_reasoning() {
    let (tokenizer, factory) = &*SMALL;
    for budget in [0, 3] {
        let mut state = factory.start(&thinking(true, Some(budget))).unwrap();
        let x = byte_ids(tokenizer, "x")[0];
        let mut out = Vec::new();
        while state.is_reasoning() {
            let id = match state.mask().unwrap() {
                Some(mask) if !mask.allows(x) => mask.ids()[0],
                _ => x,
            };
            out.push(id);
            state.commit(id).unwrap();
        }
        assert_eq!(tokenizer.decode(&out, true).replace(' ', ""), "x".repeat(budget) + "\n</think>");
        let digits = state.mask().unwrap().unwrap();
        assert!(digits.allows(byte_ids(tokenizer, "7")[0]) && !digits.allows(x));
    }
}

#[test]
fn bad_grammars_are_refused_before_they_run() {
    let e =
        Grammar::json_schema(&json!({"type": "object", "properties": {"a": {"contains": {}}}})).unwrap_err();
    assert_eq!(e.to_string(), "unsupported schema keyword \"contains\" at #/properties/a/contains");
    assert!(Grammar::json_schema(&json!({"type": "strin"})).is_err());
    assert!(Grammar::json_schema(&json!({"pattern": "("})).is_err());
    assert!(Grammar::json_schema(&json!({"minimum": 3, "maximum": 2, "type": "integer"})).is_err());
    let big = "a".repeat(2 << 20);
    assert!(matches!(Grammar::regex(&big), Err(GrammarError::TooLong { .. })));
}

fn tools() -> Vec<ToolSpec> {
    let tools = json!([
        {"type": "function", "function": {"name": "get_weather", "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 6}, "unit": {"enum": ["c", "f"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": false,
        }}},
        {"name": "stop"},
    ]);
    tools.as_array().unwrap().iter().map(|tool| ToolSpec::from_openai(tool).unwrap()).collect()
}

fn options(format: ToolFormat) -> OutputOptions {
    OutputOptions { format: Some(format), tools: tools(), ..OutputOptions::default() }
}

#[test]
fn a_required_call_is_one_the_parser_reads() {
    for format in ToolFormat::ALL {
        let mut n_read = 0;
        for seed in 0..12 {
            let grammar = Grammar::tool_calls(format, &tools(), &ToolChoice::Required, seed % 2 == 0);
            let grammar = grammar.unwrap_or_else(|e| panic!("{format}: {e}")).unwrap();
            let Some(text) = write_blindly(&of(grammar), seed + 1, 1500) else { continue };
            let output = OutputParser::parse(options(format), &text);
            assert!(
                !output.calls.is_empty() && output.content.trim().is_empty(),
                "{format}: {text:?}: {output:?}"
            );
            assert!(seed % 2 == 0 || output.calls.len() == 1, "{format}: {text:?}");
            for call in &output.calls {
                let arguments: Value = serde_json::from_str(&call.arguments)
                    .unwrap_or_else(|e| panic!("{format}: {text:?}: {e}: {}", call.arguments));
                if call.name == "get_weather" {
                    assert!(arguments["city"].is_string(), "{format}: {text:?}: {arguments}");
                    assert!((1..=9).contains(&arguments["days"].as_i64().unwrap()), "{format}: {text:?}");
                }
            }
            n_read += 1;
        }
        assert!(n_read > 3, "{format}: only {n_read} came to an end");
    }
}

#[test]
fn a_named_tool_is_the_one_called() {
    let choice = ToolChoice::Named("stop".to_owned());
    let grammar = Grammar::tool_calls(ToolFormat::Hermes, &tools(), &choice, true).unwrap().unwrap();
    let constraint = of(grammar);
    assert!(accepts(&constraint, "<tool_call>\n{\"name\": \"stop\", \"arguments\": {}}\n</tool_call>"));
    assert!(!accepts(&constraint, "<tool_call>\n{\"name\": \"get_weather\""));
    let missing = ToolChoice::Named("go".to_owned());
    let e = Grammar::tool_calls(ToolFormat::Hermes, &tools(), &missing, true).unwrap_err();
    assert_eq!(e, GrammarError::NoSuchTool { name: "go".to_owned() });
    assert_eq!(Grammar::tool_calls(ToolFormat::Hermes, &tools(), &ToolChoice::None, true), Ok(None));
}

#[test]
fn left_to_itself_a_model_may_talk_but_calls_must_be_right() {
    let call = "<tool_call>{\"name\": \"stop\", \"arguments\": {}}</tool_call>";
    for parallel in [false, true] {
        let grammar = Grammar::tool_calls(ToolFormat::Hermes, &tools(), &ToolChoice::Auto, parallel);
        let constraint = of(grammar.unwrap().unwrap());
        assert!(accepts(&constraint, "Hello <tool> {\"name\""));
        assert!(accepts(&constraint, ""));
        assert!(accepts(&constraint, call));
        assert!(accepts(&constraint, &format!("I will.\n{call}")));
        assert_eq!(accepts(&constraint, &format!("{call}\n{call}")), parallel);
        assert!(!accepts(&constraint, "<tool_call>{\"name\": \"go\""));
        assert!(!accepts(&constraint, "so <tool_call>x"));
    }
    for format in ToolFormat::ALL {
        let constraint = of(Grammar::tool_calls(format, &tools(), &ToolChoice::Auto, true).unwrap().unwrap());
        let text =
            if format == ToolFormat::Harmony { "<|channel|>final<|message|>Hi [x] {}" } else { "Hi [x] {}" };
        assert!(accepts(&constraint, text), "{format}");
    }
    let json =
        of(Grammar::tool_calls(ToolFormat::Llama3Json, &tools(), &ToolChoice::Auto, false).unwrap().unwrap());
    assert!(accepts(&json, "{\"answer\": 4}"));
    assert!(accepts(&json, "{\"name\": \"stop\", \"parameters\": {}}"));
    assert!(!accepts(&json, "{\"name\": \"Bob\"}"));
}

#[test]
fn beside_tools_an_answer_may_have_a_form() {
    let schema = json!({"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"], "additionalProperties": false});
    let answer = Grammar::json_schema(&schema).unwrap();
    for format in ToolFormat::ALL {
        let constraint = of(Grammar::tool_calls_or(format, &tools(), false, &answer).unwrap());
        let said = |text: &str| match format {
            ToolFormat::Harmony => format!("<|channel|>final<|message|>{text}"),
            _ => text.to_owned(),
        };
        assert!(accepts(&constraint, &said("{\"answer\": 4}")), "{format}");
        assert!(!accepts(&constraint, &said("{\"answer\": \"4\"}")), "{format}");
        assert!(!accepts(&constraint, &said("Four.")), "{format}");
    }
    let hermes = of(Grammar::tool_calls_or(ToolFormat::Hermes, &tools(), false, &answer).unwrap());
    assert!(accepts(&hermes, "<tool_call>{\"name\": \"stop\", \"arguments\": {}}</tool_call>"));
    let llama = of(Grammar::tool_calls_or(ToolFormat::Llama3Json, &tools(), false, &answer).unwrap());
    assert!(accepts(&llama, "{\"name\": \"stop\", \"parameters\": {}}"));
    assert!(!accepts(&llama, "{\"name\": \"stop\", \"answer\": 4}"));
    let nested = json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "required": ["a"], "$defs": {"n": {"type": "null"}}});
    let nested = Grammar::json_schema(&nested).unwrap();
    let llama = of(Grammar::tool_calls_or(ToolFormat::Llama3Json, &tools(), false, &nested).unwrap());
    assert!(accepts(&llama, "{\"a\": null}") && !accepts(&llama, "{\"a\": 1}"));
    let pattern = Grammar::regex("[0-9]+").unwrap();
    let e = Grammar::tool_calls_or(ToolFormat::Hermes, &tools(), true, &pattern).unwrap_err();
    assert!(e.to_string().contains("only JSON"), "{e}");
}

#[test]
fn a_strict_tool_must_be_enforceable_and_others_are_as_far_as_they_can() {
    let parameters = json!({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": true}}});
    let tool = |strict| ToolSpec { name: "f".to_owned(), parameters: parameters.clone(), strict };
    assert!(Grammar::tool_calls(ToolFormat::Hermes, &[tool(false)], &ToolChoice::Auto, true).is_ok());
    let e = Grammar::tool_calls(ToolFormat::Hermes, &[tool(true)], &ToolChoice::Auto, true).unwrap_err();
    assert!(matches!(e, GrammarError::Keyword { .. }), "{e}");
    let named = ToolSpec { name: "a b".to_owned(), ..tool(false) };
    assert!(Grammar::tool_calls(ToolFormat::Hermes, &[named], &ToolChoice::Auto, true).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_a_schema_lets_through_satisfies_it(seed in any::<u64>()) {
        let constraint = of(Grammar::json_schema(&person()).unwrap());
        if let Some(text) = write_blindly(&constraint, seed, 400) {
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text:?}: {e}"));
            prop_assert!(value["name"].as_str().unwrap().chars().count() <= 5);
            prop_assert!((0..=120).contains(&value["age"].as_i64().unwrap()));
            prop_assert!(value["tags"].as_array().unwrap().len() <= 2);
            prop_assert!(value["next"].is_null() || value["next"]["x"].is_boolean());
            prop_assert_eq!(value.as_object().unwrap().len(), 4);
        }
    }

    #[test]
    fn no_gbnf_text_panics(text in "(root ::= |a|\"|\\[|\\]|\\(|\\)|\\{2,|\\}|\\*|\\\\|\n| |x-|é|::=|\\||<\\[1\\]>|#){0,20}") {
        let _ = Grammar::gbnf(&text);
    }
}

#[test]
fn special_tokens_are_no_text() {
    let (tokenizer, factory) = &*SMALL;
    let mut state = factory.start(&of(Grammar::regex("(?s:.*)").unwrap())).unwrap();
    let mask = state.mask().unwrap().unwrap();
    let start =
        tokenizer.encode("<|im_start|>", EncodeOptions { add_special: false, parse_special: true }).unwrap();
    assert!(!mask.allows(start[0]));
    assert!(mask.allows(tokenizer.eos().unwrap()));
    assert!(!mask.allows(1 << 20));
}

/// Mean and worst time of a mask while a text is followed, in microseconds.
fn mask_times(factory: &GrammarFactory, tokenizer: &Tokenizer, grammar: Grammar, text: &str) -> (f64, f64) {
    let mut state = factory.start(&of(grammar)).unwrap();
    let mut times = Vec::new();
    for id in tokenizer.encode(text, EncodeOptions::default()).unwrap() {
        let start = std::time::Instant::now();
        let mask = state.mask().unwrap();
        times.push(start.elapsed().as_secs_f64() * 1e6);
        assert!(mask.is_none_or(|mask| mask.allows(id)), "{text:?}");
        state.commit(id).unwrap();
    }
    (times.iter().sum::<f64>() / times.len() as f64, times.iter().copied().fold(0.0, f64::max))
}

/// Grammars of each kind with a text of each.
fn timed_grammars() -> Vec<(&'static str, Grammar, String)> {
    let object = r#"{"name": "Ann", "age": 7, "tags": ["a", "b"], "next": {"x": true}}"#;
    let free = r#"{"title": "The quick brown fox jumps over the lazy dog", "list": [1, 2.5, {"deep": null}], "ok": true}"#;
    let prose = "Here is what I think of the weather in general, and of rain in particular. ".repeat(4);
    let call = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": 3}}\n</tool_call>";
    let auto = Grammar::tool_calls(ToolFormat::Hermes, &tools(), &ToolChoice::Auto, true).unwrap().unwrap();
    let gbnf = "root ::= v\nv ::= \"[\" (v (\",\" v)*)? \"]\" | \"\\\"\" [^\"]* \"\\\"\" | [0-9]+";
    vec![
        ("json schema", Grammar::json_schema(&person()).unwrap(), object.to_owned()),
        ("json object", Grammar::json_object(), free.to_owned()),
        ("regex", Grammar::regex("(?s:.)*").unwrap(), prose.clone()),
        ("tools auto, text", auto.clone(), prose.clone()),
        ("tools auto, call", auto, call.to_owned()),
        ("recursive gbnf", Grammar::gbnf(gbnf).unwrap(), format!("[12,[\"{prose}\",3]]")),
    ]
}

#[test]
fn masks_take_little_time() {
    let mut paths = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/mlxr-27m-q8_0.gguf")];
    paths.extend(data::folder("MLXR_TESTDATA").map(|dir| dir.join("vocabs/ggml-vocab-llama-bpe.gguf")));
    for path in paths {
        let bytes = fs::read(&path).unwrap();
        let metadata = mlxr_checkpoint::gguf::read_metadata(&path, &bytes.into()).unwrap();
        let tokenizer = &Tokenizer::from_gguf(&metadata).unwrap();
        let name = tokenizer.n_vocab();
        let start = std::time::Instant::now();
        let factory = GrammarFactory::for_tokenizer(tokenizer).unwrap();
        println!("{name} tokens: trie in {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
        for (kind, grammar, text) in timed_grammars() {
            let start = std::time::Instant::now();
            factory.start(&of(grammar.clone())).unwrap();
            let compiled = start.elapsed().as_secs_f64() * 1e3;
            let (mean, worst) = mask_times(&factory, tokenizer, grammar, &text);
            println!(
                "{name}, {kind}: compiled in {compiled:.1} ms, mask {mean:.0} us mean, {worst:.0} us worst"
            );
            assert!(mean < 100_000.0, "{kind}: {mean} us");
        }
    }
}

#[test]
fn channels_bring_their_own_reasoning() {
    let grammar = Grammar::tool_calls(ToolFormat::Harmony, &tools(), &ToolChoice::Required, false).unwrap();
    let tags = ReasoningTags::detect("<|channel|>analysis<|channel|>commentary");
    assert!(tags.as_ref().is_some_and(|tags| tags.is_open));
    let constraint = Constraint { grammar, reasoning: tags, reasoning_budget: None };
    let call = "<|channel|>commentary to=functions.stop <|constrain|>json<|message|>{}";
    assert!(accepts(
        &constraint,
        &format!("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant{call}")
    ));
    assert!(!accepts(&constraint, "<|channel|>final<|message|>No."));
}
