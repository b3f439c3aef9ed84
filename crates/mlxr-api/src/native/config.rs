//! `GET` and `PATCH /mlxr/v1/config`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::body::parsed;

/// Every setting with its value and where that came from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::ConfigReport)]
pub struct ConfigReport {
    /// The file that was read, if there is one.
    pub file: Option<String>,
    pub settings: Vec<SettingReport>,
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::SettingReport)]
pub struct SettingReport {
    /// `section.name`.
    pub key: String,
    /// Null where the server decides by itself.
    pub value: Value,
    /// `default`, a place in a file, an environment variable or a flag.
    pub origin: String,
    /// What it means.
    pub about: String,
}

/// Changes settings in the file that the server reads when it starts; all of them or none.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = native::ConfigChange)]
pub struct ConfigChange {
    /// Values by `section.name`: texts, numbers, booleans, or lists of them.
    pub settings: Map<String, Value>,
    /// Refuse fields that have no effect.
    pub strict: Option<bool>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// Settings have been changed, from the next start of the server on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::ConfigChanged)]
pub struct ConfigChanged {
    /// The file that was written.
    pub file: String,
    /// Among them each change that a flag or an environment variable wins over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

parsed!(ConfigChange);
