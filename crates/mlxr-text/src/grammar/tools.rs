//! Grammars of tool calls, in the wire format a model was trained on.
//!
//! A call must name one of the tools, and its arguments satisfy that tool's schema. Where calling is up to the model,
//! text is free until a call's marker; from there on the call is held to its form.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{GrammarError, Part, relax, schema};
use crate::tool_calls::{ToolFormat, ToolSpec};

/// Whether the model calls tools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// As it likes.
    #[default]
    Auto,
    /// Not at all: nothing is constrained, and no tools should be shown to the model.
    None,
    /// At least one call.
    Required,
    /// A call of this tool.
    Named(String),
}

/// The most tools of a request.
const MAX_TOOLS: usize = 512;

/// The grammar in Lark. `None` where nothing is to be constrained. `answer` is the schema of what may be said instead
/// of a call where calling is up to the model; without one that is any text.
pub(crate) fn lark(
    format: ToolFormat,
    tools: &[ToolSpec],
    choice: &ToolChoice,
    parallel: bool,
    answer: Option<&Value>,
) -> Result<Option<Vec<Part>>, GrammarError> {
    let tools: Vec<&ToolSpec> = match choice {
        ToolChoice::None => return Ok(None),
        ToolChoice::Named(name) => {
            let tool = tools.iter().find(|tool| &tool.name == name);
            vec![tool.ok_or_else(|| GrammarError::NoSuchTool { name: name.clone() })?]
        }
        ToolChoice::Auto | ToolChoice::Required => tools.iter().collect(),
    };
    if tools.is_empty() {
        return Ok(None);
    }
    if MAX_TOOLS < tools.len() {
        return Err(GrammarError::TooLong { what: "tool", found: tools.len(), max: MAX_TOOLS });
    }
    for tool in &tools {
        check_name(&tool.name)?;
    }
    let answer = answer.filter(|_| *choice == ToolChoice::Auto);
    let is_free = *choice == ToolChoice::Auto && answer.is_none();
    let parallel = parallel && !matches!(choice, ToolChoice::Named(_));
    let mut writer = Writer::new(&tools)?;
    if let Some(answer) = answer {
        if format == ToolFormat::Llama3Json {
            return Ok(Some(vec![Part::Text(format!("start: %json {}\n", call_or(&writer.tools, answer)))]));
        }
        let is_harmony = format == ToolFormat::Harmony;
        writer.start = if is_harmony { "start" } else { "calls" };
        writer.text(&format!("answer: %json {answer}\n"));
        writer.text(if is_harmony { "" } else { "start: calls | answer\n" });
        writer.has_answer = true;
    }
    match format {
        ToolFormat::Harmony => harmony(&mut writer, is_free),
        ToolFormat::Llama3Json | ToolFormat::Pythonic => bare(&mut writer, format, is_free, parallel),
        _ => marked(&mut writer, format, is_free, parallel),
    }
    Ok(Some(writer.parts))
}

fn check_name(name: &str) -> Result<(), GrammarError> {
    let bad = |reason| Err(GrammarError::ToolName { name: name.to_owned(), reason });
    match name {
        "" => bad("is empty"),
        _ if name.len() > 128 => bad("is longer than 128 bytes"),
        _ if !name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.:/$".contains(c)) => {
            bad("has a character outside A-Z a-z 0-9 _ - . : / $")
        }
        _ => Ok(()),
    }
}

/// A Lark string literal.
pub(crate) fn quote(text: &str) -> String {
    Value::from(text).to_string()
}

/// A regular expression for a text, without its slashes.
pub(crate) fn pattern(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        if c.is_alphanumeric() || c == '_' {
            out.push(c);
        } else {
            let _ = write!(out, "\\x{{{:x}}}", c as u32);
        }
        out
    })
}

/// Collects the rules.
struct Writer<'a> {
    parts: Vec<Part>,
    tools: Vec<(&'a ToolSpec, Value)>,
    /// The rule of the calls: all there is, unless there may be an answer instead.
    start: &'static str,
    /// There is a rule `answer`.
    has_answer: bool,
}

impl<'a> Writer<'a> {
    fn new(tools: &[&'a ToolSpec]) -> Result<Writer<'a>, GrammarError> {
        let with_schema = |tool: &&'a ToolSpec| {
            if tool.strict {
                schema::check(&tool.parameters)?;
                return Ok((*tool, tool.parameters.clone()));
            }
            Ok((*tool, relax::relax(&tool.parameters)))
        };
        let tools = tools.iter().map(with_schema).collect::<Result<_, GrammarError>>()?;
        let mut writer = Writer { parts: Vec::new(), tools, start: "start", has_answer: false };
        writer.text("WS: /[ \\n]{1,2}/\nANY: /(?s:.+)/\n");
        Ok(writer)
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.parts.push(Part::Text(text.to_owned()));
        self
    }

    fn marker(&mut self, text: &str) -> &mut Self {
        self.parts.push(Part::Marker(text.to_owned()));
        self
    }

    /// A rule: any text up to and with a marker.
    fn up_to(&mut self, rule: &str, marker: &str) -> &mut Self {
        self.parts.push(Part::UpTo { rule: rule.to_owned(), marker: marker.to_owned() });
        self
    }

    /// A rule or terminal: any text without a marker in it.
    fn without(&mut self, terminal: &str, marker: &str) -> &mut Self {
        self.parts.push(Part::Without { terminal: terminal.to_owned(), marker: marker.to_owned() });
        self
    }

    fn any_of(&mut self, rule: &str) -> &mut Self {
        let all: Vec<String> = (0..self.tools.len()).map(|i| format!("{rule}_{i}")).collect();
        self.text(&format!("{rule}: {}\n", all.join(" | ")))
    }

    /// Rules `args_i`: the arguments as a JSON object.
    fn json_arguments(&mut self) {
        for i in 0..self.tools.len() {
            let rule = format!("args_{i}: %json {}\n", self.tools[i].1);
            self.text(&rule);
        }
    }

    /// Rules `obj_i`: the call as a JSON object, its arguments under `key`.
    fn json_objects(&mut self, key: &str) {
        self.json_arguments();
        for i in 0..self.tools.len() {
            let name = pattern(&self.tools[i].0.name);
            self.text(&format!(
                "obj_{i}: OBJ_{i} args_{i} OBJ_END\nOBJ_{i}: /[ \\n]{{0,2}}\\{{[ \\n]{{0,2}}\"name\" ?: ?\"{name}\" ?,[ \\n]{{0,2}}\"{key}\" ?: ?/\n"
            ));
        }
        self.text("OBJ_END: /[ \\n]{0,2}\\}/\n").any_of("obj");
    }

    /// The properties of a tool's arguments, the required ones first.
    fn properties(&self, tool: usize) -> Vec<Property> {
        let schema = &self.tools[tool].1;
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut found: Vec<Property> = schema["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, value)| Property {
                key: key.clone(),
                schema: with_definitions(value, schema),
                is_required: required.contains(&key.as_str()),
            })
            .collect();
        found.sort_by_key(|property| !property.is_required);
        found
    }
}

struct Property {
    key: String,
    schema: Value,
    is_required: bool,
}

impl Property {
    fn is_text(&self) -> bool {
        self.schema["type"] == "string"
            && self.schema.get("enum").is_none()
            && self.schema.get("const").is_none()
    }

    /// The texts a property may be, if it is an enumeration of texts.
    fn texts(&self) -> Option<Vec<&str>> {
        let values = self.schema.get("enum")?.as_array()?;
        values.iter().map(Value::as_str).collect()
    }
}

/// A schema in a schema, with the definitions its references name.
fn with_definitions(schema: &Value, root: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(map) = schema.as_object_mut() {
        for key in ["$defs", "definitions"] {
            if let Some(definitions) = root.get(key) {
                map.entry(key).or_insert_with(|| definitions.clone());
            }
        }
    }
    schema
}

/// Formats whose calls begin with a marker.
fn marked(w: &mut Writer<'_>, format: ToolFormat, is_free: bool, parallel: bool) {
    let marker = format.markers()[0];
    if is_free {
        w.text(match parallel {
            true => "start: (lead body)* TAIL?\n",
            false => "start: lead body | TAIL?\n",
        });
        w.up_to("lead", marker).without("TAIL", marker);
    } else {
        // Sections hold all of their calls; other formats begin anew for each.
        let repeats = parallel && !is_section(format);
        w.text(&format!("{}: WS? first", w.start)).text(if repeats { " (WS? first)*\n" } else { "\n" });
        w.text("first: ").marker(marker).text(" body\n");
    }
    body(w, format, parallel);
}

/// Whether one marker opens a list of calls.
fn is_section(format: ToolFormat) -> bool {
    use ToolFormat::{DeepSeekV3, DeepSeekV31, Gemma3, KimiK2, Lfm2, MiniMaxM2, MistralList, Phi4};
    matches!(format, DeepSeekV3 | DeepSeekV31 | Gemma3 | KimiK2 | Lfm2 | MiniMaxM2 | MistralList | Phi4)
}

/// Rule `body`: what follows the marker.
fn body(w: &mut Writer<'_>, format: ToolFormat, parallel: bool) {
    let more = |rule: &str, between: &str| match parallel {
        true => format!("{rule} ({between} {rule})*"),
        false => rule.to_owned(),
    };
    match format {
        ToolFormat::Hermes => {
            w.text("body: obj WS? ").marker("</tool_call>").text("\n").json_objects("arguments");
        }
        ToolFormat::MistralList => {
            w.text(&format!("body: WS? \"[\" {} \"]\"\n", more("obj", "\",\" "))).json_objects("arguments");
        }
        ToolFormat::Phi4 => {
            w.text(&format!("body: \"[\" {} \"]\" ", more("obj", "\",\" ")));
            w.marker("<|/tool_call|>").text("?\n").json_objects("arguments");
        }
        ToolFormat::MistralName | ToolFormat::MistralArgs => mistral(w, format == ToolFormat::MistralArgs),
        ToolFormat::KimiK2 => kimi(w, &more("call", "")),
        ToolFormat::DeepSeekV3 => deepseek(w, &more("call", "\"\\n\"?"), true),
        ToolFormat::DeepSeekV31 => deepseek(w, &more("call", ""), false),
        ToolFormat::QwenXml => {
            w.text("body: WS? \"<function=\" call WS? ").marker("</tool_call>").text("\n").any_of("call");
            let style = Tagged {
                after_name: "\">\\n\"",
                open: ["\"<parameter=", ">\\n\""],
                close: "\n</parameter>",
                end: "\"</function>\"",
                between: "\"\\n\"",
            };
            tagged(w, &style);
        }
        ToolFormat::Glm => {
            w.text("body: WS? call ").marker("</tool_call>").text("\n").any_of("call");
            glm(w);
        }
        ToolFormat::MiniMaxM2 => {
            w.text(&format!("body: WS? {} ", more("invoke", "")));
            w.marker("</minimax:tool_call>")
                .text("\ninvoke: \"<invoke name=\\\"\" call WS?\n")
                .any_of("call");
            let style = Tagged {
                after_name: "\"\\\">\" WS?",
                open: ["\"<parameter name=\\\"", "\\\">\""],
                close: "</parameter>",
                end: "\"</invoke>\"",
                between: "WS?",
            };
            tagged(w, &style);
        }
        ToolFormat::Lfm2 => {
            w.text(&format!("body: \"[\" {} \"]\" ", more("call", "\", \"")));
            w.marker("<|tool_call_end|>").text("\n").any_of("call");
            python(w);
        }
        ToolFormat::Gemma3 => {
            w.text(&format!("body: \"\\n\" {} \"\\n```\"\n", more("call", "\"\\n\""))).any_of("call");
            python(w);
        }
        ToolFormat::Gemma4 => gemma(w),
        ToolFormat::Harmony | ToolFormat::Llama3Json | ToolFormat::Pythonic => {}
    }
}

fn mistral(w: &mut Writer<'_>, has_args: bool) {
    w.text("body: call\n").any_of("call");
    for i in 0..w.tools.len() {
        let name = quote(&w.tools[i].0.name);
        w.text(&format!("call_{i}: {name} "));
        if has_args {
            w.marker("[ARGS]");
        }
        w.text(&format!(" args_{i}\n"));
    }
    w.json_arguments();
}

fn kimi(w: &mut Writer<'_>, calls: &str) {
    w.text(&format!("body: {calls} ")).marker("<|tool_calls_section_end|>").text("\n").any_of("call");
    for i in 0..w.tools.len() {
        let id = quote(&format!("functions.{}:", w.tools[i].0.name));
        w.text(&format!("call_{i}: ")).marker("<|tool_call_begin|>").text(&format!(" {id} /[0-9]{{1,3}}/ "));
        w.marker("<|tool_call_argument_begin|>")
            .text(&format!(" args_{i} "))
            .marker("<|tool_call_end|>")
            .text("\n");
    }
    w.json_arguments();
}

fn deepseek(w: &mut Writer<'_>, calls: &str, is_fenced: bool) {
    w.text(&format!("body: {calls} ")).marker("<｜tool▁calls▁end｜>").text("\n").any_of("call");
    for i in 0..w.tools.len() {
        let name = w.tools[i].0.name.clone();
        w.text(&format!("call_{i}: ")).marker("<｜tool▁call▁begin｜>");
        if is_fenced {
            w.text(" \"function\" ").marker("<｜tool▁sep｜>");
            w.text(&format!(" {} args_{i} \"\\n```\" ", quote(&format!("{name}\n```json\n"))));
        } else {
            w.text(&format!(" {} ", quote(&name))).marker("<｜tool▁sep｜>").text(&format!(" args_{i} "));
        }
        w.marker("<｜tool▁call▁end｜>").text("\n");
    }
    w.json_arguments();
}

/// What is around names and values in formats with tags; all but `close` are Lark.
struct Tagged {
    after_name: &'static str,
    /// Before and after the key.
    open: [&'static str; 2],
    close: &'static str,
    end: &'static str,
    between: &'static str,
}

/// Rules `call_i`: arguments tag by tag.
fn tagged(w: &mut Writer<'_>, style: &Tagged) {
    for i in 0..w.tools.len() {
        let properties = w.properties(i);
        let list: String = properties
            .iter()
            .enumerate()
            .map(|(k, p)| format!(" p_{i}_{k}{}", if p.is_required { "" } else { "?" }))
            .collect();
        let name = quote(&w.tools[i].0.name);
        w.text(&format!("call_{i}: {name} {} {list} {}\n", style.after_name, style.end));
        for (k, property) in properties.iter().enumerate() {
            let key = quote(&property.key);
            let open = format!("{}{}{}", style.open[0], &key[1..key.len() - 1], style.open[1]);
            w.text(&format!("p_{i}_{k}: {open} v_{i}_{k} {}\n", style.between));
            tagged_value(w, &format!("v_{i}_{k}"), property, style.close);
        }
    }
}

/// A rule: a value and the tag after it.
fn tagged_value(w: &mut Writer<'_>, rule: &str, property: &Property, close: &str) {
    if let Some(texts) = property.texts() {
        let texts: Vec<String> = texts.iter().map(|text| quote(&format!("{text}{close}"))).collect();
        w.text(&format!("{rule}: {}\n", texts.join(" | ")));
    } else if property.is_text() {
        w.up_to(rule, close);
    } else {
        w.text(&format!("{rule}: %json {} ", property.schema)).marker(close).text("\n");
    }
}

fn glm(w: &mut Writer<'_>) {
    for i in 0..w.tools.len() {
        let properties = w.properties(i);
        let list: String = properties
            .iter()
            .enumerate()
            .map(|(k, p)| format!(" p_{i}_{k}{}", if p.is_required { "" } else { "?" }))
            .collect();
        let name = quote(&format!("{}\n", w.tools[i].0.name));
        w.text(&format!("call_{i}: {name} {list}\n"));
        for (k, property) in properties.iter().enumerate() {
            w.text(&format!("p_{i}_{k}: ")).marker("<arg_key>").text(&format!(" {} ", quote(&property.key)));
            w.marker("</arg_key>").text(" WS? ").marker("<arg_value>").text(&format!(" v_{i}_{k} WS?\n"));
            tagged_value(w, &format!("v_{i}_{k}"), property, "</arg_value>");
        }
    }
}

/// Alternatives with every admissible choice of optional items, in order and divided by commas.
fn comma_list(items: &[(String, bool)], comma: &str) -> String {
    let n_required = items.iter().filter(|(_, is_required)| *is_required).count();
    let tail = |from: usize| -> String {
        items[from..].iter().map(|(rule, _)| format!(" ({comma} {rule})?")).collect()
    };
    if n_required > 0 {
        let required: Vec<&str> = items[..n_required].iter().map(|(rule, _)| rule.as_str()).collect();
        return required.join(&format!(" {comma} ")) + &tail(n_required);
    }
    let all: Vec<String> = (0..items.len()).map(|i| format!("{}{}", items[i].0, tail(i + 1))).collect();
    if all.is_empty() { String::new() } else { format!("({})?", all.join(" | ")) }
}

/// Rules `call_i`: Python calls.
fn python(w: &mut Writer<'_>) {
    for i in 0..w.tools.len() {
        let properties = w.properties(i);
        let items: Vec<(String, bool)> =
            properties.iter().enumerate().map(|(k, p)| (format!("p_{i}_{k}"), p.is_required)).collect();
        let name = quote(&format!("{}(", w.tools[i].0.name));
        w.text(&format!("call_{i}: {name} {} \")\"\n", comma_list(&items, "/, ?/")));
        for (k, property) in properties.iter().enumerate() {
            let value = match property.schema["type"].as_str() {
                Some("boolean") => "(\"True\" | \"False\")".to_owned(),
                Some("null") => "\"None\"".to_owned(),
                _ => format!("%json {}", property.schema),
            };
            w.text(&format!("p_{i}_{k}: {} {value}\n", quote(&format!("{}=", property.key))));
        }
    }
}

fn gemma(w: &mut Writer<'_>) {
    w.text("body: \"call:\" call ").marker("<tool_call|>").text("\n").any_of("call");
    for i in 0..w.tools.len() {
        let properties = w.properties(i);
        let items: Vec<(String, bool)> =
            properties.iter().enumerate().map(|(k, p)| (format!("p_{i}_{k}"), p.is_required)).collect();
        let name = quote(&format!("{}{{", w.tools[i].0.name));
        w.text(&format!("call_{i}: {name} {} \"}}\"\n", comma_list(&items, "\",\"")));
        for (k, property) in properties.iter().enumerate() {
            w.text(&format!("p_{i}_{k}: {} ", quote(&format!("{}:", property.key))));
            match (property.texts(), property.schema["type"].as_str()) {
                (Some(texts), _) => {
                    let texts: Vec<String> = texts.iter().map(|text| quote(text)).collect();
                    w.marker("<|\"|>")
                        .text(&format!(" ({}) ", texts.join(" | ")))
                        .marker("<|\"|>")
                        .text("\n");
                }
                (None, Some("string")) => {
                    w.text("gtext\n");
                }
                (None, Some("array")) => {
                    w.text("glist\n");
                }
                (None, Some("object")) => {
                    w.text("gmap\n");
                }
                _ => {
                    w.text(&format!("%json {}\n", property.schema));
                }
            }
        }
    }
    w.text("gvalue: gtext | glist | gmap | %json {\"type\": [\"number\", \"boolean\", \"null\"]}\n");
    w.text("glist: \"[\" (gvalue (\",\" gvalue)*)? \"]\"\ngmap: \"{\" (gpair (\",\" gpair)*)? \"}\"\n");
    w.text("gpair: /[A-Za-z_][A-Za-z0-9_]*:/ gvalue\ngtext: ").marker("<|\"|>").text(" gend\n");
    w.up_to("gend", "<|\"|>");
}

/// Formats where the call is the whole answer, without a marker.
fn bare(w: &mut Writer<'_>, format: ToolFormat, is_free: bool, parallel: bool) {
    let is_json = format == ToolFormat::Llama3Json;
    let list = match (is_json, parallel) {
        (true, true) => "call (\"; \" call)*",
        (true, false) => "call",
        (false, true) => "\"[\" call (\", \" call)* \"]\"",
        (false, false) => "\"[\" call \"]\"",
    };
    if !is_free {
        w.text(&format!("{}: WS? {list}\n", w.start));
    } else if is_json {
        w.text(&format!("start: {list} | TAIL?\nTAIL: ANY & ~/(?s:\\s*\\{{\\s*\"name\".*)/\n"));
    } else {
        let names: Vec<String> = w.tools.iter().map(|(tool, _)| pattern(&tool.name)).collect();
        let names = names.join("|");
        // The opening is one terminal, so that it and a text that begins like it live side by side.
        let list = list.replacen("\"[\" call", "first", 1);
        w.text(&format!("start: {list} | TAIL?\nTAIL: ANY & ~/(?s:\\s*\\[\\s*({names})\\(.*)/\n"));
        let all: Vec<String> = (0..w.tools.len()).map(|i| format!("first_{i}")).collect();
        w.text(&format!("first: {}\n", all.join(" | ")));
    }
    if is_json {
        w.text("call: obj\n").json_objects("parameters");
        return;
    }
    w.any_of("call");
    python(w);
    if is_free {
        let firsts = first_calls(w);
        w.text(&firsts);
    }
}

/// The schema of one call without a marker or else of an answer: both are JSON and may begin alike, so that only one
/// automaton can tell them apart.
fn call_or(tools: &[(&ToolSpec, Value)], answer: &Value) -> Value {
    let call = |(i, (tool, parameters)): (usize, &(&ToolSpec, Value))| {
        json!({
            "type": "object",
            "properties": {
                "name": {"const": tool.name},
                "parameters": rebased(parameters, &format!("#/anyOf/{i}/properties/parameters")),
            },
            "required": ["name", "parameters"],
            "additionalProperties": false,
        })
    };
    let mut forms: Vec<Value> = tools.iter().enumerate().map(call).collect();
    forms.push(rebased(answer, &format!("#/anyOf/{}", forms.len())));
    json!({"anyOf": forms})
}

/// A schema whose references hold where it is put.
fn rebased(schema: &Value, place: &str) -> Value {
    match schema {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| match (key.as_str(), value.as_str().and_then(|to| to.strip_prefix('#'))) {
                ("$ref", Some(target)) => (key.clone(), Value::from(format!("{place}{target}"))),
                _ => (key.clone(), rebased(value, place)),
            })
            .collect(),
        Value::Array(items) => items.iter().map(|item| rebased(item, place)).collect(),
        other => other.clone(),
    }
}

/// Rules `first_i`: the calls with the bracket before them in one terminal with the name.
fn first_calls(w: &Writer<'_>) -> String {
    (0..w.tools.len()).fold(String::new(), |mut out, i| {
        let items: Vec<(String, bool)> =
            w.properties(i).iter().enumerate().map(|(k, p)| (format!("p_{i}_{k}"), p.is_required)).collect();
        let name = pattern(&w.tools[i].0.name);
        let _ = writeln!(out, "first_{i}: /\\[{name}\\(/ {} \")\"", comma_list(&items, "/, ?/"));
        out
    })
}

/// Channels: any analysis, then a final text or a call.
fn harmony(w: &mut Writer<'_>, is_free: bool) {
    w.text("start: (said)* last\nsaid: ").marker("<|channel|>").text(" \"analysis\" ").marker("<|message|>");
    w.text(" until_end ").marker("<|start|>").text(" \"assistant\"\n | ").marker("<|channel|>");
    w.text(" \"commentary\" ").marker("<|message|>").text(" until_end ").marker("<|start|>");
    w.text(" \"assistant\"\n").up_to("until_end", "<|end|>");
    if is_free {
        w.text("last: call | final\nfinal: ").marker("<|channel|>").text(" \"final\" ");
        w.marker("<|message|>").text(" ANY?\n");
    } else if w.has_answer {
        w.text("last: call | final\nfinal: ").marker("<|channel|>").text(" \"final\" (\" \"? ");
        w.marker("<|constrain|>").text(" \"json\")? ").marker("<|message|>").text(" answer\n");
    } else {
        w.text("last: call\n");
    }
    w.any_of("call");
    for i in 0..w.tools.len() {
        let to = format!(" to=functions.{}", w.tools[i].0.name);
        let (late, early) = (quote(&format!("commentary{to}")), quote(&to));
        w.text(&format!("call_{i}: (")).marker("<|channel|>").text(&format!(" {late} | {early} "));
        w.marker("<|channel|>")
            .text(" \"commentary\") (\" \"? ")
            .marker("<|constrain|>")
            .text(" \"json\" | \" json\")? ");
        w.marker("<|message|>").text(&format!(" args_{i}\n"));
    }
    w.json_arguments();
}
