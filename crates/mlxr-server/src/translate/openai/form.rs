//! The form asked of an answer, however it is spelt: OpenAI's `response_format` and `text.format`, vLLM's and
//! llama.cpp's fields.

use mlxr_api::openai::responses::TextFormat;
use mlxr_api::openai::sampling::{SamplingExtensions, StructuredOutputs};
use mlxr_api::openai::tools::{GrammarSyntax, ResponseFormat};
use serde_json::Value;

use crate::ServeError;
use crate::notices::Notices;
use crate::translate::structure::Form;

/// Whether a field beyond the dialect asks for a form.
pub fn is_asked_for(extensions: &SamplingExtensions) -> bool {
    extensions.guided_json.is_some()
        || extensions.guided_regex.is_some()
        || extensions.guided_choice.is_some()
        || extensions.guided_grammar.is_some()
        || extensions.structured_outputs.is_some()
        || extensions.json_schema.is_some()
        || extensions.grammar.is_some()
}

/// Reads the one form that was asked for, in the dialect's own way or in another.
///
/// # Errors
/// A schema or grammar that cannot be followed, or several forms.
pub fn read(
    documented: Option<Form>,
    extensions: &SamplingExtensions,
    notices: &mut Notices,
) -> Result<Option<Form>, ServeError> {
    let mut forms: Vec<Form> = documented.into_iter().collect();
    let SamplingExtensions { guided_json, guided_regex, guided_choice, guided_grammar, .. } = extensions;
    forms.extend(guided_json.as_ref().map(|schema| json("guided_json", schema)).transpose()?);
    forms.extend(guided_regex.as_ref().map(|regex| Form::regex("guided_regex", regex)).transpose()?);
    forms.extend(guided_choice.as_ref().map(|texts| Form::choice("guided_choice", texts)).transpose()?);
    forms.extend(guided_grammar.as_ref().map(|source| grammar("guided_grammar", source)).transpose()?);
    forms.extend(extensions.json_schema.as_ref().map(|schema| json("json_schema", schema)).transpose()?);
    let source = extensions.grammar.as_ref().filter(|source| !source.is_empty());
    forms.extend(source.map(|source| Form::gbnf("grammar", source)).transpose()?);
    if let Some(outputs) = &extensions.structured_outputs {
        of_structured_outputs(outputs, &mut forms, notices)?;
    }
    if forms.len() > 1 {
        let fields: Vec<&str> = forms.iter().map(Form::field).collect();
        let reason = format!("an answer has one form, but {} ask for one each", fields.join(" and "));
        return Err(ServeError::invalid(fields[1], reason));
    }
    Ok(forms.pop())
}

/// The form `response_format` asks for.
///
/// # Errors
/// A schema or grammar that cannot be followed.
pub fn of_response_format(format: Option<&ResponseFormat>) -> Result<Option<Form>, ServeError> {
    let Some(format) = format else { return Ok(None) };
    match format {
        ResponseFormat::Text => Ok(None),
        ResponseFormat::JsonObject => Ok(Some(Form::json_object("response_format"))),
        ResponseFormat::JsonSchema { json_schema } => {
            let field = "response_format.json_schema.schema";
            let Some(schema) = &json_schema.schema else {
                return Err(ServeError::invalid(field, format!("{field}: a schema is required")));
            };
            Form::json_schema(field, schema).map(Some)
        }
        ResponseFormat::Regex { pattern } => Form::regex("response_format.pattern", pattern).map(Some),
        ResponseFormat::Grammar { grammar, syntax } => {
            of_grammar("response_format.grammar", grammar, *syntax).map(Some)
        }
    }
}

/// The form `text.format` asks for.
///
/// # Errors
/// A schema or grammar that cannot be followed.
pub fn of_text_format(format: &TextFormat) -> Result<Option<Form>, ServeError> {
    match format {
        TextFormat::Text => Ok(None),
        TextFormat::JsonObject => Ok(Some(Form::json_object("text.format"))),
        TextFormat::JsonSchema { schema, .. } => Form::json_schema("text.format.schema", schema).map(Some),
        TextFormat::Regex { pattern } => Form::regex("text.format.pattern", pattern).map(Some),
        TextFormat::Grammar { grammar, syntax } => {
            of_grammar("text.format.grammar", grammar, *syntax).map(Some)
        }
    }
}

fn of_grammar(field: &str, source: &str, syntax: Option<GrammarSyntax>) -> Result<Form, ServeError> {
    match syntax.unwrap_or_default() {
        GrammarSyntax::Gbnf => Form::gbnf(field, source),
        GrammarSyntax::Lark => Form::lark(field, source),
    }
}

fn of_structured_outputs(
    outputs: &StructuredOutputs,
    forms: &mut Vec<Form>,
    notices: &mut Notices,
) -> Result<(), ServeError> {
    let field = |name: &str| format!("structured_outputs.{name}");
    forms.extend(outputs.json.as_ref().map(|schema| json(&field("json"), schema)).transpose()?);
    if outputs.json_object == Some(true) {
        forms.push(Form::json_object(&field("json_object")));
    }
    forms.extend(outputs.regex.as_ref().map(|regex| Form::regex(&field("regex"), regex)).transpose()?);
    forms.extend(outputs.choice.as_ref().map(|texts| Form::choice(&field("choice"), texts)).transpose()?);
    forms.extend(outputs.grammar.as_ref().map(|source| grammar(&field("grammar"), source)).transpose()?);
    for name in outputs.unknown.keys() {
        notices.add(field(name), "the field is unknown");
    }
    Ok(())
}

/// A schema, or one written down as a text.
fn json(field: &str, schema: &Value) -> Result<Form, ServeError> {
    let Some(text) = schema.as_str() else { return Form::json_schema(field, schema) };
    let read = serde_json::from_str(text);
    let schema: Value = read.map_err(|error| ServeError::invalid(field, format!("{field}: {error}")))?;
    Form::json_schema(field, &schema)
}

/// GBNF and Lark are told apart by how they write rules.
fn grammar(field: &str, source: &str) -> Result<Form, ServeError> {
    if source.contains("::=") { Form::gbnf(field, source) } else { Form::lark(field, source) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_all(body: Value) -> Result<Option<Form>, ServeError> {
        let format = body.get("response_format").cloned();
        let format: Option<ResponseFormat> = format.map(|format| serde_json::from_value(format).unwrap());
        let extensions: SamplingExtensions = serde_json::from_value(body).unwrap();
        read(of_response_format(format.as_ref())?, &extensions, &mut Notices::default())
    }

    #[test]
    fn every_spelling_is_read() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
        for (body, field) in [
            (json!({"response_format": {"type": "json_object"}}), "response_format"),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}),
                "response_format.json_schema.schema",
            ),
            (json!({"response_format": {"type": "regex", "pattern": "a+"}}), "response_format.pattern"),
            (
                json!({"response_format": {"type": "grammar", "grammar": "root ::= \"a\""}}),
                "response_format.grammar",
            ),
            (
                json!({"response_format": {"type": "grammar", "syntax": "lark", "grammar": "start: \"a\""}}),
                "response_format.grammar",
            ),
            (json!({"guided_json": schema}), "guided_json"),
            (json!({"guided_json": schema.to_string()}), "guided_json"),
            (json!({"guided_regex": "a+"}), "guided_regex"),
            (json!({"guided_choice": ["yes", "no \"way\""]}), "guided_choice"),
            (json!({"guided_grammar": "root ::= \"a\""}), "guided_grammar"),
            (json!({"guided_grammar": "start: \"a\""}), "guided_grammar"),
            (json!({"json_schema": schema}), "json_schema"),
            (json!({"grammar": "root ::= \"a\""}), "grammar"),
            (json!({"structured_outputs": {"regex": "a+"}}), "structured_outputs.regex"),
            (json!({"structured_outputs": {"json_object": true}}), "structured_outputs.json_object"),
        ] {
            assert_eq!(read_all(body.clone()).unwrap().unwrap().field(), field, "{body}");
        }
        for body in [json!({}), json!({"response_format": {"type": "text"}, "grammar": ""})] {
            assert!(read_all(body).unwrap().is_none());
        }
    }

    #[test]
    fn what_cannot_be_followed_is_named() {
        for (body, field, text) in [
            (json!({"guided_json": "{"}), "guided_json", "EOF"),
            (json!({"guided_json": {"uniqueItems": true}}), "guided_json", "\"uniqueItems\""),
            (json!({"guided_regex": "("}), "guided_regex", "regex"),
            (json!({"guided_choice": []}), "guided_choice", "empty"),
            (json!({"grammar": "root ="}), "grammar", "gbnf grammar, line 1"),
            (json!({"guided_regex": "a", "grammar": "root ::= \"a\""}), "grammar", "one form"),
        ] {
            let refused = read_all(body.clone()).unwrap_err();
            assert!(refused.to_string().contains(text), "{body}: {refused}");
            assert!(
                matches!(&refused, ServeError::Invalid { field: Some(f), .. } if f == field),
                "{refused:?}"
            );
        }
    }
}
