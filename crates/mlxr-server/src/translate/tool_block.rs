//! Tools for models whose template knows none: described in the system's message, calls and results spelt out as text.
//!
//! The wire format is the one most models have seen: JSON between `<tool_call>` tags.

use mlxr_text::tool_calls::ToolFormat;
use serde_json::{Value, json};

use super::images;

/// How calls are written.
pub const FORMAT: ToolFormat = ToolFormat::Hermes;

/// Where the tools are described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    System,
    /// In the first message of the user's, for templates without a system's message.
    User,
}

/// Whether there is anything a template without tools cannot write.
pub fn is_needed(messages: &[Value], tools: &[Value]) -> bool {
    let has_tools = |message: &Value| message["role"] == "tool" || message.get("tool_calls").is_some();
    !tools.is_empty() || messages.iter().any(has_tools)
}

/// The conversation in plain messages.
pub fn spell_out(messages: &[Value], tools: &[Value], place: Place) -> Vec<Value> {
    let mut spelt: Vec<Value> = Vec::with_capacity(messages.len() + 1);
    for message in messages {
        let plain = plain(message);
        // Results are the user's words, and turns alternate.
        if let Some(last) = spelt.last_mut().filter(|last| last["role"] == "user" && plain["role"] == "user")
            && !images::has_images(last)
            && !images::has_images(&plain)
            && let (Some(before), Some(more)) = (last["content"].as_str(), plain["content"].as_str())
        {
            last["content"] = json!(format!("{before}\n{more}"));
        } else {
            spelt.push(plain);
        }
    }
    if !tools.is_empty() {
        describe(&mut spelt, tools, place);
    }
    spelt
}

fn describe(messages: &mut Vec<Value>, tools: &[Value], place: Place) {
    let described = description(tools);
    let role = if place == Place::System { "system" } else { "user" };
    let at = match place {
        Place::System => messages.first().filter(|first| first["role"] == role).map(|_| 0),
        Place::User => messages.iter().position(|message| message["role"] == role),
    };
    match at {
        Some(at) => {
            let said = messages[at]["content"].as_str().unwrap_or_default();
            let both = if place == Place::System {
                format!("{said}\n\n{described}")
            } else {
                format!("{described}\n\n{said}")
            };
            messages[at]["content"] = json!(both);
        }
        None => messages.insert(0, json!({"role": role, "content": described})),
    }
}

fn description(tools: &[Value]) -> String {
    let lines: String =
        tools.iter().map(|tool| format!("{}\n", tool.get("function").unwrap_or(tool))).collect();
    format!(
        "# Tools\n\nYou can call these functions:\n<tools>\n{lines}</tools>\n\n\
         To call one, reply with\n<tool_call>\n{{\"name\": ..., \"arguments\": {{...}}}}\n</tool_call>\n\
         and its result will come in <tool_response>."
    )
}

/// A message without calls, and with a role every template knows.
fn plain(message: &Value) -> Value {
    let content = message["content"].as_str().unwrap_or_default();
    if message["role"] == "tool" {
        let result = format!("<tool_response>\n{content}\n</tool_response>");
        return json!({"role": "user", "content": result});
    }
    let Some(calls) = message.get("tool_calls").and_then(Value::as_array) else { return message.clone() };
    let mut text = content.to_owned();
    for call in calls {
        let function = &call["function"];
        let call = json!({"name": function["name"], "arguments": function["arguments"]});
        let gap = if text.is_empty() { "" } else { "\n" };
        text = format!("{text}{gap}<tool_call>\n{call}\n</tool_call>");
    }
    let mut plain = message.clone();
    if let Some(fields) = plain.as_object_mut() {
        fields.remove("tool_calls");
        fields.insert("content".to_owned(), json!(text));
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools() -> Vec<Value> {
        vec![json!({"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}})]
    }

    #[test]
    fn calls_and_results_become_words() {
        let call = json!({"id": "c", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}});
        let messages = [
            json!({"role": "user", "content": "1 + 2?"}),
            json!({"role": "assistant", "content": "Adding.", "tool_calls": [call]}),
            json!({"role": "tool", "tool_call_id": "c", "content": "3"}),
            json!({"role": "tool", "tool_call_id": "d", "content": "4"}),
            json!({"role": "user", "content": "Well?"}),
        ];
        assert!(is_needed(&messages, &[]) && !is_needed(&messages[..1], &[]));
        let plain = spell_out(&messages, &[], Place::System);
        let roles: Vec<&str> = plain.iter().filter_map(|message| message["role"].as_str()).collect();
        assert_eq!(roles, ["user", "assistant", "user"]);
        assert_eq!(
            plain[1]["content"],
            "Adding.\n<tool_call>\n{\"name\":\"add\",\"arguments\":{\"a\":1}}\n</tool_call>"
        );
        let results = "<tool_response>\n3\n</tool_response>\n<tool_response>\n4\n</tool_response>\nWell?";
        assert_eq!(plain[2]["content"], results);
        assert!(plain[1].get("tool_calls").is_none());
    }

    #[test]
    fn tools_are_described_where_the_template_has_room() {
        let user = json!({"role": "user", "content": "Hi"});
        let system = json!({"role": "system", "content": "Be brief."});
        let both = spell_out(&[system, user.clone()], &tools(), Place::System);
        let text = both[0]["content"].as_str().unwrap();
        assert!(text.starts_with("Be brief.\n\n# Tools") && text.contains("{\"name\":\"add\""), "{text}");
        let alone = spell_out(std::slice::from_ref(&user), &tools(), Place::System);
        assert_eq!((alone.len(), &alone[0]["role"]), (2, &json!("system")));
        let folded = spell_out(&[user], &tools(), Place::User);
        assert_eq!(folded.len(), 1);
        assert!(folded[0]["content"].as_str().unwrap().ends_with("\n\nHi"));
    }
}
