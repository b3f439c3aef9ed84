//! The tools of a request and whether they are to be called, in today's manner and in the one before it.

use mlxr_api::openai::chat::ChatCompletionRequest;
use mlxr_api::openai::tools::{
    FunctionChoice, FunctionDefinition, FunctionMode, Tool, ToolChoice as WireChoice, ToolChoiceMode,
};
use mlxr_text::grammar::ToolChoice;
use mlxr_text::tool_calls::ToolSpec;
use serde_json::{Value, json};

use crate::ServeError;
use crate::translate::structure::Structure;

/// How calls are written in the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CallStyle {
    #[default]
    Tools,
    /// One `function_call`.
    Function,
}

/// What may be called.
#[derive(Clone, Debug)]
pub struct Tools {
    /// What the model is shown; none where it is not to call any.
    pub shown: Vec<Value>,
    pub choice: ToolChoice,
    pub parallel: bool,
    pub style: CallStyle,
}

/// Reads the tools.
///
/// # Errors
/// [`ServeError`] names the tool that cannot be called.
pub fn read(wire: &ChatCompletionRequest) -> Result<Tools, ServeError> {
    let has_functions = wire.functions.as_ref().is_some_and(|functions| !functions.is_empty());
    if has_functions && wire.tools.is_some() {
        let reason = "functions cannot be given beside tools, which replace them";
        return Err(ServeError::invalid("functions", reason));
    }
    let (tools, choice, style) = match wire.functions.as_deref().filter(|_| has_functions) {
        Some(functions) => {
            (of_functions(functions), function_choice(wire.function_call.as_ref()), CallStyle::Function)
        }
        None => {
            let tools = shown(wire.tools.as_deref().unwrap_or_default())?;
            (tools, tool_choice(wire.tool_choice.as_ref()), CallStyle::Tools)
        }
    };
    let is_forced = matches!(choice, ToolChoice::Required | ToolChoice::Named(_));
    if tools.is_empty() && is_forced {
        return Err(ServeError::invalid(
            "tool_choice",
            "tool_choice asks for a call, but there are no tools",
        ));
    }
    check_all(&tools, |i| match style {
        CallStyle::Tools => format!("tools[{i}].function.parameters"),
        CallStyle::Function => format!("functions[{i}].parameters"),
    })?;
    let parallel = style == CallStyle::Tools && wire.parallel_tool_calls != Some(false);
    let shown = if choice == ToolChoice::None { Vec::new() } else { tools };
    Ok(Tools { shown, choice, parallel, style })
}

/// `field` names a tool's schema by its place.
///
/// # Errors
/// A tool that cannot be called as it is described.
pub fn check_all(tools: &[Value], field: impl Fn(usize) -> String) -> Result<(), ServeError> {
    let specs: Vec<ToolSpec> = tools.iter().filter_map(ToolSpec::from_openai).collect();
    Structure::check_tools(&specs, field)
}

/// What the model is shown of tools.
///
/// # Errors
/// A tool that is no function.
pub fn shown(tools: &[Tool]) -> Result<Vec<Value>, ServeError> {
    if let Some(i) = tools.iter().position(|tool| tool.r#type != "function") {
        let (field, kind) = (format!("tools[{i}].type"), &tools[i].r#type);
        let reason = format!("{field} is {kind:?}, but only functions can be called here");
        return Err(ServeError::invalid(field, reason));
    }
    // Our own types always serialise.
    Ok(tools.iter().map(|tool| json!(tool)).collect())
}

fn of_functions(functions: &[FunctionDefinition]) -> Vec<Value> {
    functions.iter().map(|function| json!({"type": "function", "function": function})).collect()
}

fn tool_choice(choice: Option<&WireChoice>) -> ToolChoice {
    match choice {
        None | Some(WireChoice::Mode(ToolChoiceMode::Auto)) => ToolChoice::Auto,
        Some(WireChoice::Mode(ToolChoiceMode::None)) => ToolChoice::None,
        Some(WireChoice::Mode(ToolChoiceMode::Required)) => ToolChoice::Required,
        Some(WireChoice::Named(named)) => ToolChoice::Named(named.function.name.clone()),
    }
}

fn function_choice(choice: Option<&FunctionChoice>) -> ToolChoice {
    match choice {
        None | Some(FunctionChoice::Mode(FunctionMode::Auto)) => ToolChoice::Auto,
        Some(FunctionChoice::Mode(FunctionMode::None)) => ToolChoice::None,
        Some(FunctionChoice::Named(named)) => ToolChoice::Named(named.name.clone()),
    }
}
