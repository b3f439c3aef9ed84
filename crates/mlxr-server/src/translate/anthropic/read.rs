//! Messages to an engine request.

use mlxr_api::anthropic::content::{Block, Content, ToolResultBlock};
use mlxr_api::anthropic::messages::{
    Message, MessagesRequest, OutputFormat, Role, ThinkingMode, Tool, ToolChoice as WireChoice,
};
use mlxr_engine::{Request, SamplingParams};
use mlxr_text::grammar::ToolChoice;
use mlxr_text::tool_calls::ToolSpec;
use serde_json::{Map, Value, json};

use super::answer::Answer;
use crate::ServeError;
use crate::loaded::LoadedModel;
use crate::notices::Notices;
use crate::translate::conversation::{ChatPrompt, Conversation, Thinking};
use crate::translate::images::{self, SentImage};
use crate::translate::sampling::{set, stop, with_generation_config};
use crate::translate::structure::{Form, Structure};

/// What a request asks for.
#[derive(Debug)]
pub struct Task {
    pub request: Request,
    pub answer: Answer,
    pub notices: Notices,
    pub is_stream: bool,
}

/// Reads a request for a model.
///
/// # Errors
/// [`ServeError`] names the field that cannot be honoured.
pub fn read(wire: &MessagesRequest, model: &LoadedModel, strict: bool) -> Result<Task, ServeError> {
    let Some(max_tokens) = wire.max_tokens else {
        return Err(ServeError::invalid("max_tokens", "max_tokens: a number is required"));
    };
    let Asked { prompt, structure, notices } = ask(wire, model, strict)?;
    let mut params = with_generation_config(SamplingParams::neutral(), &model.generation);
    set(&mut params.temperature, wire.temperature);
    set(&mut params.top_k, wire.top_k.map(|k| usize::try_from(k).unwrap_or(0)));
    // 0 leaves the likeliest token, which any number above it does too.
    set(&mut params.top_p, wire.top_p.map(|p| if p == 0.0 { f32::MIN_POSITIVE } else { p }));
    params.validate().map_err(|error| ServeError::invalid(error.field, error.to_string()))?;
    let answer = Answer::new(wire.model.clone(), &prompt, max_tokens, notices.warnings());
    let request = Request {
        label: Some(answer.id().to_owned()),
        sampling: params,
        max_tokens: Some(max_tokens),
        stop: wire.stop_sequences.clone().unwrap_or_else(|| stop(&model.generation)),
        ..structure.request(model, &prompt)?
    };
    Ok(Task { request, answer, notices, is_stream: wire.stream == Some(true) })
}

/// The conversation as the model reads it, what its answer is held to, and what of the request has no effect.
#[derive(Debug)]
pub struct Asked {
    pub prompt: ChatPrompt,
    pub structure: Structure,
    pub notices: Notices,
}

/// Whether reading the request takes longer than its size tells: a grammar is compiled.
pub fn is_structured(wire: &MessagesRequest) -> bool {
    wire.tools.is_some()
        || wire.output_config.is_some()
        || wire.output_format.is_some()
        || wire.thinking.is_some()
}

/// Reads what is asked.
///
/// # Errors
/// [`ServeError`] names the field that cannot be honoured.
pub fn ask(wire: &MessagesRequest, model: &LoadedModel, strict: bool) -> Result<Asked, ServeError> {
    if wire.messages.is_empty() {
        return Err(ServeError::invalid("messages", "messages: at least one message is required"));
    }
    let mut reader = Reader::default();
    if let Some(system) = &wire.system {
        let (content, images) = reader.text_of("system", system)?;
        if let Some(SentImage { field, .. }) = images.first() {
            return Err(ServeError::invalid(field, format!("{field}: images are the user's or a tool's")));
        }
        reader.say(json!({"role": "system", "content": content}));
    }
    for (i, message) in wire.messages.iter().enumerate() {
        reader.message(i, message)?;
    }
    let Reader { messages, mut notices } = reader;
    let tools = tools(wire, &mut notices)?;
    let (choice, parallel) = choice(wire)?;
    let shown = if choice == ToolChoice::None { Vec::new() } else { tools };
    let mut conversation = Conversation { messages, goes_on: true, tools: shown, ..Conversation::default() };
    let reasoning_budget = set_thinking(&mut conversation, wire, model, &mut notices);
    let structure = Structure { form: form(wire)?, choice, parallel, reasoning_budget };
    note(wire, &mut notices);
    notices.enforce(strict)?;
    Ok(Asked { prompt: conversation.prompt(model, true)?, structure, notices })
}

/// The form asked of the answer; the field's place has moved.
fn form(wire: &MessagesRequest) -> Result<Option<Form>, ServeError> {
    let config = wire.output_config.as_ref().and_then(|config| config.format.as_ref());
    let (field, format) = match (config, &wire.output_format) {
        (Some(_), Some(_)) => {
            let reason = "output_format cannot be given beside output_config.format, which replaces it";
            return Err(ServeError::invalid("output_format", reason));
        }
        (Some(format), None) => ("output_config.format.schema", format),
        (None, Some(format)) => ("output_format.schema", format),
        (None, None) => return Ok(None),
    };
    let OutputFormat::JsonSchema { schema } = format;
    Form::json_schema(field, &Value::Object(schema.clone())).map(Some)
}

/// Messages for a template, as they are put together.
#[derive(Debug, Default)]
struct Reader {
    messages: Vec<Value>,
    notices: Notices,
}

impl Reader {
    /// Adds a message. Turns of the same speaker are one, as templates that want them to alternate expect.
    fn say(&mut self, message: Value) {
        let is_plain = |message: &Value| {
            matches!(message["role"].as_str(), Some("user" | "assistant"))
                && message.get("tool_calls").is_none()
                && !images::has_images(message)
        };
        if let Some(last) = self.messages.last_mut()
            && is_plain(last)
            && is_plain(&message)
            && last["role"] == message["role"]
            && let (Some(before), Some(more)) = (last["content"].as_str(), message["content"].as_str())
        {
            last["content"] = json!(format!("{before}\n{more}"));
            return;
        }
        self.messages.push(message);
    }

    fn message(&mut self, i: usize, message: &Message) -> Result<(), ServeError> {
        for name in message.unknown.keys() {
            self.notices.add(format!("messages[{i}].{name}"), "there is no such field");
        }
        let role = message.role;
        let path = format!("messages[{i}].content");
        let blocks = match &message.content {
            Content::Text(text) => {
                self.say(json!({"role": role.name(), "content": text}));
                return Ok(());
            }
            Content::Blocks(blocks) => blocks,
        };
        let (mut texts, mut thoughts, mut calls) = (Vec::new(), Vec::new(), Vec::new());
        let mut images = Vec::new();
        for (j, block) in blocks.iter().enumerate() {
            let path = format!("{path}[{j}]");
            self.note_block(&path, block);
            match (block, role) {
                (Block::Text(block), _) => texts.push(block.text.as_str()),
                (Block::Thinking(block), Role::Assistant) => thoughts.push(block.thinking.as_str()),
                (Block::ToolUse(call), Role::Assistant) => {
                    let function = json!({"name": call.name, "arguments": call.input});
                    calls.push(json!({"id": call.id, "type": "function", "function": function}));
                }
                (Block::Image(_), Role::User) => images.push(sent_image(&path, block)),
                (Block::ToolResult(result), Role::User) => self.result(&path, result)?,
                (block, role) => return Err(unreadable(&path, block, role)),
            }
        }
        let has_text = !texts.is_empty() || !calls.is_empty() || !thoughts.is_empty() || !images.is_empty();
        if !has_text {
            return if blocks.is_empty() {
                Err(ServeError::invalid(&path, format!("{path}: a message needs content")))
            } else {
                Ok(())
            };
        }
        let mut fields = Map::from_iter([
            ("role".to_owned(), json!(role.name())),
            ("content".to_owned(), json!(texts.join("\n"))),
        ]);
        if !thoughts.is_empty() {
            fields.insert("reasoning_content".to_owned(), json!(thoughts.join("\n")));
        }
        if !calls.is_empty() {
            fields.insert("tool_calls".to_owned(), json!(calls));
        }
        images::attach(&mut fields, images);
        self.say(Value::Object(fields));
        Ok(())
    }

    /// What a tool gave back is a message of its own, before the user's words.
    fn result(&mut self, path: &str, result: &ToolResultBlock) -> Result<(), ServeError> {
        if result.is_error == Some(true) {
            self.notices.add(format!("{path}.is_error"), "templates do not tell results from errors");
        }
        let (text, images) = match &result.content {
            Some(content) => self.text_of(&format!("{path}.content"), content)?,
            None => Default::default(),
        };
        let mut fields = Map::from_iter([
            ("role".to_owned(), json!("tool")),
            ("tool_call_id".to_owned(), json!(result.tool_use_id)),
            ("content".to_owned(), json!(text)),
        ]);
        images::attach(&mut fields, images);
        self.messages.push(Value::Object(fields));
        Ok(())
    }

    /// The text of blocks, which stand on lines of their own, and their images.
    fn text_of(&mut self, path: &str, content: &Content) -> Result<(String, Vec<SentImage>), ServeError> {
        let blocks = match content {
            Content::Text(text) => return Ok((text.clone(), Vec::new())),
            Content::Blocks(blocks) => blocks,
        };
        let (mut texts, mut images) = (Vec::with_capacity(blocks.len()), Vec::new());
        for (j, block) in blocks.iter().enumerate() {
            let path = format!("{path}[{j}]");
            self.note_block(&path, block);
            match block {
                Block::Text(block) => texts.push(block.text.as_str()),
                Block::Image(_) => images.push(sent_image(&path, block)),
                block => return Err(unreadable(&path, block, Role::User)),
            }
        }
        Ok((texts.join("\n"), images))
    }

    fn note_block(&mut self, path: &str, block: &Block) {
        if !matches!(block, Block::Text(_) | Block::Thinking(_) | Block::ToolUse(_) | Block::ToolResult(_)) {
            return;
        }
        for (name, value) in block.other() {
            let reason = match name.as_str() {
                "cache_control" => "nothing is cached by request",
                "citations" => "nothing is cited",
                "caller" | "toolset_name" => "calls are the model's own",
                _ => "there is no such field",
            };
            if !value.is_null() {
                self.notices.add(format!("{path}.{name}"), reason);
            }
        }
    }
}

/// The image of a block, whose source is base64; links are not followed.
fn sent_image(path: &str, block: &Block) -> SentImage {
    let source = block.other().get("source").unwrap_or(&Value::Null);
    let field = format!("{path}.type");
    let refusal = format!("{field}: {:?} cannot be read, this model reads only text", block.kind());
    let data = match (source["type"].as_str(), source["data"].as_str()) {
        (Some("base64"), Some(data)) => Ok(data.to_owned()),
        _ => {
            Err("its source is not base64, and this server fetches nothing; send the image itself".to_owned())
        }
    };
    SentImage { field, refusal, data }
}

fn unreadable(path: &str, block: &Block, role: Role) -> ServeError {
    let field = format!("{path}.type");
    let kind = block.kind();
    let reason = match block {
        Block::Thinking(_) | Block::ToolUse(_) | Block::ToolResult(_) => {
            format!("{field}: {kind:?} cannot be in a message of the {}", role.name())
        }
        _ => format!("{field}: {kind:?} cannot be read, this model reads only text"),
    };
    ServeError::invalid(field, reason)
}

/// Whether tools are to be called, and several at once.
fn choice(wire: &MessagesRequest) -> Result<(ToolChoice, bool), ServeError> {
    let has_tools = wire.tools.as_ref().is_some_and(|tools| !tools.is_empty());
    let (choice, is_alone) = match &wire.tool_choice {
        None => (ToolChoice::Auto, None),
        Some(WireChoice::None {}) => (ToolChoice::None, None),
        Some(WireChoice::Auto { disable_parallel_tool_use }) => {
            (ToolChoice::Auto, *disable_parallel_tool_use)
        }
        Some(WireChoice::Any { disable_parallel_tool_use }) => {
            (ToolChoice::Required, *disable_parallel_tool_use)
        }
        Some(WireChoice::Tool { name, disable_parallel_tool_use }) => {
            (ToolChoice::Named(name.clone()), *disable_parallel_tool_use)
        }
    };
    if !has_tools && matches!(choice, ToolChoice::Required | ToolChoice::Named(_)) {
        return Err(ServeError::invalid(
            "tool_choice",
            "tool_choice: a call is asked for, but there are no tools",
        ));
    }
    Ok((choice, is_alone != Some(true)))
}

/// The tools in the shape templates expect.
fn tools(wire: &MessagesRequest, notices: &mut Notices) -> Result<Vec<Value>, ServeError> {
    let tools = wire.tools.as_deref().unwrap_or_default().iter().enumerate();
    let tools: Vec<Value> =
        tools.map(|(i, tool)| template_tool(i, tool, notices)).collect::<Result<_, _>>()?;
    let specs: Vec<ToolSpec> = tools.iter().filter_map(ToolSpec::from_openai).collect();
    Structure::check_tools(&specs, |i| format!("tools[{i}].input_schema"))?;
    Ok(tools)
}

fn template_tool(i: usize, tool: &Tool, notices: &mut Notices) -> Result<Value, ServeError> {
    if let Some(kind) = tool.r#type.as_deref().filter(|kind| *kind != "custom") {
        let field = format!("tools[{i}].type");
        return Err(ServeError::invalid(
            &field,
            format!("{field}: there is no tool {kind:?} here, only your own"),
        ));
    }
    let Some(schema) = &tool.input_schema else {
        let field = format!("tools[{i}].input_schema");
        return Err(ServeError::invalid(&field, format!("{field}: a schema is required")));
    };
    for name in tool.other.keys() {
        notices.add(format!("tools[{i}].{name}"), "it is not shown to the model");
    }
    let mut function = json!({"name": tool.name, "parameters": schema});
    if let Some(description) = &tool.description {
        function["description"] = json!(description);
    }
    if let Some(strict) = tool.strict {
        function["strict"] = json!(strict);
    }
    Ok(json!({"type": "function", "function": function}))
}

/// Tells the template whether to think. Returns the budget to enforce.
fn set_thinking(
    conversation: &mut Conversation,
    wire: &MessagesRequest,
    model: &LoadedModel,
    notices: &mut Notices,
) -> Option<usize> {
    let effort = wire.output_config.as_ref().and_then(|config| config.effort.clone());
    let is_wanted = wire.thinking.as_ref().map(|thinking| thinking.r#type != ThinkingMode::Disabled);
    let budget = wire.thinking.as_ref().and_then(|thinking| thinking.budget_tokens);
    let asked = Thinking { is_wanted, effort, budget: budget.filter(|_| is_wanted == Some(true)) };
    let heard = conversation.think(&model.template, &asked);
    if asked.effort.is_some() && !heard.effort {
        notices.add("output_config.effort", "the model does not think before it answers");
    }
    if is_wanted == Some(true) && !heard.thinks {
        notices.add("thinking", "the model does not think before it answers");
    }
    if wire.thinking.as_ref().is_some_and(|thinking| thinking.display.is_some()) {
        notices.add("thinking.display", "thinking is shown as it is");
    }
    heard.budget
}

fn note(wire: &MessagesRequest, notices: &mut Notices) {
    let mut note = |is_said: bool, field: &str, reason: &str| {
        if is_said {
            notices.add(field, reason);
        }
    };
    note(wire.cache_control.is_some(), "cache_control", "nothing is cached by request");
    note(wire.container.is_some(), "container", "there are no containers");
    note(wire.context_management.is_some(), "context_management", "the conversation stays as it is");
    note(wire.diagnostics.is_some(), "diagnostics", "there are none");
    note(wire.inference_geo.is_some(), "inference_geo", "it is computed here");
    note(
        wire.mcp_servers.as_ref().is_some_and(|servers| !servers.is_empty()),
        "mcp_servers",
        "none is called",
    );
    note(wire.metadata.as_ref().is_some_and(|map| !map.is_empty()), "metadata", "nothing is stored");
    let speed = wire.speed.as_deref().is_some_and(|speed| speed != "standard");
    note(speed, "speed", "there is only one");
    note(wire.user_profile_id.is_some(), "user_profile_id", "there are no profiles");
    note(wire.workspace_id.is_some(), "workspace_id", "there are no workspaces");
    let config = wire.output_config.iter().flat_map(|config| config.unknown.keys());
    for name in config {
        note(true, &format!("output_config.{name}"), "there is no such field");
    }
    for name in wire.unknown.keys() {
        note(true, name, "there is no such field");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "helpers of tests are tests")]
mod tests {
    use super::*;

    fn read(messages: Value) -> Result<(Vec<Value>, Vec<String>), ServeError> {
        let body = json!({"model": "m", "messages": messages}).to_string();
        let wire = MessagesRequest::parse(body.as_bytes()).unwrap();
        let mut reader = Reader::default();
        for (i, message) in wire.messages.iter().enumerate() {
            reader.message(i, message)?;
        }
        Ok((reader.messages, reader.notices.warnings()))
    }

    #[test]
    fn a_conversation_with_tools_becomes_what_templates_read() {
        let (messages, warnings) = read(json!([
            {"role": "user", "content": "1 + 2?"},
            {"role": "user", "content": [{"type": "text", "text": "Quick!", "cache_control": {}}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": "Adding."},
                {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "3"}]},
                {"type": "text", "text": "So?"}]}
        ]))
        .unwrap();
        let call =
            json!({"id": "t1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}});
        assert_eq!(
            messages,
            [
                json!({"role": "user", "content": "1 + 2?\nQuick!"}),
                json!({"role": "assistant", "content": "Adding.", "reasoning_content": "hm", "tool_calls": [call]}),
                json!({"role": "tool", "tool_call_id": "t1", "content": "3"}),
                json!({"role": "user", "content": "So?"}),
            ]
        );
        let expected = "messages[1].content[0].cache_control is not honoured: nothing is cached by request";
        assert_eq!(warnings, [expected]);
    }

    #[test]
    fn blocks_out_of_place_are_refused_by_their_path() {
        let check = |role: &str, block: Value, text: &str| {
            let refused = read(json!([{"role": role, "content": [block]}])).unwrap_err();
            let ServeError::Invalid { field: Some(field), reason } = refused else { panic!("{refused}") };
            assert_eq!(field, "messages[0].content[0].type");
            assert!(reason.contains(text), "{reason}");
        };
        check("user", json!({"type": "document", "source": {}}), "reads only text");
        check("user", json!({"type": "thinking", "thinking": "x"}), "message of the user");
        check("assistant", json!({"type": "tool_result", "tool_use_id": "x"}), "message of the assistant");
        assert!(read(json!([{"role": "user", "content": []}])).is_err());
    }
}
