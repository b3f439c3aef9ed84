//! Changes of settings.

use mlxr_api::native::config::{ConfigChange, ConfigChanged, ConfigReport};
use serde_json::Value;

use super::unknown_fields;
use crate::ServeError;
use crate::config::{ConfigError, set_in_file};
use crate::notices::Notices;

/// Writes the settings to the file, for the next start of the server.
///
/// # Errors
/// [`ServeError`] names the setting that cannot be changed, and why.
pub fn change(
    wire: &ConfigChange,
    now: &ConfigReport,
    path: Option<&std::path::Path>,
    strict: bool,
) -> Result<(ConfigChanged, Notices), ServeError> {
    let notices = unknown_fields(&wire.unknown, strict || wire.strict == Some(true))?;
    if wire.settings.is_empty() {
        return Err(ServeError::invalid("settings", "settings is empty, but must name one or more settings"));
    }
    let changes = wire.settings.iter().map(|(name, value)| Ok((name.clone(), texts(name, value)?)));
    let changes = changes.collect::<Result<Vec<_>, ServeError>>()?;
    let path = path.ok_or_else(|| refusal(ConfigError::NoPlace))?;
    set_in_file(path, &changes).map_err(refusal)?;
    let mut warnings = notices.warnings();
    for (name, _) in &changes {
        tracing::info!(setting = name, file = %path.display(), "setting changed by a client");
        let found = now.settings.iter().find(|setting| setting.key == *name);
        let winner = found.map(|setting| &setting.origin).filter(|origin| wins_over_the_file(origin));
        if let Some(winner) = winner {
            warnings.push(format!("{name} comes from {winner}, which wins over the file"));
        }
    }
    Ok((ConfigChanged { file: path.display().to_string(), warnings }, notices))
}

fn wins_over_the_file(origin: &str) -> bool {
    origin.starts_with("--") || origin.starts_with("MLXR_")
}

/// A value as it would stand in the file, an item of a list each.
fn texts(name: &str, value: &Value) -> Result<Vec<String>, ServeError> {
    let scalar = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => {
            let reason = format!("{name} must be a text, a number, a boolean or a list of them");
            Err(ServeError::invalid(format!("settings.{name}"), reason))
        }
    };
    match value {
        Value::Array(items) => items.iter().map(scalar).collect(),
        value => Ok(vec![scalar(value)?]),
    }
}

fn refusal(error: ConfigError) -> ServeError {
    match error {
        ConfigError::Problems(_)
        | ConfigError::NoSuchKey { .. }
        | ConfigError::Edit { .. }
        | ConfigError::NoPlace => ServeError::invalid("settings", error.to_string()),
        ConfigError::Read { .. }
        | ConfigError::TooLarge { .. }
        | ConfigError::NotText { .. }
        | ConfigError::Write { .. } => ServeError::internal(error),
    }
}
