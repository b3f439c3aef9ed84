//! Tool calls of every wire format, whole and in pieces.

use mlxr_text::reasoning::ReasoningTags;
use mlxr_text::tool_calls::{OutputEvent, OutputOptions, OutputParser, ParsedOutput, ToolFormat, ToolSpec};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::data;

fn tools() -> Vec<ToolSpec> {
    let tools = json!([
        {"name": "get_weather", "parameters": {"type": "object", "properties": {
            "city": {"type": "string"}, "days": {"type": "integer"}, "tags": {"type": "array"}, "metric": {"type": "boolean"}}}},
        {"name": "write.file", "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}},
    ]);
    tools.as_array().unwrap().iter().map(|tool| ToolSpec::from_openai(tool).unwrap()).collect()
}

fn options(format: ToolFormat) -> OutputOptions {
    OutputOptions { format: Some(format), tools: tools(), ..OutputOptions::default() }
}

fn think() -> Option<ReasoningTags> {
    Some(ReasoningTags::new("<think>", "</think>"))
}

/// The same events whether cut or not.
fn joined(events: Vec<OutputEvent>) -> Vec<OutputEvent> {
    let mut out: Vec<OutputEvent> = Vec::new();
    for event in events {
        match (out.last_mut(), event) {
            (Some(OutputEvent::Content(last)), OutputEvent::Content(text))
            | (Some(OutputEvent::Reasoning(last)), OutputEvent::Reasoning(text)) => last.push_str(&text),
            (
                Some(OutputEvent::ToolCallArguments { delta, .. }),
                OutputEvent::ToolCallArguments { delta: more, .. },
            ) => {
                delta.push_str(&more);
            }
            (_, event) => out.push(event),
        }
    }
    out
}

fn events(options: &OutputOptions, pieces: &[&str]) -> Vec<OutputEvent> {
    let mut parser = OutputParser::new(options.clone());
    let mut events = Vec::new();
    for piece in pieces {
        events.extend(parser.push(piece));
    }
    events.extend(parser.finish());
    joined(events)
}

fn read(format: ToolFormat, text: &str) -> ParsedOutput {
    OutputParser::parse(options(format), text)
}

/// Texts of each format whose calls are, in order: the weather of Paris on 3 days, then perhaps a file.
fn samples() -> Vec<(ToolFormat, &'static str)> {
    use ToolFormat::*;
    vec![
        (
            Hermes,
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": 3}}\n</tool_call>",
        ),
        (
            Hermes,
            "<tool_call>{\"arguments\":{\"city\":\"Paris\",\"days\":3},\"name\":\"get_weather\"}</tool_call>",
        ),
        (
            Hermes,
            "<tool_call>{\"id\": \"x\", \"name\": \"get_weather\", \"arguments\": \"{\\\"city\\\": \\\"Paris\\\", \\\"days\\\": 3}\"}</tool_call>\n<tool_call>{\"name\": \"write.file\", \"arguments\": {\"text\": \"a</tool_call>\\n\\\"b\"}}</tool_call>\n",
        ),
        (
            QwenXml,
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
        ),
        (
            QwenXml,
            "<function=get_weather><parameter=city>Paris</parameter><parameter=days>3</parameter></function></tool_call>",
        ),
        (
            QwenXml,
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=write.file>\n<parameter=text>\n<a href=\"x\">\n\n</b>\n</parameter>\n</function>\n</tool_call>",
        ),
        (Llama3Json, "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\", \"days\": 3}}"),
        (
            Llama3Json,
            "<|python_tag|>{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\", \"days\": 3}}; {\"name\": \"write.file\", \"parameters\": {\"text\": \"x\"}}",
        ),
        (Pythonic, "[get_weather(city='Paris', days=3), write.file(text=\"it's (a) [b], \\\"c\\\"\")]"),
        (Pythonic, "<|python_start|>[get_weather(city=\"Paris\", days=3)]<|python_end|>"),
        (
            MistralList,
            "[TOOL_CALLS] [{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": 3}, \"id\": \"abcdefghi\"}, {\"name\": \"write.file\", \"arguments\": {}}]",
        ),
        (
            MistralName,
            "[TOOL_CALLS]get_weather{\"city\": \"Paris\", \"days\": 3}[TOOL_CALLS]write.file{\"text\": \"[\"}",
        ),
        (MistralArgs, "[TOOL_CALLS]get_weather[CALL_ID]123456789[ARGS]{\"city\": \"Paris\", \"days\": 3}"),
        (Gemma3, "```tool_code\nprint(get_weather(city=\"Paris\", days=3))\nwrite.file(text='x')\n```"),
        (
            Gemma4,
            "<|tool_call>call:get_weather{city:<|\"|>Paris<|\"|>,days:3}<tool_call|><|tool_call>call:write.file{text:<|\"|>a,\"}b<|\"|>}<tool_call|>",
        ),
        (
            Glm,
            "\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
        ),
        (
            KimiK2,
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{\"city\": \"Paris\", \"days\": 3}<|tool_call_end|><|tool_call_begin|>functions.write.file:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        ),
        (
            MiniMaxM2,
            "\n<minimax:tool_call>\n<invoke name=\"get_weather\">\n<parameter name=\"city\">Paris</parameter>\n<parameter name=\"days\">3</parameter>\n</invoke>\n</minimax:tool_call>",
        ),
        (
            DeepSeekV3,
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Paris\", \"days\": 3}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>write.file\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ),
        (
            DeepSeekV31,
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Paris\", \"days\": 3}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ),
        (
            Harmony,
            "<|channel|>analysis<|message|>Look it up.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"Paris\", \"days\": 3}<|call|>",
        ),
        (
            Harmony,
            " to=functions.get_weather<|channel|>commentary json<|message|>{\"city\": \"Paris\", \"days\": 3}",
        ),
        (
            Phi4,
            "<|tool_call|>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": 3}}]<|/tool_call|>",
        ),
        (
            Phi4,
            "<|tool_call|>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": 3}}]",
        ),
        (Lfm2, "<|tool_call_start|>[get_weather(city=\"Paris\", days=3)]<|tool_call_end|>"),
    ]
}

#[test]
fn every_format_gives_the_same_call() {
    for (format, text) in samples() {
        let output = read(format, text);
        assert_eq!(output.content, "", "{format}: {text}\n{output:?}");
        assert_eq!(output.calls[0].name, "get_weather", "{format}: {text}");
        let arguments: Value = serde_json::from_str(&output.calls[0].arguments).unwrap();
        assert_eq!(arguments, json!({"city": "Paris", "days": 3}), "{format}: {text}");
        let has_two = text.contains("write.file");
        assert_eq!(output.calls.len(), 1 + usize::from(has_two), "{format}: {text}");
        if has_two {
            assert_eq!(output.calls[1].name, "write.file");
            assert_ne!(output.calls[0].id, output.calls[1].id);
            serde_json::from_str::<Value>(&output.calls[1].arguments).unwrap();
        }
    }
    let covered: std::collections::HashSet<_> = samples().into_iter().map(|(format, _)| format).collect();
    assert_eq!(covered.len(), ToolFormat::ALL.len());
}

#[test]
fn texts_in_arguments_are_kept_exactly() {
    let text = |format, source: &str| -> String {
        let output = read(format, source);
        let arguments: Value = serde_json::from_str(&output.calls[0].arguments).unwrap();
        arguments["text"].as_str().unwrap().to_owned()
    };
    let qwen = |value: &str| {
        format!("<tool_call><function=write.file><parameter=text>{value}</parameter></function></tool_call>")
    };
    assert_eq!(text(ToolFormat::QwenXml, &qwen("\n<a>\n \"q\" \\ é\n\n")), "<a>\n \"q\" \\ é\n");
    assert_eq!(text(ToolFormat::QwenXml, &qwen("{\"json\": 1}")), "{\"json\": 1}");
    let glm = "<tool_call>write.file\n<arg_key>text</arg_key>\n<arg_value>\n3\n</arg_value>\n</tool_call>";
    assert_eq!(text(ToolFormat::Glm, glm), "\n3\n");
    let pythonic = r#"[write.file(text='a\'b\n\x41')]"#;
    assert_eq!(text(ToolFormat::Pythonic, pythonic), "a'b\nA");
    let gemma = "<|tool_call>call:write.file{text:<|\"|>{a:\"b\"}\n<|\"|>}<tool_call|>";
    assert_eq!(text(ToolFormat::Gemma4, gemma), "{a:\"b\"}\n");
}

#[test]
fn values_take_the_types_of_the_schema() {
    let source = "<tool_call><function=get_weather><parameter=city>12</parameter><parameter=days>3</parameter><parameter=tags>[\"a\", 1]</parameter><parameter=metric>True</parameter></function></tool_call>";
    let arguments: Value =
        serde_json::from_str(&read(ToolFormat::QwenXml, source).calls[0].arguments).unwrap();
    assert_eq!(arguments, json!({"city": "12", "days": 3, "tags": ["a", 1], "metric": true}));
    let nested =
        "<|tool_call>call:get_weather{tags:[<|\"|>x<|\"|>,[],{a:{},b:-1.5}],metric:true}<tool_call|>";
    let arguments: Value =
        serde_json::from_str(&read(ToolFormat::Gemma4, nested).calls[0].arguments).unwrap();
    assert_eq!(arguments, json!({"tags": ["x", [], {"a": {}, "b": -1.5}], "metric": true}));
}

/// Calls that are none: everything of them must come out as content.
#[test]
fn broken_calls_come_out_as_text() {
    use ToolFormat::*;
    let broken = [
        (Hermes, "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Par"),
        (Hermes, "<tool_call>\n{\"name\": \"no_such_tool\", \"arguments\": {}}\n</tool_call>"),
        (Hermes, "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": }}</tool_call> then"),
        (Hermes, "<tool_call>{\"name\": \"get_weather\", \"arguments\": {}} and more</tool_call>"),
        (Hermes, "<tool_call>{\"name\": \"get_weather\", \"arguments\": [1]}</tool_call>"),
        (Hermes, "so <tool_call> is a tag"),
        (QwenXml, "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parame"),
        (QwenXml, "<function=get_weather>\nParis</function>"),
        (Llama3Json, "{\"name\": \"Bob\", \"age\": 3}"),
        (Llama3Json, "{\"answer\": [1, 2]}"),
        (Pythonic, "[1, 2, 3]"),
        (Pythonic, "[get_weather(city=Paris)]"),
        (MistralList, "[TOOL_CALLS][{\"name\": 3}]"),
        (MistralArgs, "[TOOL_CALLS]get_weather[ARGS]not json"),
        (Gemma3, "```tool_code\nx = 3\n```"),
        (Gemma4, "<|tool_call>call:get_weather{city:Paris}<tool_call|>"),
        (Glm, "<tool_call>get_weather\n<arg_key>city</arg_value>"),
        (KimiK2, "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_end|>"),
        (MiniMaxM2, "<minimax:tool_call>\n<invoke name='get_weather'>"),
        (DeepSeekV31, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather{}"),
        (Harmony, "<|channel|>commentary to=functions.get_weather<|message|>{\"city\": \"Par"),
        (Harmony, "<|channel|>commentary to=python<|message|>print(1)"),
        (Phi4, "<|tool_call|>{\"name\": \"get_weather\"}"),
        (Lfm2, "<|tool_call_start|>[get_weather(city=\"x\""),
    ];
    for (format, text) in broken {
        let output = read(format, text);
        assert!(output.calls.is_empty(), "{format}: {text}: {output:?}");
        assert_eq!(output.content, text, "{format}");
    }
}

#[test]
fn a_broken_call_does_not_hide_the_next() {
    let good = "<tool_call>{\"name\": \"get_weather\", \"arguments\": {}}</tool_call>";
    let output = read(ToolFormat::Hermes, &format!("Well <tool_call><tool_call>x {good} bye"));
    assert_eq!(output.content, "Well <tool_call><tool_call>x bye");
    assert_eq!(output.calls.len(), 1);
}

#[test]
fn a_call_that_breaks_off_is_marked_and_its_text_follows() {
    let text = "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Par";
    let found = events(&options(ToolFormat::Hermes), &[text]);
    let [OutputEvent::ToolCallStart { .. }, OutputEvent::ToolCallArguments { delta, .. }, end, content] =
        &found[..]
    else {
        panic!("{found:?}")
    };
    assert_eq!(delta, "{\"city\": \"Par");
    assert_eq!(end, &OutputEvent::ToolCallEnd { index: 0, is_complete: false });
    assert_eq!(content, &OutputEvent::Content(text.to_owned()));
}

#[test]
fn arguments_stream_while_they_come() {
    let mut parser = OutputParser::new(options(ToolFormat::Hermes));
    let head = "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"ci";
    let first = parser.push(head);
    assert!(
        matches!(&first[1], OutputEvent::ToolCallArguments { delta, .. } if delta == "{\"ci"),
        "{first:?}"
    );
    let more = parser.push("ty\": \"P");
    assert_eq!(more, [OutputEvent::ToolCallArguments { index: 0, delta: "ty\": \"P".to_owned() }]);
}

#[test]
fn only_what_could_become_a_marker_is_held_back() {
    let mut parser = OutputParser::new(options(ToolFormat::Hermes));
    let mut push = |text: &str| parser.push(text);
    assert_eq!(push("a <b"), [OutputEvent::Content("a <b".to_owned())]);
    assert_eq!(push(" <tool_"), []);
    assert_eq!(push("x"), [OutputEvent::Content(" <tool_x".to_owned())]);
    assert_eq!(push("<tool_call"), []);
    assert_eq!(parser.finish(), [OutputEvent::Content("<tool_call".to_owned())]);
}

#[test]
fn reasoning_is_told_from_content() {
    let split = |tags: Option<ReasoningTags>, text: &str| {
        let options = OutputOptions { reasoning: tags, ..options(ToolFormat::Hermes) };
        let output = OutputParser::parse(options, text);
        (output.reasoning, output.content, output.calls.len())
    };
    let expected = |reasoning: &str, content: &str, n: usize| (reasoning.to_owned(), content.to_owned(), n);
    assert_eq!(split(think(), "<think>\nhm <x>\n</think>\n\nHi"), expected("hm <x>", "Hi", 0));
    assert_eq!(split(think(), "<think>\n\n</think>\n\nHi"), expected("", "Hi", 0));
    assert_eq!(split(think(), "no <think> here"), expected("", "no <think> here", 0));
    let open = think().map(|tags| ReasoningTags { is_open: true, ..tags });
    assert_eq!(split(open.clone(), "hm</think>Hi"), expected("hm", "Hi", 0));
    assert_eq!(split(open.clone(), "hm, and"), expected("hm, and", "", 0));
    let call = "<tool_call>{\"name\": \"get_weather\", \"arguments\": {}}</tool_call>";
    assert_eq!(split(open, &format!("{call}\n</think>\n{call}")), expected(call, "", 1));
    let gemma = ReasoningTags::new("<|channel>thought", "<channel|>");
    assert_eq!(split(Some(gemma), "<|channel>thought\nhm\n<channel|>Hi"), expected("hm", "Hi", 0));
}

#[test]
fn channels_are_told_apart() {
    let text = "<|channel|>analysis<|message|>Hm. <|end|><|start|>assistant<|channel|>commentary<|message|>I will. <|end|><|start|>assistant<|channel|>final<|message|>Done <|x|>.<|return|>";
    let output = read(ToolFormat::Harmony, text);
    assert_eq!((output.reasoning.as_str(), output.content.as_str()), ("Hm. ", "I will. Done <|x|>."));
    assert_eq!(read(ToolFormat::Harmony, "just text").content, "just text");
}

#[test]
fn templates_tell_their_format() {
    let Some(dir) = data::folder("MLXR_TESTDATA") else { return };
    use ToolFormat::*;
    let expected = [
        ("GLM-4.6", Some(Glm)),
        ("HuggingFaceTB-SmolLM3-3B", None),
        ("Kimi-K2-Instruct", Some(KimiK2)),
        ("LFM2-8B-A1B", Some(Lfm2)),
        ("MiniMax-M2", Some(MiniMaxM2)),
        ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", Some(Hermes)),
        ("Qwen-Qwen2.5-7B-Instruct", Some(Hermes)),
        ("Qwen-Qwen3-0.6B", Some(Hermes)),
        ("Qwen3-Coder", Some(QwenXml)),
        ("deepseek-ai-DeepSeek-V3.1", Some(DeepSeekV31)),
        ("google-gemma-2-2b-it", None),
        ("google-gemma-4-31B-it", Some(Gemma4)),
        ("ibm-granite-granite-4.0", Some(Hermes)),
        ("meta-llama-Llama-3.1-8B-Instruct", Some(Llama3Json)),
        ("meta-llama-Llama-3.2-3B-Instruct", Some(Llama3Json)),
        ("microsoft-Phi-3.5-mini-instruct", None),
        ("mistralai-Mistral-Nemo-Instruct-2407", Some(MistralList)),
        ("openai-gpt-oss-120b", Some(Harmony)),
    ];
    for (name, format) in expected {
        let template = std::fs::read_to_string(dir.join("templates").join(format!("{name}.jinja"))).unwrap();
        assert_eq!(ToolFormat::detect(&template), format, "{name}");
        let thinks = ["GLM", "SmolLM3", "MiniMax", "Qwen3-0.6B", "DeepSeek-V3.1", "gemma-4", "gpt-oss"];
        let tags = ReasoningTags::detect(&template);
        assert_eq!(tags.is_some(), thinks.iter().any(|part| name.contains(part)), "{name}: {tags:?}");
    }
}

#[test]
fn formats_have_names() {
    for format in ToolFormat::ALL {
        assert_eq!(format.name().parse(), Ok(format));
    }
    let e = "json".parse::<ToolFormat>().unwrap_err();
    assert!(e.to_string().contains("hermes"), "{e}");
}

/// Fragments of all formats, to be put together in every wrong way.
fn fragments() -> Vec<String> {
    let mut all: Vec<String> = [
        "\n", " ", "x", "é", "{", "}", "[", "]", "\"", ":", ",", "(", ")", "=", "<", "|", "3", "name",
        "city", "\\",
    ]
    .map(str::to_owned)
    .to_vec();
    all.extend(
        [
            "{\"name\": \"get_weather\", \"arguments\": {",
            "get_weather",
            "</think>",
            "<think>",
            "<function=get_weather>",
            "<parameter=city>",
            "</parameter>",
            "</function>",
            "{\"city\": \"Paris\"}",
        ]
        .map(str::to_owned),
    );
    for format in ToolFormat::ALL {
        all.extend(format.control_texts().iter().map(|text| (*text).to_owned()));
    }
    all.extend(samples().into_iter().map(|(_, text)| text.to_owned()));
    all
}

fn soup() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(fragments()), 0..14).prop_map(|parts| parts.concat())
}

/// Cuts a text at some of its characters.
fn cut(text: &str, cuts: &[usize]) -> Vec<String> {
    let mut pieces = vec![String::new()];
    for (i, c) in text.chars().enumerate() {
        if cuts.contains(&(i % 97)) {
            pieces.push(String::new());
        }
        pieces.last_mut().unwrap().push(c);
    }
    pieces
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn cutting_a_text_never_shows(
        text in soup(),
        which in 0usize..17,
        cuts in prop::collection::vec(0usize..97, 0..30),
        reasons in any::<bool>(),
    ) {
        let options = OutputOptions { reasoning: think().filter(|_| reasons), ..options(ToolFormat::ALL[which]) };
        let pieces = cut(&text, &cuts);
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let whole = events(&options, &[&text]);
        prop_assert_eq!(&events(&options, &pieces), &whole);
        let single: Vec<String> = text.chars().map(String::from).collect();
        let single: Vec<&str> = single.iter().map(String::as_str).collect();
        prop_assert_eq!(&events(&options, &single), &whole);
    }

    #[test]
    fn nothing_vanishes_where_there_is_no_call(text in soup(), which in 0usize..17) {
        let format = ToolFormat::ALL[which];
        prop_assume!(format != ToolFormat::Harmony);
        let output = read(format, &text);
        if output.calls.is_empty() {
            // Harmony aside, markers of empty sections cannot be told from text either: all of it is content.
            prop_assert_eq!(output.content, text);
        }
    }

    #[test]
    fn plain_text_is_content(text in "[a-zA-Z0-9 \n.,!?é\"'(){}-]{0,80}", which in 0usize..17) {
        let output = read(ToolFormat::ALL[which], &text);
        prop_assert_eq!(output.content, text);
        prop_assert!(output.calls.is_empty());
    }

    #[test]
    fn arguments_of_complete_calls_are_json_objects(text in soup(), which in 0usize..17) {
        for call in read(ToolFormat::ALL[which], &text).calls {
            let arguments: Result<Value, _> = serde_json::from_str(&call.arguments);
            prop_assert!(arguments.is_ok_and(|v| v.is_object()), "{}", call.arguments);
        }
    }
}
