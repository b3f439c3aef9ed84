//! What a model is: its weights, and what is said to it before anybody asks. One YAML file each.

use std::path::{Path, PathBuf};

use mlxr_tensor::DType;
use serde_json::{Value, json};

use super::blobs::Digest;
use super::parameters::Parameters;
use crate::KeepAlive;
use crate::config::yaml::{self, Entry as YamlEntry, Node};
use crate::config::{Problem, Setting, Text, did_you_mean};

/// What stands for the model in the binary.
const BUNDLED: &str = "bundled";

/// Longer templates and system prompts are refused.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// Messages before the conversation at most.
const MAX_MESSAGES: usize = 1024;

/// Where the weights are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntrySource {
    Blob(Digest),
    /// A GGUF file or a folder that stays where it is.
    Path(PathBuf),
    /// The model in the binary.
    Bundled,
}

/// A message that every conversation begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    pub content: String,
}

/// What a model brings along beside its weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelSettings {
    /// The model this one was made from.
    pub parent: Option<String>,
    /// A Jinja template in place of the checkpoint's.
    pub template: Option<String>,
    /// The system prompt of conversations that have none.
    pub system: Option<String>,
    pub parameters: Parameters,
    pub messages: Vec<StoredMessage>,
    pub licenses: Vec<String>,
    pub keep_alive: Option<KeepAlive>,
    pub pin: bool,
    pub n_ctx: Option<u32>,
    pub kv_type: Option<DType>,
}

impl ModelSettings {
    /// The context to load the model with.
    pub fn n_ctx(&self) -> Option<u32> {
        self.n_ctx.or_else(|| self.parameters.n_ctx())
    }

    /// The settings of a model made from another one's, which count where these say nothing.
    pub fn made_from(self, parent_name: &str, parent: &ModelSettings) -> ModelSettings {
        let messages = if self.messages.is_empty() { parent.messages.clone() } else { self.messages };
        ModelSettings {
            parent: Some(parent_name.to_owned()),
            template: self.template.or_else(|| parent.template.clone()),
            // An empty one takes the parent's away.
            system: self.system.or_else(|| parent.system.clone()).filter(|text| !text.is_empty()),
            parameters: parent.parameters.overlaid(&self.parameters),
            messages,
            licenses: parent.licenses.iter().cloned().chain(self.licenses).collect(),
            keep_alive: self.keep_alive.or(parent.keep_alive),
            pin: self.pin,
            n_ctx: self.n_ctx.or(parent.n_ctx),
            kv_type: self.kv_type.or(parent.kv_type),
        }
    }

    /// Whether [`open`](Self::open) adds anything.
    pub fn opens_conversations(&self) -> bool {
        self.system.is_some() || !self.messages.is_empty()
    }

    /// A conversation behind what the model brings along: its system prompt, unless the conversation begins with one,
    /// and its messages.
    pub fn open(&self, messages: Vec<Value>) -> Vec<Value> {
        if !self.opens_conversations() {
            return messages;
        }
        let is_system = |message: &Value| matches!(message["role"].as_str(), Some("system" | "developer"));
        let mut rest = messages.into_iter().peekable();
        let own = || self.system.as_ref().map(|text| json!({"role": "system", "content": text}));
        let mut opened: Vec<Value> = rest.next_if(is_system).or_else(own).into_iter().collect();
        let shown = self.messages.iter().map(|m| json!({"role": m.role, "content": m.content}));
        opened.extend(shown);
        opened.extend(rest);
        opened
    }
}

/// A model of the catalogue.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub source: EntrySource,
    pub settings: ModelSettings,
}

const KEYS: &[&str] = &[
    "source",
    "blob",
    "from",
    "template",
    "system",
    "parameters",
    "messages",
    "license",
    "keep_alive",
    "pin",
    "n_ctx",
    "kv_type",
    "adapters",
];

/// Whether a role is one that messages may have.
pub fn is_role(role: &str) -> bool {
    matches!(role, "system" | "user" | "assistant")
}

/// Why a template cannot be used, if it cannot: it must be Jinja.
///
/// # Errors
/// The reason.
pub fn check_template(source: &str) -> Result<(), String> {
    if MAX_TEXT_BYTES < source.len() {
        return Err(format!("the template is longer than {MAX_TEXT_BYTES} bytes"));
    }
    if is_go_template(source) {
        return Err(
            "the template is written in Go's language, which is not read here: write it in Jinja, as \
                    tokenizer_config.json has it, or leave it out to use the model's own"
                .to_owned(),
        );
    }
    let tokens = mlxr_text::TemplateTokens::default();
    mlxr_text::ChatTemplate::new(source, tokens).map(drop).map_err(|error| error.to_string())
}

/// Go's templates refer to fields with a dot and have keywords in double braces; Jinja's do neither.
fn is_go_template(source: &str) -> bool {
    let actions = source.split("{{").skip(1).map(|rest| rest.split("}}").next().unwrap_or_default());
    actions.map(|action| action.trim_start_matches('-').trim_end_matches('-').trim()).any(|action| {
        let first = action.split_whitespace().next().unwrap_or_default();
        let is_keyword = matches!(
            first,
            "if" | "else" | "end" | "range" | "with" | "template" | "block" | "define" | "break" | "continue"
        );
        is_keyword || action.starts_with('.') || action.starts_with('$') || action.starts_with("/*")
    })
}

impl Entry {
    /// Reads a file; relative paths in it start from `folder`.
    ///
    /// # Errors
    /// The first mistake, with its place.
    pub fn parse(text: &str, folder: &Path) -> Result<Entry, Problem> {
        let root = yaml::parse(text)?;
        let mut settings = ModelSettings::default();
        let mut source = None;
        for entry in root.entries("a model")? {
            if entry.value.is_null() && KEYS.contains(&entry.key.as_str()) {
                continue;
            }
            match entry.key.as_str() {
                "source" | "blob" => {
                    if source.is_some() {
                        return Err(Problem::at(entry.at, "a model has one source: either source or blob"));
                    }
                    source = Some(read_source(entry, folder)?);
                }
                _ => read_setting(entry, &mut settings)?,
            }
        }
        let missing = || {
            root.problem("the model has no source")
                .with_hint("write `source:` and the path of a .gguf file or of a folder")
        };
        Ok(Entry { source: source.ok_or_else(missing)?, settings })
    }

    /// The content of a file.
    pub fn to_yaml(&self) -> String {
        let mut out = String::new();
        let mut line = |key: &str, value: String| out.push_str(&format!("{key}: {value}\n"));
        match &self.source {
            EntrySource::Blob(digest) => line("blob", yaml::scalar(&digest.to_string())),
            EntrySource::Path(path) => line("source", yaml::scalar(&path.to_string_lossy())),
            EntrySource::Bundled => line("source", BUNDLED.to_owned()),
        }
        let ModelSettings { parent, template, system, parameters, messages, licenses, .. } = &self.settings;
        let ModelSettings { keep_alive, pin, n_ctx, kv_type, .. } = &self.settings;
        if let Some(parent) = parent {
            line("from", yaml::scalar(parent));
        }
        for (key, text) in [("system", system), ("template", template)] {
            if let Some(text) = text {
                line(key, yaml::block(text, 2));
            }
        }
        if let Some(keep_alive) = keep_alive {
            line("keep_alive", yaml::scalar(keep_alive.to_json().as_str().unwrap_or("forever")));
        }
        if *pin {
            line("pin", "true".to_owned());
        }
        if let Some(n_ctx) = n_ctx {
            line("n_ctx", n_ctx.to_string());
        }
        if let Some(kv_type) = kv_type {
            line("kv_type", kv_type.name().to_lowercase());
        }
        if !parameters.is_empty() {
            out.push_str("parameters:\n");
            for (name, value) in parameters.as_map() {
                let text = match value.as_array() {
                    Some(texts) => {
                        let texts = texts.iter().filter_map(|text| text.as_str());
                        format!("[{}]", texts.map(quoted).collect::<Vec<_>>().join(", "))
                    }
                    None => value.to_string(),
                };
                out.push_str(&format!("  {name}: {text}\n"));
            }
        }
        list(&mut out, "messages", messages, |message| {
            format!("role: {}\n    content: {}", message.role, yaml::block(&message.content, 6))
        });
        list(&mut out, "license", licenses, |text| yaml::block(text, 4));
        out
    }

    pub fn blob(&self) -> Option<Digest> {
        match self.source {
            EntrySource::Blob(digest) => Some(digest),
            _ => None,
        }
    }
}

/// Always in quotes, for lists on one line.
fn quoted(text: &str) -> String {
    match yaml::scalar(text) {
        plain if plain.starts_with('"') => plain,
        plain => format!("\"{plain}\""),
    }
}

fn list<T>(out: &mut String, key: &str, items: &[T], text: impl Fn(&T) -> String) {
    if !items.is_empty() {
        out.push_str(&format!("{key}:\n"));
        for item in items {
            out.push_str(&format!("  - {}\n", text(item)));
        }
    }
}

fn read<T: Setting>(key: &str, node: &Node, base: Option<&Path>) -> Result<T, Problem> {
    let text = node.text(key)?;
    T::read_one(Text { text, base })
        .map_err(|reason| node.problem(format!("{key} is {text:?}, but {reason}")))
}

fn read_source(entry: &YamlEntry, folder: &Path) -> Result<EntrySource, Problem> {
    let node = &entry.value;
    let text = node.text(&entry.key)?;
    if entry.key == "blob" {
        return Ok(EntrySource::Blob(
            text.parse().map_err(|error: super::blobs::DigestError| node.problem(error.to_string()))?,
        ));
    }
    match text {
        BUNDLED => Ok(EntrySource::Bundled),
        _ => Ok(EntrySource::Path(read("source", node, Some(folder))?)),
    }
}

fn read_setting(entry: &YamlEntry, settings: &mut ModelSettings) -> Result<(), Problem> {
    let (key, node) = (entry.key.as_str(), &entry.value);
    let text = || {
        let text = node.text(key)?;
        match text.len() > MAX_TEXT_BYTES {
            true => Err(node.problem(format!("{key} is longer than {MAX_TEXT_BYTES} bytes"))),
            false => Ok(text.to_owned()),
        }
    };
    match key {
        "from" => settings.parent = Some(text()?),
        "system" => settings.system = Some(text()?),
        "template" => {
            let source = text()?;
            check_template(&source).map_err(|reason| node.problem(reason))?;
            settings.template = Some(source);
        }
        "license" => {
            settings.licenses = node.texts(key)?.into_iter().map(|(text, _)| text.to_owned()).collect()
        }
        "keep_alive" => settings.keep_alive = Some(read(key, node, None)?),
        "pin" => settings.pin = read(key, node, None)?,
        "n_ctx" => settings.n_ctx = Some(read(key, node, None)?),
        "kv_type" => settings.kv_type = Some(read(key, node, None)?),
        "parameters" => {
            for entry in node.entries(key)? {
                for (text, at) in entry.value.texts(&entry.key)? {
                    settings.parameters.set_text(&entry.key, text).map_err(|error| {
                        let at = if error.hint.is_some() { entry.at } else { at };
                        Problem { hint: error.hint.clone(), ..Problem::at(at, error.message.clone()) }
                    })?;
                }
            }
        }
        "messages" => settings.messages = read_messages(node)?,
        "adapters" => {
            return Err(Problem::at(entry.at, "adapters are not applied yet")
                .with_hint("merge the adapter into the weights and name the result as source"));
        }
        _ => {
            let mut problem = Problem::at(entry.at, format!("there is no setting {key:?} of a model"));
            problem.hint = did_you_mean(key, KEYS.iter().copied())
                .or_else(|| Some(format!("the settings are {}", KEYS.join(", "))));
            return Err(problem);
        }
    }
    Ok(())
}

fn read_messages(node: &Node) -> Result<Vec<StoredMessage>, Problem> {
    let yaml::NodeValue::List(items) = &node.value else {
        return Err(node.problem(format!("messages must be a list, but is {}", node.kind())));
    };
    if items.len() > MAX_MESSAGES {
        return Err(node.problem(format!("there are more than {MAX_MESSAGES} messages")));
    }
    items.iter().map(read_message).collect()
}

fn read_message(item: &Node) -> Result<StoredMessage, Problem> {
    let (mut role, mut content) = (None, None);
    for entry in item.entries("a message")? {
        match entry.key.as_str() {
            "role" => {
                let text = entry.value.text("role")?;
                if !is_role(text) {
                    let message = format!("role is {text:?}, but expected system, user or assistant");
                    return Err(entry.value.problem(message));
                }
                role = Some(text.to_owned());
            }
            "content" if entry.value.is_null() => content = Some(String::new()),
            "content" => content = Some(entry.value.text("content")?.to_owned()),
            key => {
                return Err(Problem::at(
                    entry.at,
                    format!("there is no field {key:?} in a message; role and content are"),
                ));
            }
        }
    }
    match (role, content) {
        (Some(role), Some(content)) => Ok(StoredMessage { role, content }),
        _ => Err(item.problem("a message needs a role and a content")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(text: &str) -> String {
        Entry::parse(text, Path::new("/m")).unwrap_err().to_string()
    }

    fn entry() -> Entry {
        let mut parameters = Parameters::default();
        parameters.set_text("temperature", "0.5").unwrap();
        parameters.set_text("stop", "x: \"y\"\n").unwrap();
        parameters.set_text("stop", "true").unwrap();
        let message =
            |role: &str, content: &str| StoredMessage { role: role.to_owned(), content: content.to_owned() };
        Entry {
            source: EntrySource::Blob(Digest::of(b"x")),
            settings: ModelSettings {
                parent: Some("me/base:7b".to_owned()),
                template: Some("{% for m in messages %}\n  {{ m.content }}\n{% endfor %}\n\n".to_owned()),
                system: Some("  You are Mario.\n\n# really\n".to_owned()),
                parameters,
                messages: vec![
                    message("user", "Hi"),
                    message("assistant", ""),
                    message("user", "a\n - b: c\n"),
                ],
                licenses: vec!["MIT".to_owned(), "two\nlines".to_owned()],
                keep_alive: Some(KeepAlive::For(std::time::Duration::from_secs(90))),
                pin: true,
                n_ctx: Some(512),
                kv_type: Some(DType::Q8_0),
            },
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let text = entry().to_yaml();
        assert_eq!(Entry::parse(&text, Path::new("/m")).unwrap(), entry(), "{text}");
        let small = Entry { source: EntrySource::Bundled, settings: ModelSettings::default() };
        assert_eq!(small.to_yaml(), "source: bundled\n");
        assert_eq!(Entry::parse("source: bundled\n", Path::new("/m")).unwrap(), small);
        let forever = ModelSettings { keep_alive: Some(KeepAlive::Forever), ..ModelSettings::default() };
        let forever = Entry { settings: forever, ..small };
        assert_eq!(Entry::parse(&forever.to_yaml(), Path::new("/m")).unwrap(), forever);
    }

    #[test]
    fn a_model_made_from_another_says_what_it_says_itself_and_else_what_that_one_said() {
        let parent = entry().settings;
        let mut own = ModelSettings { system: Some(String::new()), ..ModelSettings::default() };
        own.parameters.set_text("temperature", "1").unwrap();
        let made = own.made_from("base", &parent);
        assert_eq!((made.parent.as_deref(), &made.system, made.pin), (Some("base"), &None, false));
        assert_eq!(
            (&made.template, &made.messages, made.n_ctx),
            (&parent.template, &parent.messages, parent.n_ctx)
        );
        let lines = made.parameters.lines();
        assert_eq!((lines[0].clone(), lines.len()), (("temperature", "1.0".to_owned()), 3));
    }

    #[test]
    fn a_conversation_goes_behind_what_the_model_brings_along() {
        let mut settings = ModelSettings::default();
        let say = |role: &str, content: &str| json!({"role": role, "content": content});
        let asked = vec![say("user", "1")];
        assert_eq!(settings.open(asked.clone()), asked);
        settings.system = Some("own".to_owned());
        settings.messages = vec![StoredMessage { role: "user".to_owned(), content: "0".to_owned() }];
        assert_eq!(settings.open(asked), [say("system", "own"), say("user", "0"), say("user", "1")]);
        let with_system = vec![say("system", "theirs"), say("user", "1")];
        assert_eq!(settings.open(with_system), [say("system", "theirs"), say("user", "0"), say("user", "1")]);
    }

    #[test]
    fn a_file_by_hand_is_read() {
        let text =
            "source: a.gguf\nsystem: Be brief.\nparameters:\n  stop: END\n  num_ctx: 64\nlicense: MIT\n";
        let entry = Entry::parse(text, Path::new("/m")).unwrap();
        assert_eq!(entry.source, EntrySource::Path("/m/a.gguf".into()));
        assert_eq!((entry.settings.n_ctx(), entry.settings.licenses.len()), (Some(64), 1));
    }

    #[test]
    fn mistakes_are_told_by_their_lines() {
        assert_eq!(
            refused("source: a\nsytem: x"),
            "2:1: there is no setting \"sytem\" of a model\nhint: did you mean \"system\"?"
        );
        assert!(refused("system: x").starts_with("1:1: the model has no source"));
        assert!(refused("source: a\nblob: sha256:0").contains("2:1: a model has one source"));
        assert!(refused("blob: x").starts_with("1:7: \"x\" is no digest"));
        assert!(refused("source: a\nadapters: [x]").starts_with("2:1: adapters are not applied yet"));
        assert!(refused("source: a\nparameters:\n  temprature: 1").starts_with("3:3: there is no parameter"));
        assert!(refused("source: a\nparameters:\n  top_k: x").starts_with("3:10: top_k is"));
        assert!(refused("source: a\nmessages:\n  - role: king\n    content: x").starts_with("3:11: role is"));
        assert!(refused("source: a\ntemplate: '{{ .System }}'").contains("Go's language"));
        assert!(refused("source: a\ntemplate: '{% for'").starts_with("2:11: "));
        assert!(refused("source: a\nkv_type: q5_0").contains("expected f32"));
        assert!(refused("- a").contains("a model must be a mapping"));
    }

    #[test]
    fn go_templates_are_told_from_jinja() {
        for go in [
            "{{ .System }}",
            "{{- if .Prompt }}x{{ end }}",
            "{{ range $i, $_ := .Messages }}",
            "{{- /* x */ -}}",
            "{{ $x }}",
        ] {
            assert!(is_go_template(go), "{go}");
        }
        for jinja in [
            "{{ messages[0].content }}",
            "{% if x %}{{ bos_token }}{% endif %}",
            "{{- ' .x' -}}",
            "plain",
            "{{ ('a' ~ b) }}",
            "{{ if_x }}",
        ] {
            assert!(!is_go_template(jinja), "{jinja}");
        }
    }

    proptest! {
        #[test]
        fn any_texts_survive(system in any::<String>(), content in "[ -~\n#:-]{0,40}", stop in "[ -~\n]{1,10}") {
            let mut parameters = Parameters::default();
            parameters.set_text("stop", &stop).unwrap();
            let messages = vec![StoredMessage { role: "user".to_owned(), content: content.clone() }; 2];
            let settings = ModelSettings {
                system: Some(system).filter(|text| !text.is_empty()),
                parameters,
                messages,
                licenses: Some(content).filter(|text| !text.is_empty()).into_iter().collect(),
                ..ModelSettings::default()
            };
            let entry = Entry { source: EntrySource::Bundled, settings };
            let text = entry.to_yaml();
            let read = Entry::parse(&text, Path::new("/m")).map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
            prop_assert_eq!(read, entry, "{}", text);
        }
    }
}
