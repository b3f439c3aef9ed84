//! Chat templates against what transformers renders (golden/text/make_templates.py).

use std::path::Path;

use mlxr_text::{ChatInput, ChatTemplate, TemplateTokens, TextError};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::data;

/// 26 July 2024, 13:05:09, the time the goldens were rendered at.
const NOW: i64 = 1_721_999_109;

fn tokens(golden: &Value) -> TemplateTokens {
    let text = |name: &str| golden["tokens"][name].as_str().map(str::to_owned);
    TemplateTokens {
        bos: text("bos_token"),
        eos: text("eos_token"),
        unk: text("unk_token"),
        pad: text("pad_token"),
    }
}

fn render(template: &ChatTemplate, conversation: &Value) -> Result<String, TextError> {
    let mut extra: Map<String, Value> = conversation.as_object().unwrap().clone();
    let messages = extra.remove("messages").unwrap();
    let tools = extra.remove("tools");
    let add_generation_prompt = extra.remove("add_generation_prompt").is_some_and(|v| v == true);
    template.render(&ChatInput {
        messages: messages.as_array().unwrap(),
        tools: tools.as_ref().and_then(Value::as_array).map(Vec::as_slice),
        add_generation_prompt,
        extra,
    })
}

/// Where we render although Python raises: looping over `none`, and attributes of a tool result that is no text.
const LENIENT: [(&str, &str); 2] = [
    ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja", "TypeError"),
    ("google-gemma-4-31B-it.jinja", "UndefinedError"),
];

/// Checks every template of a golden file; returns one line per difference.
fn differences(golden_name: &str, folder: &Path) -> Vec<String> {
    let golden = data::golden(golden_name);
    let conversations = data::golden("conversations.json");
    let mut found = Vec::new();
    for (file, outcomes) in golden["rendered"].as_object().unwrap() {
        let built_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/chat_template").join(file);
        let path = if built_in.exists() { built_in } else { folder.join(file) };
        let source = std::fs::read_to_string(path).unwrap();
        let template = match ChatTemplate::new(&source, tokens(&golden)) {
            Ok(template) => template.at_time(NOW),
            Err(e) => {
                found.push(format!("{file}: {e}"));
                continue;
            }
        };
        for (title, expected) in outcomes.as_object().unwrap() {
            if expected["error"].as_str().is_some_and(|e| LENIENT.contains(&(file.as_str(), e))) {
                continue;
            }
            let rendered = render(&template, &conversations[title]);
            if let Some(difference) = difference(&rendered, expected) {
                found.push(format!("{file}, {title}: {difference}"));
            }
        }
    }
    found
}

fn difference(rendered: &Result<String, TextError>, expected: &Value) -> Option<String> {
    let prompt = match (rendered, expected["error"].as_str()) {
        // Jinja's sandbox and Python's recursion limit are no rules of the template.
        (_, Some("SecurityError" | "RecursionError")) | (Err(_), Some(_)) => return None,
        (Ok(prompt), Some(error)) => return Some(format!("rendered in spite of {error}: {prompt:?}")),
        (Err(e), None) => return Some(format!("{e}")),
        (Ok(prompt), None) => prompt,
    };
    if let Some(text) = expected["prompt"].as_str() {
        return (prompt != text).then(|| format!("\n  ours   {prompt:?}\n  theirs {text:?}"));
    }
    let hash: String = Sha256::digest(prompt).iter().map(|b| format!("{b:02x}")).collect();
    (expected["sha256"] != hash).then(|| format!("another prompt: {prompt:?}"))
}

#[test]
fn our_templates_render_like_transformers() {
    let found = differences("templates.json", &data::golden_path("templates"));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn published_templates_render_like_transformers() {
    let Some(dir) = data::folder("MLXR_TESTDATA") else { return };
    let found = differences("published-templates.json", &dir.join("templates"));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn errors_name_the_line_and_refusals_their_message() {
    let none = TemplateTokens::default();
    let broken = ChatTemplate::new("a\n{% if %}", none.clone()).unwrap_err();
    assert!(matches!(broken, TextError::Template { line: Some(2), .. }), "{broken}");
    let failing = ChatTemplate::new("a\n\n{{ messages[0].x.y }}", none.clone()).unwrap();
    let e = render(&failing, &serde_json::json!({"messages": [{}]})).unwrap_err();
    assert!(matches!(e, TextError::Template { line: Some(3), .. }), "{e}");
    let refusing = ChatTemplate::new("{{ raise_exception('no ' + messages[0].role) }}", none).unwrap();
    let e = render(&refusing, &serde_json::json!({"messages": [{"role": "tools"}]})).unwrap_err();
    assert_eq!(e, TextError::Refused { message: "no tools".to_owned() });
}

#[test]
fn an_endless_template_runs_out_of_fuel() {
    let source = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x{% endfor %}{% endfor %}{% endfor %}";
    let template = ChatTemplate::new(source, TemplateTokens::default()).unwrap();
    let e = render(&template, &serde_json::json!({"messages": []})).unwrap_err();
    assert!(e.to_string().contains("fuel"), "{e}");
}

#[test]
fn a_panic_of_the_engine_is_an_error() {
    let template =
        ChatTemplate::new("{% for m in messages[::-1] %}x{% endfor %}", TemplateTokens::default()).unwrap();
    // Reversing nothing is where the engine stumbles; either answer is sane, a panic is not.
    let rendered = render(&template, &serde_json::json!({"messages": []}));
    assert!(
        matches!(&rendered, Err(TextError::Template { .. })) || rendered == Ok(String::new()),
        "{rendered:?}"
    );
    assert_eq!(render(&template, &serde_json::json!({"messages": [{}, {}]})), Ok("xx".to_owned()));
}
