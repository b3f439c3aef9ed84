//! What an answer is held to: a form, calls of tools, a budget for reasoning.
//!
//! Invariant: what is compiled here is what the parser of the answer reads: the wire format of the calls and the tags
//! of the reasoning come from the same [`OutputOptions`].

use mlxr_engine::{LoopLimits, Prompt, Request};
use mlxr_text::grammar::{Constraint, ConstraintState, Grammar, GrammarError, ToolChoice};
use mlxr_text::tool_calls::{OutputOptions, ToolSpec};
use serde_json::Value;

use super::conversation::ChatPrompt;
use crate::ServeError;
use crate::loaded::LoadedModel;

/// The form asked of an answer, and the field that asked for it.
#[derive(Clone, Debug)]
pub struct Form {
    field: String,
    grammar: Grammar,
}

/// What a request demands of its answer.
#[derive(Clone, Debug)]
pub struct Structure {
    pub form: Option<Form>,
    pub choice: ToolChoice,
    /// Whether there may be several calls at once.
    pub parallel: bool,
    /// Tokens of reasoning after which its end is forced.
    pub reasoning_budget: Option<usize>,
}

impl Default for Structure {
    fn default() -> Self {
        Structure { form: None, choice: ToolChoice::Auto, parallel: true, reasoning_budget: None }
    }
}

impl Form {
    /// Any JSON object.
    pub fn json_object(field: &str) -> Form {
        Form { field: field.to_owned(), grammar: Grammar::json_object() }
    }

    /// JSON of a schema.
    ///
    /// # Errors
    /// What of the schema cannot be enforced.
    pub fn json_schema(field: &str, schema: &Value) -> Result<Form, ServeError> {
        Form::checked(field, Grammar::json_schema(schema))
    }

    /// Texts that match a regular expression.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn regex(field: &str, pattern: &str) -> Result<Form, ServeError> {
        Form::checked(field, Grammar::regex(pattern))
    }

    /// Texts of a grammar in llama.cpp's syntax.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn gbnf(field: &str, source: &str) -> Result<Form, ServeError> {
        Form::checked(field, Grammar::gbnf(source))
    }

    /// Texts of a grammar in Lark.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn lark(field: &str, source: &str) -> Result<Form, ServeError> {
        Form::checked(field, Grammar::lark(source))
    }

    /// One of some texts.
    ///
    /// # Errors
    /// There are none, or too many.
    pub fn choice(field: &str, texts: &[String]) -> Result<Form, ServeError> {
        if texts.is_empty() {
            return Err(ServeError::invalid(field, format!("{field} is empty")));
        }
        let quoted: Vec<String> = texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
        Form::checked(field, Grammar::lark(&format!("start: {}\n", quoted.join(" | "))))
    }

    /// The field that asked for it.
    pub fn field(&self) -> &str {
        &self.field
    }

    fn checked(field: &str, grammar: Result<Grammar, GrammarError>) -> Result<Form, ServeError> {
        let grammar = grammar.map_err(|error| refused(field, &error))?;
        Ok(Form { field: field.to_owned(), grammar })
    }
}

impl Structure {
    /// Checks the tools by themselves, so that an error can say which one it is about; `field` names one by its place.
    ///
    /// # Errors
    /// A tool whose schema is to be followed and cannot be.
    pub fn check_tools(tools: &[ToolSpec], field: impl Fn(usize) -> String) -> Result<(), ServeError> {
        for (i, tool) in tools.iter().enumerate() {
            if tools[..i].iter().any(|before| before.name == tool.name) {
                let reason = format!("{}: there are two tools {:?}", field(i), tool.name);
                return Err(ServeError::invalid(field(i), reason));
            }
            if !tool.parameters.is_object() {
                let reason = format!("{}: a schema of an object is expected", field(i));
                return Err(ServeError::invalid(field(i), reason));
            }
            if tool.strict {
                Grammar::json_schema(&tool.parameters).map_err(|error| refused(&field(i), &error))?;
            }
        }
        Ok(())
    }

    /// A request for the answer to `prompt`, held to what is demanded.
    ///
    /// # Errors
    /// A schema or grammar that this model's tokens cannot be held to.
    pub fn request(&self, model: &LoadedModel, prompt: &ChatPrompt) -> Result<Request, ServeError> {
        Ok(Request {
            constraint: self.constraint(model, &prompt.output)?,
            images: prompt.images.clone(),
            shown_ids: prompt.output.control_ids(&model.tokenizer),
            loop_limits: Some(LoopLimits::default()),
            ..Request::new(Prompt::Tokens(prompt.tokens.clone()))
        })
    }

    /// What a sequence is held to from its first token, if to anything.
    ///
    /// # Errors
    /// A schema or grammar that this model's tokens cannot be held to.
    pub fn constraint(
        &self,
        model: &LoadedModel,
        output: &OutputOptions,
    ) -> Result<Option<ConstraintState>, ServeError> {
        let constraint = Constraint {
            grammar: self.grammar(output)?,
            reasoning: output.reasoning.clone(),
            reasoning_budget: self.reasoning_budget,
        };
        if constraint.is_empty() {
            return Ok(None);
        }
        let start = model.grammars().and_then(|grammars| grammars.start(&constraint));
        start.map(Some).map_err(|error| refused(self.field(), &error))
    }

    fn grammar(&self, output: &OutputOptions) -> Result<Option<Grammar>, ServeError> {
        let form = self.form.as_ref().map(|form| &form.grammar);
        let Some(format) = output.format else { return Ok(form.cloned()) };
        let grammar = match (form, &self.choice) {
            (Some(form), ToolChoice::Auto) => {
                Grammar::tool_calls_or(format, &output.tools, self.parallel, form).map(Some)
            }
            (_, choice) => Grammar::tool_calls(format, &output.tools, choice, self.parallel),
        };
        let grammar = grammar.map_err(|error| {
            let field =
                if matches!(error, GrammarError::NoSuchTool { .. }) { "tool_choice" } else { "tools" };
            refused(field, &error)
        })?;
        Ok(grammar.or_else(|| form.cloned()))
    }

    fn field(&self) -> &str {
        self.form.as_ref().map_or("tools", |form| &form.field)
    }
}

fn refused(field: &str, error: &GrammarError) -> ServeError {
    ServeError::invalid(field, format!("{field}: {error}"))
}
