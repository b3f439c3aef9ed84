//! Ollama's Modelfile: one instruction per line, texts in quotes or between triple quotes.

use super::entry::{ModelSettings, StoredMessage, check_template, is_role};
use crate::config::{Place, Problem, did_you_mean};

/// Longer files are refused.
pub const MAX_BYTES: usize = 4 << 20;

/// What a Modelfile says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Modelfile {
    /// A model's name, or a path.
    pub from: String,
    pub settings: ModelSettings,
}

const INSTRUCTIONS: &[&str] =
    &["FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "MESSAGE", "LICENSE", "ADAPTER", "REQUIRES"];

impl Modelfile {
    /// # Errors
    /// The first mistake, with its place.
    pub fn parse(text: &str) -> Result<Modelfile, Problem> {
        if text.len() > MAX_BYTES {
            return Err(Problem::new(format!("a Modelfile has at most {MAX_BYTES} bytes")));
        }
        let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n");
        let mut reader = Reader { rest: &text, line: 1 };
        let mut file = Modelfile::default();
        let mut from = None;
        while let Some((instruction, at)) = reader.instruction() {
            let problem = |message: String| Problem::at(at, message);
            let name = instruction.to_uppercase();
            match name.as_str() {
                "FROM" => {
                    if from.is_some() {
                        return Err(problem("FROM is said twice; one file or model is read".to_owned()));
                    }
                    from = Some(reader.text(&name, at)?);
                }
                "PARAMETER" => {
                    let parameter = reader.word();
                    if parameter.is_empty() {
                        return Err(problem("PARAMETER needs a name and a value".to_owned()));
                    }
                    let value = reader.text(&name, at)?;
                    file.settings
                        .parameters
                        .set_text(&parameter.to_lowercase(), &value)
                        .map_err(|error| Problem { hint: error.hint.clone(), ..problem(error.message) })?;
                }
                "TEMPLATE" => {
                    let source = reader.text(&name, at)?;
                    check_template(&source).map_err(problem)?;
                    file.settings.template = Some(source);
                }
                "SYSTEM" => file.settings.system = Some(reader.text(&name, at)?),
                "LICENSE" => {
                    let text = reader.text(&name, at)?;
                    file.settings.licenses.push(text);
                }
                "MESSAGE" => {
                    let role = reader.word();
                    if !is_role(&role) {
                        return Err(problem(format!(
                            "MESSAGE {role:?}: the role must be system, user or assistant"
                        )));
                    }
                    let content = reader.text(&name, at)?;
                    file.settings.messages.push(StoredMessage { role, content });
                }
                "ADAPTER" => {
                    return Err(problem("ADAPTER: adapters are not applied yet".to_owned())
                        .with_hint("merge the adapter into the weights and name the result after FROM"));
                }
                // What an Ollama must be at least says nothing about this program.
                "REQUIRES" => drop(reader.text(&name, at)?),
                _ => {
                    let mut unknown = problem(format!("there is no instruction {instruction:?}"));
                    unknown.hint = did_you_mean_instruction(&instruction);
                    return Err(unknown);
                }
            }
            reader.end_of_line()?;
        }
        let missing = || {
            Problem::new("the Modelfile has no FROM")
                .with_hint("begin it with FROM and a model's name or path")
        };
        Ok(Modelfile { from: from.ok_or_else(missing)?, ..file })
    }

    /// The file that would make this model.
    pub fn write(from: &str, settings: &ModelSettings, template: Option<&str>) -> String {
        let mut out = format!("FROM {from}\n");
        if let Some(template) = template {
            out.push_str(&format!("TEMPLATE {}\n", quoted(template)));
        }
        if let Some(system) = &settings.system {
            out.push_str(&format!("SYSTEM {}\n", quoted(system)));
        }
        for (name, value) in settings.parameters.lines() {
            let value = if name == "stop" { quoted(&value) } else { value };
            out.push_str(&format!("PARAMETER {name} {value}\n"));
        }
        for StoredMessage { role, content } in &settings.messages {
            out.push_str(&format!("MESSAGE {role} {}\n", quoted(content)));
        }
        for license in &settings.licenses {
            out.push_str(&format!("LICENSE {}\n", quoted(license)));
        }
        out
    }
}

fn did_you_mean_instruction(word: &str) -> Option<String> {
    let lower: Vec<String> = INSTRUCTIONS.iter().map(|known| known.to_lowercase()).collect();
    let found = did_you_mean(word, lower.iter().map(String::as_str));
    found
        .map(|hint| hint.to_uppercase().replace("DID YOU MEAN", "did you mean"))
        .or_else(|| Some(format!("the instructions are {}", INSTRUCTIONS.join(", "))))
}

/// In quotes as far as needed.
fn quoted(text: &str) -> String {
    let is_plain = !text.is_empty() && text.trim() == text && !text.contains(['\n', '"']);
    match (is_plain, text.contains("\"\"\"") || text.ends_with('"')) {
        (true, _) if !text.contains(char::is_whitespace) => text.to_owned(),
        (true, _) => format!("\"{text}\""),
        (false, false) => format!("\"\"\"{text}\"\"\""),
        // There is no escape in the format; the end is the last quote of the line then.
        (false, true) => format!("\"{text}\""),
    }
}

struct Reader<'a> {
    rest: &'a str,
    line: usize,
}

impl Reader<'_> {
    /// The next instruction; empty lines and comments are passed.
    fn instruction(&mut self) -> Option<(String, Place)> {
        loop {
            let line_end = self.rest.find('\n').unwrap_or(self.rest.len());
            let line = self.rest[..line_end].trim_start();
            if !line.trim().is_empty() && !line.starts_with('#') {
                let column = self.rest[..line_end].chars().take_while(|c| c.is_whitespace()).count() + 1;
                let at = Place { line: self.line, column };
                return Some((self.word(), at));
            }
            if line_end == self.rest.len() {
                return None;
            }
            self.take(line_end + 1);
        }
    }

    fn take(&mut self, n_bytes: usize) {
        self.line += self.rest[..n_bytes].matches('\n').count();
        self.rest = &self.rest[n_bytes..];
    }

    fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
    }

    /// The next word of the line; empty at its end.
    fn word(&mut self) -> String {
        self.skip_blanks();
        let end = self.rest.find(char::is_whitespace).unwrap_or(self.rest.len());
        let word = self.rest[..end].to_owned();
        self.take(end);
        word
    }

    /// A text: between triple quotes over several lines, in quotes or bare to the end of the line.
    fn text(&mut self, what: &str, at: Place) -> Result<String, Problem> {
        self.skip_blanks();
        if let Some(inside) = self.rest.strip_prefix("\"\"\"") {
            let Some(end) = inside.find("\"\"\"") else {
                return Err(Problem::at(at, format!("the text of {what} has no closing \"\"\"")));
            };
            let text = inside[..end].to_owned();
            self.take(end + 6);
            return Ok(text);
        }
        let end = self.rest.find('\n').unwrap_or(self.rest.len());
        let line = self.rest[..end].trim();
        let text = match line.strip_prefix('"') {
            Some(inside) => match inside.strip_suffix('"') {
                Some(text) => text,
                None => return Err(Problem::at(at, format!("the text of {what} has no closing quote"))),
            },
            None => line,
        };
        if text.is_empty() && !line.starts_with('"') {
            return Err(Problem::at(at, format!("{what} needs a value")));
        }
        let text = text.to_owned();
        self.take(end);
        Ok(text)
    }

    fn end_of_line(&mut self) -> Result<(), Problem> {
        let end = self.rest.find('\n').unwrap_or(self.rest.len());
        if !self.rest[..end].trim().is_empty() {
            let message = format!("nothing may follow the closing quotes: {:?}", self.rest[..end].trim());
            return Err(Problem::at(Place { line: self.line, column: 1 }, message));
        }
        self.take((end + 1).min(self.rest.len()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(text: &str) -> String {
        Modelfile::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn instructions_are_read() {
        let text = "# A plumber.\r\nfrom llama3\n\nPARAMETER temperature 0.5\nPARAMETER stop \"<|end|> \"\nPARAMETER stop END\n\
            SYSTEM \"\"\"You are Mario.\n# Really.\n\"\"\"\nTEMPLATE \"{{ messages[0].content }}\"\n\
            MESSAGE user Hi there\nMESSAGE assistant \"Mamma mia!\"\nLICENSE \"\"\"MIT\"\"\"\nREQUIRES 0.5.0\n";
        let file = Modelfile::parse(text).unwrap();
        assert_eq!(file.from, "llama3");
        let settings = file.settings;
        assert_eq!(settings.system.as_deref(), Some("You are Mario.\n# Really.\n"));
        assert_eq!(settings.template.as_deref(), Some("{{ messages[0].content }}"));
        let expected = serde_json::json!({"temperature": 0.5, "stop": ["<|end|> ", "END"]});
        assert_eq!(settings.parameters.as_map(), expected.as_object().unwrap());
        assert_eq!(
            settings.messages[1],
            StoredMessage { role: "assistant".to_owned(), content: "Mamma mia!".to_owned() }
        );
        assert_eq!(settings.licenses, ["MIT"]);
        assert_eq!(Modelfile::parse("FROM ./my model.gguf").unwrap().from, "./my model.gguf");
    }

    #[test]
    fn mistakes_are_told_by_their_lines() {
        assert!(refused("SYSTEM x").contains("no FROM"));
        assert!(refused("FROM a\nFROM b").starts_with("2:1: FROM is said twice"));
        assert_eq!(
            refused("FROM a\n\n  PARAMTER x 1"),
            "3:3: there is no instruction \"PARAMTER\"\nhint: did you mean \"PARAMETER\"?"
        );
        assert!(refused("FROM a\nPARAMETER temprature 1").contains("did you mean \"temperature\"?"));
        assert!(refused("FROM a\nPARAMETER").contains("2:1: PARAMETER needs a name"));
        assert!(refused("FROM").contains("1:1: FROM needs a value"));
        assert!(refused("FROM a\nSYSTEM \"\"\"x").contains("no closing"));
        assert!(refused("FROM a\nSYSTEM \"x").contains("no closing quote"));
        assert!(refused("FROM a\nSYSTEM \"\"\"x\ny\"\"\" z").starts_with("3:1: nothing may follow"));
        assert!(refused("FROM a\nADAPTER x").contains("adapters are not applied yet"));
        assert!(refused("FROM a\nMESSAGE king x").contains("the role must be"));
        assert!(refused("FROM a\nTEMPLATE {{ .System }}").contains("Go's language"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in any::<String>(), lines in "((FROM|SYSTEM|PARAMETER stop|MESSAGE user|x)[ -~]{0,9}\n?\"{0,4}){0,6}") {
            let _ = Modelfile::parse(&text);
            let _ = Modelfile::parse(&lines);
        }

        #[test]
        fn what_is_written_is_read_back(system in "[a-z \n#']{1,20}", stop in "[a-z<>|]{1,8}") {
            let mut settings = ModelSettings { system: Some(system), ..ModelSettings::default() };
            settings.parameters.set_text("stop", &stop).unwrap();
            settings.template = Some("{{ messages }}\n".to_owned());
            let text = Modelfile::write("a", &settings, settings.template.as_deref());
            let read = Modelfile::parse(&text).map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
            prop_assert_eq!(read, Modelfile { from: "a".to_owned(), settings }, "{}", text);
        }
    }
}
