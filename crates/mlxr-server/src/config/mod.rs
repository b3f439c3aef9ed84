//! Settings: `server.yaml`, then environment variables, then flags, each winning over the one before.
//!
//! All layers are merged once, at the start, into a [`ServerConfig`] without options; [`Loaded`] also remembers where
//! each value came from. An unknown key or a value that makes no sense is an error with its line, never ignored.

mod edit;
mod layers;
mod paths;
pub(crate) mod problem;
mod settings;
pub(crate) mod value;
pub(crate) mod yaml;

pub use edit::set_in_file;
pub(crate) use layers::read_file;
pub use layers::{FlagValue, Layers, Loaded, Origin, Resolved};
pub use paths::{config_folder, data_folder};
pub use problem::{ConfigError, Place, Problem, did_you_mean};
pub use settings::{Flag, KEYS, Key, ServerConfig, Sets};
pub use value::{Bytes, Device, GpuLayers, LogFormat, NamedPath, Setting, Socket, Span, Text};

/// A setting by its name.
///
/// # Errors
/// [`ConfigError::NoSuchKey`].
pub fn key(name: &str) -> Result<&'static Key, ConfigError> {
    KEYS.iter().find(|key| key.name == name).ok_or_else(|| {
        // A name without its section, or a misspelt one.
        let by_short_name = KEYS.iter().find(|key| key.short_name() == name).map(|key| key.name);
        let hint = match by_short_name {
            Some(known) => Some(format!("did you mean {known:?}?")),
            None => did_you_mean(name, KEYS.iter().map(|key| key.name)),
        };
        ConfigError::NoSuchKey { key: name.to_owned(), hint }
    })
}
