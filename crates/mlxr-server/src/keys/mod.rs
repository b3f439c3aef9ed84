//! Keys: what clients show when they do not come over the Unix socket, and what each of them may do.
//!
//! A secret is 256 random bits, so a plain SHA-256 of it is all the file needs to keep: there is nothing to guess that a
//! slow password hash would have to protect. Hashes are compared without a branch on their contents.

mod file;
mod live;
mod scope;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use file::{KeyFile, KeyFileError};
pub use live::{Denied, Keys};
pub use scope::Scope;
pub(crate) use scope::{Needs, needed};

/// What secrets begin with, so that people and scanners of leaked secrets recognise them.
const SECRET_PREFIX: &str = "mlxr-";

/// How much a client may ask for. What is not set is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientLimits {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// Prompt and answer together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u32>,
    /// Requests that run at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrent: Option<u32>,
}

impl ClientLimits {
    /// These limits, and those of `others` where these say nothing.
    pub fn or(self, others: ClientLimits) -> ClientLimits {
        ClientLimits {
            requests_per_minute: self.requests_per_minute.or(others.requests_per_minute),
            tokens_per_minute: self.tokens_per_minute.or(others.tokens_per_minute),
            concurrent: self.concurrent.or(others.concurrent),
        }
    }

    pub fn is_none(&self) -> bool {
        *self == ClientLimits::default()
    }
}

/// A key as the file keeps it: everything but its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Names the key in logs; it gives nothing away.
    pub id: String,
    pub name: String,
    /// Of the secret, in hexadecimal.
    sha256: Hash,
    pub scopes: BTreeSet<Scope>,
    /// Seconds since 1970.
    pub created_s: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_s: Option<u64>,
    #[serde(default, skip_serializing_if = "ClientLimits::is_none")]
    pub limits: ClientLimits,
}

impl Key {
    pub fn is_expired(&self, now_s: u64) -> bool {
        self.expires_s.is_some_and(|expires_s| expires_s <= now_s)
    }

    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }
}

/// What a new key is to be.
#[derive(Clone, Debug)]
pub struct NewKey {
    pub name: String,
    pub scopes: BTreeSet<Scope>,
    pub expires_s: Option<u64>,
    pub limits: ClientLimits,
}

/// A key and its secret, which is known this once.
#[derive(Clone, Debug)]
pub struct Issued {
    pub key: Key,
    pub secret: String,
}

/// SHA-256 of a secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hash([u8; 32]);

impl Hash {
    pub(crate) fn of(secret: &str) -> Hash {
        Hash(Sha256::digest(secret.as_bytes()).into())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hash")
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Hash, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits: Option<Vec<u8>> =
            text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
        let bytes: Option<[u8; 32]> = digits.filter(|digits| digits.len() == 64).and_then(|digits| {
            let pairs: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
            pairs.try_into().ok()
        });
        bytes.map(Hash).ok_or_else(|| serde::de::Error::custom("expected 64 hexadecimal digits"))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A secret of 256 bits from the operating system.
fn new_secret() -> Result<String, KeyFileError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| KeyFileError::Random { reason: error.to_string() })?;
    Ok(format!("{SECRET_PREFIX}{}", hex(&bytes)))
}

/// A name nobody has to keep secret.
fn new_id() -> Result<String, KeyFileError> {
    let mut bytes = [0; 6];
    getrandom::fill(&mut bytes).map_err(|error| KeyFileError::Random { reason: error.to_string() })?;
    Ok(format!("key_{}", hex(&bytes)))
}
