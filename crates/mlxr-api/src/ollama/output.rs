//! What is asked of the answer: its form, and whether the model thinks first.

use std::fmt;

use serde::de::{self, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::schema::{self, schema_of};

/// `format`.
#[derive(Clone, Debug, PartialEq)]
pub enum Format {
    /// `""`: any text.
    Text,
    /// `"json"`: any JSON.
    Json,
    /// JSON of a schema.
    Schema(Map<String, Value>),
}

schema_of!(Format, "ollama.Format", schema::any_of([schema::one_of_texts(&["", "json"]), schema::map(None)]));

impl<'de> Deserialize<'de> for Format {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyFormat;

        impl<'de> Visitor<'de> for AnyFormat {
            type Value = Format;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"json\" or a JSON schema")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Format, E> {
                match text {
                    "" => Ok(Format::Text),
                    "json" => Ok(Format::Json),
                    other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Format, A::Error> {
                Map::deserialize(MapAccessDeserializer::new(map)).map(Format::Schema)
            }
        }

        deserializer.deserialize_any(AnyFormat)
    }
}

/// `think`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Think {
    Whether(bool),
    /// `low`, `medium` or `high`.
    Effort(String),
}

schema_of!(
    Think,
    "ollama.Think",
    schema::any_of([schema::boolean(), schema::one_of_texts(&["low", "medium", "high"])])
);

impl<'de> Deserialize<'de> for Think {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyThink;

        impl Visitor<'_> for AnyThink {
            type Value = Think;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a boolean, \"low\", \"medium\" or \"high\"")
            }

            fn visit_bool<E: de::Error>(self, is_wanted: bool) -> Result<Think, E> {
                Ok(Think::Whether(is_wanted))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Think, E> {
                match text {
                    "low" | "medium" | "high" => Ok(Think::Effort(text.to_owned())),
                    other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
                }
            }
        }

        deserializer.deserialize_any(AnyThink)
    }
}
