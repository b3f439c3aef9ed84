//! Where values come from, and which one wins.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use mlxr_api::native::config::{ConfigReport, SettingReport};

use super::paths;
use super::problem::{ConfigError, Place, Problem, did_you_mean};
use super::settings::{KEYS, Key, ServerConfig};
use super::value::{Setting, Text};
use super::yaml::{self, Node};
use crate::catalogue::Catalogue;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    File { path: PathBuf, line: usize },
    Variable(String),
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Variable(name) => f.write_str(name),
            Origin::Flag(long) => write!(f, "--{long}"),
        }
    }
}

/// What a flag says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlagValue {
    /// The setting.
    pub key: &'static str,
    pub long: &'static str,
    pub texts: Vec<String>,
}

/// All sources of settings.
pub struct Layers<'a> {
    /// `--config`; a file that is named must be there.
    pub file: Option<PathBuf>,
    pub env: &'a dyn Fn(&str) -> Option<OsString>,
    /// The names of all variables, to find misspelt ones.
    pub variables: Vec<String>,
    pub flags: Vec<FlagValue>,
}

/// A setting with the value that won.
#[derive(Clone, Debug)]
pub struct Resolved {
    pub key: &'static Key,
    pub texts: Vec<String>,
    pub origin: Origin,
    places: Vec<Place>,
}

impl Resolved {
    fn read<T>(&self, read: impl FnOnce(&[Text<'_>]) -> Result<T, String>) -> Result<T, Problem> {
        let base = match &self.origin {
            Origin::File { path, .. } => path.parent(),
            _ => None,
        };
        let texts: Vec<Text<'_>> = self.texts.iter().map(|text| Text { text, base }).collect();
        read(&texts).map_err(|reason| {
            let shown = self.texts.join(", ");
            let message = format!("{} is {shown:?}, but {reason}", self.key.name);
            match &self.origin {
                Origin::File { path, .. } => {
                    Problem { at: self.places.first().copied(), ..Problem::new(message) }.of_file(path)
                }
                Origin::Default => Problem::new(message),
                origin => Problem { source: Some(origin.to_string()), ..Problem::new(message) },
            }
        })
    }

    /// The value as it would stand in a file; several are separated by commas.
    pub fn text(&self) -> String {
        self.texts.join(", ")
    }
}

/// All settings, read.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: ServerConfig,
    /// In the order of [`KEYS`].
    pub settings: Vec<Resolved>,
    /// Where `server.yaml` is or would be.
    pub path: Option<PathBuf>,
    pub has_file: bool,
    /// What looks like a mistake but may be somebody else's.
    pub warnings: Vec<String>,
    default_data: Option<PathBuf>,
}

impl Loaded {
    /// For clients and `--json`.
    pub fn report(&self) -> ConfigReport {
        let settings = self.settings.iter().map(|setting| SettingReport {
            key: setting.key.name.to_owned(),
            // It has been read once already.
            value: setting.read(setting.key.check).unwrap_or_default(),
            origin: setting.origin.to_string(),
            about: setting.key.about.to_owned(),
        });
        let file = self.path.as_ref().filter(|_| self.has_file).map(|path| path.display().to_string());
        ConfigReport { file, settings: settings.collect() }
    }

    /// The folder of models and blobs; there is none when nobody has a home.
    pub fn data_folder(&self) -> Option<PathBuf> {
        self.config.data_dir.clone().or_else(|| self.default_data.clone())
    }

    /// The models of that folder.
    pub fn catalogue(&self) -> Option<Catalogue> {
        Some(Catalogue::open(&self.data_folder()?))
    }

    pub fn get(&self, name: &str) -> Option<&Resolved> {
        self.settings.iter().find(|setting| setting.key.name == name)
    }
}

impl Layers<'_> {
    /// Where `server.yaml` is or would be.
    pub fn path(&self) -> Option<PathBuf> {
        let named = self.file.clone();
        let variable = || (self.env)("MLXR_CONFIG").filter(|value| !value.is_empty()).map(PathBuf::from);
        named.or_else(variable).or_else(|| Some(paths::config_folder(self.env)?.join("server.yaml")))
    }

    fn is_named(&self) -> bool {
        self.file.is_some() || (self.env)("MLXR_CONFIG").is_some_and(|value| !value.is_empty())
    }

    /// Reads and merges everything.
    ///
    /// # Errors
    /// All mistakes of the file, or the first one elsewhere.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        let path = self.path();
        let text = match &path {
            Some(path) => read_file(path, self.is_named())?,
            None => None,
        };
        let has_file = text.is_some();
        let mut settings: Vec<Resolved> = KEYS.iter().map(default).collect();
        if let (Some(path), Some(text)) = (&path, text) {
            let found = read_settings(&text, path)?;
            found.into_iter().for_each(|found| replace(&mut settings, found));
        }
        for key in KEYS {
            let variable = key.variable();
            let Some(value) = (self.env)(&variable).filter(|value| !value.is_empty()) else { continue };
            let text = value.into_string().map_err(|_| {
                let problem = Problem::new("the value is no UTF-8");
                ConfigError::Problems(vec![Problem { source: Some(variable.clone()), ..problem }])
            })?;
            let texts = match key.is_list {
                true => text
                    .split(',')
                    .map(|item| item.trim().to_owned())
                    .filter(|item| !item.is_empty())
                    .collect(),
                false => vec![text],
            };
            replace(
                &mut settings,
                Resolved { key, texts, origin: Origin::Variable(variable), places: Vec::new() },
            );
        }
        for flag in &self.flags {
            let Ok(key) = super::key(flag.key) else { continue };
            let origin = Origin::Flag(flag.long.to_owned());
            replace(&mut settings, Resolved { key, texts: flag.texts.clone(), origin, places: Vec::new() });
        }
        let config = ServerConfig::read(&settings).map_err(|problem| ConfigError::Problems(vec![problem]))?;
        let default_data = paths::data_folder(self.env);
        Ok(Loaded { config, settings, path, has_file, warnings: self.unknown_variables(), default_data })
    }

    /// Variables that begin like ours with a section's name but are none.
    fn unknown_variables(&self) -> Vec<String> {
        let known: Vec<String> = KEYS.iter().map(Key::variable).collect();
        let is_ours = |name: &str| {
            KEYS.iter().any(|key| name.starts_with(&format!("MLXR_{}_", key.section().to_uppercase())))
        };
        let unknown = self.variables.iter().filter(|name| is_ours(name) && !known.contains(name));
        let warn = |name: &String| {
            let hint = did_you_mean_variable(name, &known);
            format!("the environment variable {name} is no setting{hint}")
        };
        unknown.map(warn).collect()
    }
}

/// Reads a setting.
///
/// # Errors
/// Its value makes no sense.
pub(super) fn value<T: Setting>(settings: &[Resolved], name: &str) -> Result<T, Problem> {
    let setting = settings.iter().find(|setting| setting.key.name == name);
    setting.ok_or_else(|| Problem::new(format!("{name} has no value")))?.read(T::read)
}

fn did_you_mean_variable(name: &str, known: &[String]) -> String {
    let lower: Vec<String> = known.iter().map(|known| known.to_lowercase()).collect();
    let found = super::problem::closest(name, lower.iter().map(String::as_str));
    found.map_or_else(String::new, |found| format!("; did you mean {}?", found.to_uppercase()))
}

fn default(key: &'static Key) -> Resolved {
    let texts = if key.default.is_empty() { Vec::new() } else { vec![key.default.to_owned()] };
    Resolved { key, texts, origin: Origin::Default, places: Vec::new() }
}

fn replace(settings: &mut [Resolved], found: Resolved) {
    if let Some(setting) = settings.iter_mut().find(|setting| setting.key.name == found.key.name) {
        *setting = found;
    }
}

/// The text of a file; `None` when it is not there and need not be.
pub(crate) fn read_file(path: &Path, must_exist: bool) -> Result<Option<String>, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if metadata.len() > yaml::MAX_FILE_BYTES {
        return Err(ConfigError::TooLarge { path: path.to_owned(), max_bytes: yaml::MAX_FILE_BYTES });
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    let text = String::from_utf8(bytes)
        .map_err(|error| ConfigError::NotText { path: path.to_owned(), source: error.utf8_error() })?;
    Ok(Some(text))
}

/// Reads the settings of a file, all mistakes at once.
///
/// # Errors
/// [`ConfigError::Problems`].
pub(super) fn read_settings(text: &str, path: &Path) -> Result<Vec<Resolved>, ConfigError> {
    let mut problems = Vec::new();
    let mut found = Vec::new();
    match yaml::parse(text).and_then(|root| Ok(root.entries("the file")?.to_vec())) {
        Ok(sections) => {
            for section in sections {
                read_section(&section, path, &mut found, &mut problems);
            }
        }
        Err(problem) => problems.push(problem),
    }
    // Values are checked here so that all mistakes are told at once.
    for setting in &found {
        if let Err(problem) = setting.read(setting.key.check) {
            problems.push(problem);
        }
    }
    match problems.is_empty() {
        true => Ok(found),
        false => {
            problems.sort_by_key(|problem| problem.at.map(|at| (at.line, at.column)));
            Err(ConfigError::Problems(problems.into_iter().map(|problem| problem.of_file(path)).collect()))
        }
    }
}

fn read_section(section: &yaml::Entry, path: &Path, found: &mut Vec<Resolved>, problems: &mut Vec<Problem>) {
    let name = section.key.as_str();
    if !KEYS.iter().any(|key| key.section() == name) {
        let mut known: Vec<&str> = KEYS.iter().map(Key::section).collect();
        known.dedup();
        let mut problem = Problem::at(section.at, format!("there is no section {name:?}"));
        let owner = KEYS.iter().find(|key| key.short_name() == name).map(|key| key.section());
        problem.hint = did_you_mean(name, known.clone())
            .or_else(|| {
                owner.map(|section| format!("the setting {name:?} belongs to the section {section:?}"))
            })
            .or_else(|| Some(format!("the sections are {}", known.join(", "))));
        problems.push(problem);
        return;
    }
    let entries = match section.value.entries(name) {
        Ok(entries) => entries,
        Err(problem) => return problems.push(problem),
    };
    for entry in entries {
        let Some(key) = KEYS.iter().find(|key| key.section() == name && key.short_name() == entry.key) else {
            let known = || KEYS.iter().filter(|key| key.section() == name).map(Key::short_name);
            let elsewhere = KEYS.iter().find(|key| key.short_name() == entry.key).map(|key| key.section());
            let mut problem = Problem::at(entry.at, format!("there is no setting {:?} in {name}", entry.key));
            problem.hint = did_you_mean(&entry.key, known())
                .or_else(|| elsewhere.map(|section| format!("it belongs to the section {section:?}")))
                .or_else(|| Some(format!("the settings are {}", known().collect::<Vec<_>>().join(", "))));
            problems.push(problem);
            continue;
        };
        // Nothing leaves the default.
        if entry.value.is_null() {
            continue;
        }
        match texts(key, &entry.value) {
            Ok(values) => {
                let (texts, places) = values.into_iter().unzip();
                let origin = Origin::File { path: path.to_owned(), line: entry.at.line };
                found.push(Resolved { key, texts, origin, places });
            }
            Err(problem) => problems.push(problem),
        }
    }
}

fn texts(key: &Key, value: &Node) -> Result<Vec<(String, Place)>, Problem> {
    if key.is_list {
        let texts = value.texts(key.name)?;
        return Ok(texts.into_iter().map(|(text, at)| (text.to_owned(), at)).collect());
    }
    Ok(vec![(value.text(key.name)?.to_owned(), value.at)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, variables: &[(&str, &str)], flags: Vec<FlagValue>) -> Result<Loaded, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.yaml");
        std::fs::write(&path, text).unwrap();
        let find = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        };
        let variables = variables.iter().map(|(name, _)| (*name).to_owned()).collect();
        Layers { file: Some(path), env: &find, variables, flags }.load()
    }

    fn problems(text: &str) -> String {
        let error = load(text, &[], Vec::new()).unwrap_err().to_string();
        error
            .lines()
            .map(|line| line.rsplit_once("server.yaml:").map_or(line, |(_, rest)| rest))
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn a_flag_wins_over_a_variable_over_the_file_over_the_default() {
        let text = "listen:\n  port: 1\nengine:\n  max_seqs: 2\n  n_ctx: 3\n";
        let flags = vec![FlagValue { key: "engine.n_ctx", long: "ctx", texts: vec!["5".to_owned()] }];
        let variables = [("MLXR_ENGINE_MAX_SEQS", "4"), ("MLXR_ENGINE_N_CTX", "4")];
        let loaded = load(text, &variables, flags).unwrap();
        let config = &loaded.config;
        assert_eq!((config.port, config.max_seqs, config.n_ctx, config.max_waiting), (1, 4, Some(5), 256));
        let origin = |name: &str| loaded.get(name).unwrap().origin.to_string();
        assert!(origin("listen.port").ends_with("server.yaml:2"), "{}", origin("listen.port"));
        assert_eq!(origin("engine.max_seqs"), "MLXR_ENGINE_MAX_SEQS");
        assert_eq!(origin("engine.n_ctx"), "--ctx");
        assert_eq!(origin("engine.max_waiting"), "default");
        assert!(loaded.warnings.is_empty());
    }

    #[test]
    fn all_mistakes_are_told_with_their_lines() {
        let text = "listen:\n  prot: 1\n  host: here\nmodles: {}\nlimits:\n  max_seqs: 4\n  grace: [1, 2]\n";
        let expected = "\
2:3: there is no setting \"prot\" in listen
hint: did you mean \"port\"?
3:9: listen.host is \"here\", but expected an IP address such as 127.0.0.1 or ::1
4:1: there is no section \"modles\"
hint: did you mean \"models\"?
6:3: there is no setting \"max_seqs\" in limits
hint: it belongs to the section \"engine\"
7:10: limits.grace must be one value, but is a list";
        assert_eq!(problems(text), expected);
        assert_eq!(problems("listen: 3"), "1:9: listen must be a mapping, but is a value");
        assert!(problems("[]").contains("the file must be a mapping"));
    }

    #[test]
    fn lists_are_lists_in_files_and_have_commas_in_variables() {
        let loaded = load("models:\n  preload: [a, b]\n  pin: c\n", &[], Vec::new()).unwrap();
        assert_eq!(
            (loaded.config.preload, loaded.config.pin),
            (vec!["a".to_owned(), "b".to_owned()], vec!["c".to_owned()])
        );
        let loaded =
            load("models:\n  preload: [a]\n", &[("MLXR_MODELS_PRELOAD", "x, y")], Vec::new()).unwrap();
        assert_eq!(loaded.config.preload, ["x", "y"]);
    }

    #[test]
    fn variables_are_checked_and_misspelt_ones_told() {
        let error = load("", &[("MLXR_LISTEN_PORT", "many")], Vec::new()).unwrap_err().to_string();
        assert_eq!(error, "MLXR_LISTEN_PORT: listen.port is \"many\", but expected a number from 0 to 65535");
        let loaded = load("", &[("MLXR_LISTEN_PROT", "1"), ("MLXR_TESTDATA", "x")], Vec::new()).unwrap();
        let expected =
            "the environment variable MLXR_LISTEN_PROT is no setting; did you mean MLXR_LISTEN_PORT?";
        assert_eq!(loaded.warnings, [expected]);
    }

    #[test]
    fn a_file_that_is_named_must_be_there() {
        let layers = Layers {
            file: Some("/nowhere.yaml".into()),
            env: &|_| None,
            variables: Vec::new(),
            flags: Vec::new(),
        };
        assert!(layers.load().unwrap_err().to_string().starts_with("cannot read /nowhere.yaml"));
        let layers = Layers { file: None, env: &|_| None, variables: Vec::new(), flags: Vec::new() };
        let loaded = layers.load().unwrap();
        assert!(!loaded.has_file && loaded.path.is_none());
        assert_eq!(loaded.report().settings.len(), KEYS.len());
    }
}
