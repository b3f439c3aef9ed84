//! Typed reading of config.json, which remembers what was read.
//!
//! Invariant: a field whose meaning is known but which the family did not read must hold its neutral value, else
//! loading fails; nothing that changes the arithmetic is dropped in silence.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::ModelError;
use crate::rope::RopeFactors;

/// Fields that change what a model computes, with the value that changes nothing.
/// Missing and `null` are always neutral.
const MEANINGFUL: &[(&str, Neutral)] = &[
    ("alibi", Neutral::Flag(false)),
    ("attention_bias", Neutral::Flag(false)),
    ("attention_multiplier", Neutral::Number(1.0)),
    ("attn_logit_softcapping", Neutral::Null),
    ("clip_qkv", Neutral::Null),
    ("embedding_multiplier", Neutral::Number(1.0)),
    ("final_logit_softcapping", Neutral::Null),
    ("layer_types", Neutral::Null),
    ("lm_head_bias", Neutral::Flag(false)),
    ("logit_scale", Neutral::Number(1.0)),
    ("logits_scaling", Neutral::Number(1.0)),
    ("mlp_bias", Neutral::Flag(false)),
    ("no_rope_layers", Neutral::Null),
    ("num_experts", Neutral::Number(0.0)),
    ("num_local_experts", Neutral::Number(0.0)),
    ("partial_rotary_factor", Neutral::Number(1.0)),
    ("qk_layernorm", Neutral::Flag(false)),
    ("query_pre_attn_scalar", Neutral::Null),
    ("residual_multiplier", Neutral::Number(1.0)),
    ("rope_interleaved", Neutral::Flag(false)),
    ("rope_local_base_freq", Neutral::Null),
    ("rope_parameters", Neutral::Null),
    ("rope_scaling", Neutral::Null),
    ("sliding_window", Neutral::Null),
    ("use_bidirectional_attention", Neutral::Flag(false)),
    ("use_mrope", Neutral::Flag(false)),
    ("use_parallel_residual", Neutral::Flag(false)),
    ("use_qk_norm", Neutral::Flag(false)),
    ("use_sliding_window", Neutral::Flag(false)),
];

#[derive(Clone, Copy)]
enum Neutral {
    Null,
    Flag(bool),
    Number(f64),
}

impl Neutral {
    fn is(self, value: &Value) -> bool {
        match self {
            Neutral::Null => value.is_null(),
            Neutral::Flag(neutral) => value.is_null() || value.as_bool() == Some(neutral),
            Neutral::Number(neutral) => value.is_null() || value.as_f64() == Some(neutral),
        }
    }
}

/// An object of config.json being read by a family.
pub struct Fields<'a> {
    model: &'a str,
    /// `rope_scaling.` inside that object, empty at the top.
    prefix: String,
    map: &'a Map<String, Value>,
    read: RefCell<BTreeSet<String>>,
    /// Whether the object was translated from GGUF metadata, which leaves more unsaid.
    pub from_gguf: bool,
    /// Frequency divisors that came as tensors.
    pub rope_factors: &'a RopeFactors,
}

impl<'a> Fields<'a> {
    pub fn new(
        model: &'a str,
        map: &'a Map<String, Value>,
        from_gguf: bool,
        rope_factors: &'a RopeFactors,
    ) -> Self {
        Self { model, prefix: String::new(), map, read: RefCell::default(), from_gguf, rope_factors }
    }

    /// The object inside the field `name`, whose own fields are reported as `name.field`.
    pub fn inside(&self, name: &str, map: &'a Map<String, Value>) -> Fields<'a> {
        let prefix = format!("{}{name}.", self.prefix);
        Fields { prefix, map, read: RefCell::default(), ..*self }
    }

    /// Whether the field is there, be it `null`.
    pub fn is_stated(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// Marks a field as understood without a use for its value.
    pub fn note(&self, name: &str) {
        self.read.borrow_mut().insert(name.to_owned());
    }

    fn value(&self, name: &str) -> Option<&'a Value> {
        self.note(name);
        self.map.get(name).filter(|v| !v.is_null())
    }

    fn typed<T>(
        &self,
        name: &str,
        what: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.refuse(name, format!("expected {what}")))
    }

    /// A whole number that is not negative.
    pub fn count(&self, name: &str) -> Result<Option<usize>, ModelError> {
        self.typed(name, "a whole number", whole)
    }

    pub fn number(&self, name: &str) -> Result<Option<f64>, ModelError> {
        self.typed(name, "a finite number", |v| v.as_f64().filter(|n| n.is_finite()))
    }

    pub fn flag(&self, name: &str) -> Result<Option<bool>, ModelError> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub fn text(&self, name: &str) -> Result<Option<&'a str>, ModelError> {
        self.typed(name, "a string", Value::as_str)
    }

    pub fn object(&self, name: &str) -> Result<Option<&'a Map<String, Value>>, ModelError> {
        self.typed(name, "an object", Value::as_object)
    }

    pub fn texts(&self, name: &str) -> Result<Option<Vec<&'a str>>, ModelError> {
        self.typed(name, "a list of strings", |v| v.as_array()?.iter().map(Value::as_str).collect())
    }

    pub fn counts(&self, name: &str) -> Result<Option<Vec<usize>>, ModelError> {
        self.typed(name, "a list of whole numbers", |v| v.as_array()?.iter().map(whole).collect())
    }

    pub fn numbers(&self, name: &str) -> Result<Option<Vec<f64>>, ModelError> {
        self.typed(name, "a list of numbers", |v| v.as_array()?.iter().map(Value::as_f64).collect())
    }

    /// A factor that scales something: finite and above zero.
    pub fn positive(&self, name: &str) -> Result<Option<f64>, ModelError> {
        match self.number(name)? {
            Some(n) if n <= 0.0 => Err(self.refuse(name, "must be above zero")),
            n => Ok(n),
        }
    }

    /// The error that this field's value cannot be honoured.
    pub fn refuse(&self, name: &str, reason: impl Into<String>) -> ModelError {
        const LONGEST: usize = 80;
        let mut value = self.map.get(name).map_or_else(|| "(absent)".to_owned(), Value::to_string);
        if let Some((cut, _)) = value.char_indices().nth(LONGEST) {
            value.truncate(cut);
            value.push_str("...");
        }
        ModelError::Config {
            model: self.model.to_owned(),
            field: format!("{}{name}", self.prefix),
            value,
            reason: reason.into(),
        }
    }

    /// The error that this field is needed and not there.
    pub fn missing(&self, name: &str, reason: impl Into<String>) -> ModelError {
        ModelError::MissingField {
            model: self.model.to_owned(),
            field: format!("{}{name}", self.prefix),
            reason: reason.into(),
        }
    }

    /// Checks that no field of known meaning was left unread.
    pub fn finish(&self) -> Result<(), ModelError> {
        let read = self.read.borrow();
        let unread = MEANINGFUL.iter().find(|(name, neutral)| {
            !read.contains(*name) && self.map.get(*name).is_some_and(|v| !neutral.is(v))
        });
        unread.map_or(Ok(()), |(name, _)| Err(self.refuse(name, "not supported for this model type")))
    }

    /// Checks that every field was read, for objects in which an unknown key can only be a setting.
    pub fn finish_all(&self) -> Result<(), ModelError> {
        let read = self.read.borrow();
        let unread = self.map.iter().find(|(name, value)| !value.is_null() && !read.contains(*name));
        unread.map_or(Ok(()), |(name, _)| Err(self.refuse(name, "not a setting this program knows")))
    }
}

/// Integers, also when written as `32.0`.
fn whole(value: &Value) -> Option<usize> {
    let as_float =
        || value.as_f64().filter(|n| n.fract() == 0.0 && (0.0..9e15).contains(n)).map(|n| n as u64);
    usize::try_from(value.as_u64().or_else(as_float)?).ok()
}
