//! The keys of a running server: the file's, read again when it changes, and those of a token file.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use subtle::{Choice, ConstantTimeEq};

use super::file::Stamp;
use super::{Hash, Key, KeyFile, KeyFileError, Needs};
use crate::Tokens;
use crate::clients::Client;
use crate::files::write_file;
use crate::ids::unix_s;

/// Why a key does not open a route.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("an API key is needed: send `Authorization: Bearer KEY` or `x-api-key: KEY`")]
    NoKey,
    #[error("the API key is not valid")]
    Unknown,
    #[error("the API key {name:?} has expired")]
    Expired { name: String },
    #[error("the API key {name:?} lacks the scope \"{scope}\", which this needs")]
    Scope { name: String, scope: super::Scope },
}

/// The keys a server accepts. Clones share them.
#[derive(Clone, Default)]
pub struct Keys(Arc<Inner>);

#[derive(Default)]
struct Inner {
    tokens: Tokens,
    file: Option<KeyFile>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Of the file that `keys` are from.
    stamp: Option<Stamp>,
    keys: Arc<[Key]>,
    /// There was a file once. Taking it away does not open the server.
    is_demanded: bool,
    /// By id: when a key was last used, in seconds since 1970.
    used: BTreeMap<String, u64>,
    is_used_saved: bool,
}

impl Keys {
    /// The keys of `file`, if there is one, beside `tokens`. A file that comes later is read then.
    ///
    /// # Errors
    /// The file is there and cannot be used.
    pub fn new(tokens: Tokens, file: Option<KeyFile>) -> Result<Keys, KeyFileError> {
        let mut state = State { is_used_saved: true, ..State::default() };
        if let Some(file) = &file {
            match file.read() {
                Err(KeyFileError::Missing { .. }) => {}
                keys => {
                    state.keys = keys?.into();
                    state.is_demanded = true;
                    // Taken after reading: a change in between is read again, not missed, at the next request.
                    state.stamp = None;
                    state.used = last_used(file);
                }
            }
        }
        Ok(Keys(Arc::new(Inner { tokens, file, state: Mutex::new(state) })))
    }

    /// Whether clients must show a key.
    pub fn are_demanded(&self) -> bool {
        !self.0.tokens.is_empty() || self.refreshed().is_demanded
    }

    /// Whether any key opens anything.
    pub fn is_empty(&self) -> bool {
        self.0.tokens.is_empty() && self.refreshed().keys.is_empty()
    }

    /// Who shows `secret`, if it opens what `needs` names.
    ///
    /// # Errors
    /// [`Denied`].
    pub(crate) fn check(&self, secret: Option<&str>, needs: Needs) -> Result<Client, Denied> {
        let secret = secret.ok_or(Denied::NoKey)?;
        if self.0.tokens.accept(secret) {
            return Ok(Client::of_token(secret));
        }
        let shown = Hash::of(secret);
        let mut state = self.refreshed();
        let keys = state.keys.clone();
        let mut found = None;
        for key in keys.iter() {
            // All are compared, whichever it is.
            let is_it: Choice = key.sha256.bytes().ct_eq(shown.bytes());
            if is_it.into() {
                found = Some(key);
            }
        }
        let key = found.ok_or(Denied::Unknown)?;
        let now_s = unix_s();
        if key.is_expired(now_s) {
            return Err(Denied::Expired { name: key.name.clone() });
        }
        if let Needs::Scope(scope) = needs
            && !key.may(scope)
        {
            return Err(Denied::Scope { name: key.name.clone(), scope });
        }
        if state.used.insert(key.id.clone(), now_s) != Some(now_s) {
            state.is_used_saved = false;
        }
        Ok(Client::of_key(key))
    }

    /// The state after a look at the file, which costs a system call.
    fn refreshed(&self) -> MutexGuard<'_, State> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &self.0.file {
            state.refresh(file);
        }
        state
    }

    /// Writes down when keys were last used, for `mlxr keys list`.
    ///
    /// # Errors
    /// The file beside the keys cannot be written.
    pub(crate) fn save_used(&self) -> io::Result<()> {
        let Some(file) = &self.0.file else { return Ok(()) };
        let used = {
            let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
            if std::mem::replace(&mut state.is_used_saved, true) {
                return Ok(());
            }
            let keys = state.keys.clone();
            state.used.retain(|id, _| keys.iter().any(|key| key.id == *id));
            state.used.clone()
        };
        // Another server may use the same keys.
        let mut all = last_used(file);
        all.retain(|id, _| used.contains_key(id));
        for (id, used_s) in used {
            let latest = all.entry(id).or_insert(used_s);
            *latest = used_s.max(*latest);
        }
        let text = serde_json::to_string(&all).map_err(io::Error::from)?;
        write_file(&used_path(file), text.as_bytes())
    }

    /// Where the keys come from, to tell one set from another.
    pub(crate) fn is_same(&self, other: &Keys) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl State {
    fn refresh(&mut self, file: &KeyFile) {
        let stamp = match file.stamp() {
            Ok(stamp) => stamp,
            Err(error) => {
                tracing::error!(path = %file.path().display(), %error, "the key file cannot be looked at");
                return;
            }
        };
        if stamp == self.stamp {
            return;
        }
        self.stamp = stamp;
        match file.read() {
            Ok(keys) => {
                if !keys.iter().eq(self.keys.iter()) || !self.is_demanded {
                    tracing::info!(path = %file.path().display(), n_keys = keys.len(), "keys read");
                }
                self.keys = keys.into();
                self.is_demanded = true;
            }
            Err(KeyFileError::Missing { .. }) if self.is_demanded => {
                tracing::warn!(path = %file.path().display(), "the key file is gone: no key is valid now");
                self.keys = Arc::new([]);
            }
            Err(KeyFileError::Missing { .. }) => {}
            Err(error) => {
                tracing::error!(%error, "the key file cannot be read; the keys stay as they were");
                self.is_demanded = true;
            }
        }
    }
}

fn used_path(file: &KeyFile) -> PathBuf {
    file.beside("used")
}

/// When the keys of `file` were last used, by id, in seconds since 1970. What is not known is not there.
pub(crate) fn last_used(file: &KeyFile) -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(used_path(file)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

impl KeyFile {
    /// When each key was last used, by id, in seconds since 1970, as far as servers have written it down.
    pub fn last_used(&self) -> BTreeMap<String, u64> {
        last_used(self)
    }
}

impl From<Tokens> for Keys {
    fn from(tokens: Tokens) -> Keys {
        Keys(Arc::new(Inner { tokens, file: None, state: Mutex::default() }))
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("tokens", &self.0.tokens).field("file", &self.0.file).finish()
    }
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used, reason = "helpers of tests are tests")]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::keys::{ClientLimits, NewKey, Scope};

    const INFERENCE: Needs = Needs::Scope(Scope::Inference);

    fn new(name: &str, scope: Scope) -> NewKey {
        let scopes = BTreeSet::from([scope]);
        NewKey { name: name.to_owned(), scopes, expires_s: None, limits: ClientLimits::default() }
    }

    fn file() -> (tempfile::TempDir, KeyFile) {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path().join("keys.json"));
        (dir, file)
    }

    #[test]
    fn a_change_of_the_file_counts_from_the_next_request_on() {
        let (_dir, file) = file();
        let keys = Keys::new(Tokens::default(), Some(file.clone())).unwrap();
        assert!(!keys.are_demanded());
        let first = file.create(new("first", Scope::Inference)).unwrap();
        assert!(keys.are_demanded());
        assert!(keys.check(Some(&first.secret), INFERENCE).is_ok());
        let second = file.rotate("first").unwrap();
        assert_eq!(keys.check(Some(&first.secret), INFERENCE).unwrap_err(), Denied::Unknown);
        assert!(keys.check(Some(&second.secret), INFERENCE).is_ok());
        file.revoke("first").unwrap();
        assert_eq!(keys.check(Some(&second.secret), INFERENCE).unwrap_err(), Denied::Unknown);
        assert!(keys.are_demanded() && keys.is_empty(), "the last key's end opens nothing");
        std::fs::remove_file(file.path()).unwrap();
        assert!(keys.are_demanded());
        assert_eq!(keys.check(None, INFERENCE).unwrap_err(), Denied::NoKey);
    }

    #[test]
    fn a_damaged_file_changes_nothing() {
        let (_dir, file) = file();
        let issued = file.create(new("a", Scope::Inference)).unwrap();
        let keys = Keys::new(Tokens::default(), Some(file.clone())).unwrap();
        std::fs::write(file.path(), "{").unwrap();
        assert!(keys.check(Some(&issued.secret), INFERENCE).is_ok());
        assert!(Keys::new(Tokens::default(), Some(file)).is_err(), "at the start it is an error");
    }

    #[test]
    fn scopes_and_expiry_are_kept() {
        let (_dir, file) = file();
        let plain = file.create(new("plain", Scope::Inference)).unwrap();
        let admin = file.create(new("admin", Scope::Admin)).unwrap();
        let old = file.create(NewKey { expires_s: Some(1), ..new("old", Scope::Admin) }).unwrap();
        let keys = Keys::new(Tokens::default(), Some(file)).unwrap();
        let denied = |secret: &str, scope| keys.check(Some(secret), Needs::Scope(scope)).unwrap_err();
        assert!(keys.check(Some(&plain.secret), INFERENCE).is_ok());
        let error = denied(&plain.secret, Scope::Models);
        assert_eq!(error, Denied::Scope { name: "plain".to_owned(), scope: Scope::Models });
        for scope in Scope::ALL {
            assert!(keys.check(Some(&admin.secret), Needs::Scope(scope)).is_ok(), "{scope}");
        }
        assert_eq!(denied(&old.secret, Scope::Inference), Denied::Expired { name: "old".to_owned() });
        assert!(keys.check(Some(&plain.secret), Needs::AnyKey).is_ok());
    }

    #[test]
    fn when_a_key_was_last_used_is_written_down() {
        let (_dir, file) = file();
        let issued = file.create(new("a", Scope::Inference)).unwrap();
        file.create(new("b", Scope::Inference)).unwrap();
        let keys = Keys::new(Tokens::default(), Some(file.clone())).unwrap();
        keys.save_used().unwrap();
        assert!(file.last_used().is_empty(), "nothing to write");
        let before = unix_s();
        keys.check(Some(&issued.secret), INFERENCE).unwrap();
        keys.save_used().unwrap();
        let used = file.last_used();
        assert_eq!(used.len(), 1);
        assert!(before <= used[&issued.key.id]);
    }
}
