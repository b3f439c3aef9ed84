//! `GET /mlxr/v1/config`.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

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
