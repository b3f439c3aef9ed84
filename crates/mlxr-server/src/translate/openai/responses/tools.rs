//! The functions of a request and whether they are to be called.

use mlxr_api::openai::responses::{
    FunctionTool, ResponseRequest, ToolChoice as WireChoice, ToolChoiceObject,
};
use mlxr_api::openai::tools::ToolChoiceMode;
use mlxr_text::grammar::ToolChoice;
use serde_json::{Map, Value, json};

use crate::ServeError;
use crate::notices::Notices;
use crate::translate::openai::tools::{CallStyle, Tools, check_all};

/// Reads the functions.
///
/// # Errors
/// [`ServeError`] names the tool that cannot be called.
pub fn read(wire: &ResponseRequest, notices: &mut Notices) -> Result<Tools, ServeError> {
    let tools = wire.tools.as_deref().unwrap_or_default().iter().enumerate();
    let tools: Vec<Value> = tools.map(|(i, tool)| shown(i, tool, notices)).collect::<Result<_, _>>()?;
    check_all(&tools, |i| format!("tools[{i}].parameters"))?;
    let (choice, shown) = match &wire.tool_choice {
        None => (ToolChoice::Auto, tools),
        Some(WireChoice::Mode(mode)) => (of_mode(*mode), tools),
        Some(WireChoice::Object(object)) => of_object(object, tools)?,
    };
    if shown.is_empty() && matches!(choice, ToolChoice::Required | ToolChoice::Named(_)) {
        let reason = "tool_choice asks for a call, but there are no tools";
        return Err(ServeError::invalid("tool_choice", reason));
    }
    let shown = if choice == ToolChoice::None { Vec::new() } else { shown };
    let parallel = wire.parallel_tool_calls != Some(false);
    Ok(Tools { shown, choice, parallel, style: CallStyle::Tools })
}

const fn of_mode(mode: ToolChoiceMode) -> ToolChoice {
    match mode {
        ToolChoiceMode::None => ToolChoice::None,
        ToolChoiceMode::Auto => ToolChoice::Auto,
        ToolChoiceMode::Required => ToolChoice::Required,
    }
}

/// A function in the shape templates expect.
fn shown(i: usize, tool: &FunctionTool, notices: &mut Notices) -> Result<Value, ServeError> {
    if tool.r#type != "function" {
        let field = format!("tools[{i}].type");
        let reason = format!(
            "{field} is {:?}, but this server runs no tools of its own; only functions of yours can be called",
            tool.r#type
        );
        return Err(ServeError::invalid(field, reason));
    }
    let Some(name) = &tool.name else {
        let field = format!("tools[{i}].name");
        return Err(ServeError::invalid(&field, format!("{field}: a function needs a name")));
    };
    for (name, value) in &tool.other {
        if !value.is_null() {
            notices.add(format!("tools[{i}].{name}"), "it is not shown to the model");
        }
    }
    let mut function = Map::from_iter([("name".to_owned(), json!(name))]);
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value.filter(|value| !value.is_null()) {
            function.insert(name.to_owned(), value);
        }
    };
    set("description", tool.description.as_ref().map(|text| json!(text)));
    set("parameters", tool.parameters.clone());
    set("strict", tool.strict.map(Value::Bool));
    Ok(json!({"type": "function", "function": function}))
}

fn of_object(choice: &ToolChoiceObject, tools: Vec<Value>) -> Result<(ToolChoice, Vec<Value>), ServeError> {
    let missing = |field: &str| Err(ServeError::invalid(field, format!("{field}: it is missing")));
    match choice.r#type.as_str() {
        "function" => match &choice.name {
            Some(name) => Ok((ToolChoice::Named(name.clone()), tools)),
            None => missing("tool_choice.name"),
        },
        "allowed_tools" => {
            let (Some(mode), Some(allowed)) = (choice.mode, &choice.tools) else {
                return missing(if choice.mode.is_none() { "tool_choice.mode" } else { "tool_choice.tools" });
            };
            Ok((of_mode(mode), allowed_of(allowed, tools)?))
        }
        other => {
            let reason = format!(
                "tool_choice.type is {other:?}, but this server runs no tools of its own; use \"function\" or \
                 \"allowed_tools\""
            );
            Err(ServeError::invalid("tool_choice.type", reason))
        }
    }
}

/// Those of the tools that may be called.
fn allowed_of(allowed: &[Map<String, Value>], tools: Vec<Value>) -> Result<Vec<Value>, ServeError> {
    let mut names = Vec::with_capacity(allowed.len());
    for (i, tool) in allowed.iter().enumerate() {
        let name = tool.get("name").and_then(Value::as_str);
        let Some(name) = name.filter(|name| tools.iter().any(|tool| tool["function"]["name"] == *name))
        else {
            let field = format!("tool_choice.tools[{i}].name");
            let reason = format!("{field}: there is no tool {:?}", name.unwrap_or_default());
            return Err(ServeError::invalid(field, reason));
        };
        names.push(name);
    }
    let is_allowed =
        |tool: &Value| tool["function"]["name"].as_str().is_some_and(|name| names.contains(&name));
    Ok(tools.into_iter().filter(is_allowed).collect())
}
