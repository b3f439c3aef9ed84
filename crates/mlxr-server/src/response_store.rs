//! Responses that were given, to go on from and to ask for again: in memory, within bounds, the longest unused first to
//! go. A response in the background is here from its beginning and its work hangs on its entry.
//!
//! Invariant: a response is only ever seen by who asked for it: the same key, or nobody's key.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlxr_api::openai::responses::{Item, Response, Status};
use tokio::task::AbortHandle;

use crate::ServeError;

/// Responses kept.
const MAX_RESPONSES: usize = 1024;

/// Bytes of all their conversations, as JSON. Items that several responses share count for each.
pub(crate) const MAX_BYTES: usize = 64 << 20;

/// Whose a response is: a key's, or that of whoever comes without one.
pub(crate) type Owner = Option<Arc<str>>;

/// A response and the conversation it ends.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub response: Response,
    /// Everything it is the answer to, with what came before.
    pub input: Vec<Arc<Item>>,
}

impl Stored {
    /// What the next turn follows.
    pub fn conversation(&self) -> Vec<Arc<Item>> {
        let output = self.response.output.iter().cloned().map(Arc::new);
        self.input.iter().cloned().chain(output).collect()
    }

    fn n_bytes(&self) -> usize {
        let input: usize = self.input.iter().map(|item| n_bytes(item)).sum();
        // Our own types always serialise.
        input + serde_json::to_vec(&self.response).map_or(0, |json| json.len())
    }
}

/// What an item takes.
pub(crate) fn n_bytes(item: &Item) -> usize {
    // Our own types always serialise.
    serde_json::to_vec(item).map_or(0, |json| json.len())
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct ResponseStore(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    by_id: HashMap<String, Entry>,
    n_bytes: usize,
    /// Counts uses.
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    stored: Arc<Stored>,
    owner: Owner,
    n_bytes: usize,
    last_used: u64,
    /// What works on it.
    work: Option<AbortHandle>,
}

impl Entry {
    fn is_running(&self) -> bool {
        self.stored.response.status == Status::InProgress
    }
}

impl ResponseStore {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a response, in place of what was kept under its id.
    pub fn put(&self, stored: Stored, owner: Owner) {
        self.entries().put(stored, owner);
    }

    /// Puts the end of a response in the place of its beginning, unless it was cancelled or deleted meanwhile.
    pub fn finish(&self, stored: Stored) {
        let mut entries = self.entries();
        let running = entries.by_id.get(&stored.response.id).filter(|entry| entry.is_running());
        if let Some(owner) = running.map(|entry| entry.owner.clone()) {
            entries.put(stored, owner);
        }
    }

    /// Ties the work on a response in the background to its entry; where that is over already, ends the work.
    pub fn attach(&self, id: &str, work: AbortHandle) {
        match self.entries().by_id.get_mut(id).filter(|entry| entry.is_running()) {
            Some(entry) => entry.work = Some(work),
            None => work.abort(),
        }
    }

    /// # Errors
    /// There is none of that id, or it is another's.
    pub fn get(&self, id: &str, owner: &Owner) -> Result<Arc<Stored>, ServeError> {
        let mut entries = self.entries();
        entries.clock += 1;
        let now = entries.clock;
        let entry = entries.of(id, owner)?;
        entry.last_used = now;
        Ok(entry.stored.clone())
    }

    /// The response a request goes on from.
    ///
    /// # Errors
    /// As [`Self::get`], and for one that is not finished.
    pub fn previous(&self, id: &str, owner: &Owner) -> Result<Arc<Stored>, ServeError> {
        let field = "previous_response_id";
        let stored = self.get(id, owner).map_err(|error| match error {
            ServeError::NoSuchResponse { id, .. } => ServeError::NoSuchResponse { id, field: Some(field) },
            error => error,
        })?;
        if stored.response.status == Status::InProgress {
            let reason = format!("{field}: the response {id:?} is still in progress");
            return Err(ServeError::invalid(field, reason));
        }
        Ok(stored)
    }

    /// An item of any conversation that is kept, by its id.
    pub fn item(&self, id: &str, owner: &Owner) -> Option<Arc<Item>> {
        let entries = self.entries();
        let mut own = entries.by_id.values().filter(|entry| entry.owner == *owner);
        own.find_map(|entry| {
            let is_it = |item: &Item| item.id() == Some(id);
            let input = entry.stored.input.iter().find(|item| is_it(item)).cloned();
            let output = &entry.stored.response.output;
            input.or_else(|| output.iter().find(|item| is_it(item)).cloned().map(Arc::new))
        })
    }

    /// Forgets a response and ends the work on it.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn delete(&self, id: &str, owner: &Owner) -> Result<(), ServeError> {
        let mut entries = self.entries();
        entries.of(id, owner)?;
        entries.remove(id);
        Ok(())
    }

    /// Ends the work on a response in the background; one that is over stays as it is.
    ///
    /// # Errors
    /// As [`Self::get`], and for a response that is not in the background.
    pub fn cancel(&self, id: &str, owner: &Owner) -> Result<Arc<Stored>, ServeError> {
        let mut entries = self.entries();
        let entry = entries.of(id, owner)?;
        if !entry.stored.response.background {
            let reason = "only a response in the background can be cancelled; end the others by closing the connection";
            return Err(ServeError::invalid("response_id", reason));
        }
        if entry.is_running() {
            if let Some(work) = entry.work.take() {
                work.abort();
            }
            let mut stored = Stored::clone(&entry.stored);
            stored.response.status = Status::Cancelled;
            entry.stored = Arc::new(stored);
        }
        Ok(entry.stored.clone())
    }

    #[cfg(test)]
    fn size(&self) -> (usize, usize) {
        let entries = self.entries();
        (entries.by_id.len(), entries.n_bytes)
    }
}

impl Entries {
    fn of(&mut self, id: &str, owner: &Owner) -> Result<&mut Entry, ServeError> {
        let entry = self.by_id.get_mut(id).filter(|entry| entry.owner == *owner);
        entry.ok_or_else(|| ServeError::NoSuchResponse { id: id.to_owned(), field: None })
    }

    fn put(&mut self, stored: Stored, owner: Owner) {
        self.clock += 1;
        let (id, n_bytes) = (stored.response.id.clone(), stored.n_bytes());
        let entry = Entry { stored: Arc::new(stored), owner, n_bytes, last_used: self.clock, work: None };
        if let Some(before) = self.by_id.insert(id, entry) {
            self.n_bytes -= before.n_bytes;
        }
        self.n_bytes += n_bytes;
        while self.by_id.len() > MAX_RESPONSES || self.n_bytes > MAX_BYTES {
            // Work that goes on is bounded by the engines' queues.
            let idle = self.by_id.iter().filter(|(_, entry)| !entry.is_running());
            let oldest = idle.min_by_key(|(_, entry)| entry.last_used).map(|(id, _)| id.clone());
            let Some(oldest) = oldest else { break };
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, id: &str) {
        if let Some(entry) = self.by_id.remove(id) {
            self.n_bytes -= entry.n_bytes;
            if let Some(work) = entry.work {
                work.abort();
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "helpers of tests are tests")]
mod tests {
    use mlxr_api::openai::responses::{InputItem, Reasoning, TextConfig, ToolChoice, Truncation};
    use mlxr_api::openai::tools::ToolChoiceMode;
    use serde_json::json;

    use super::*;

    fn item(id: &str, text: &str) -> Item {
        let value = json!({"role": "user", "content": text, "id": id});
        let InputItem::Item(item) = InputItem::read("input", value).unwrap() else { panic!("an item") };
        item
    }

    fn stored(id: &str, n_bytes: usize, status: Status) -> Stored {
        let response = Response {
            id: id.to_owned(),
            object: "response",
            created_at: 0,
            status,
            completed_at: None,
            background: true,
            error: None,
            incomplete_details: None,
            instructions: None,
            max_output_tokens: None,
            max_tool_calls: None,
            model: "m".to_owned(),
            output: vec![item(&format!("out_{id}"), "")],
            parallel_tool_calls: true,
            previous_response_id: None,
            reasoning: Reasoning::default(),
            service_tier: "default",
            store: true,
            temperature: 1.0,
            text: TextConfig::default(),
            tool_choice: ToolChoice::Mode(ToolChoiceMode::Auto),
            tools: Vec::new(),
            top_logprobs: 0,
            top_p: 1.0,
            truncation: Truncation::Disabled,
            usage: None,
            metadata: Default::default(),
            warnings: Vec::new(),
        };
        Stored { response, input: vec![Arc::new(item(&format!("in_{id}"), &"x".repeat(n_bytes)))] }
    }

    #[test]
    fn the_longest_unused_goes_first_by_number_and_by_size() {
        let store = ResponseStore::default();
        for i in 0..MAX_RESPONSES {
            store.put(stored(&i.to_string(), 0, Status::Completed), None);
        }
        store.get("0", &None).unwrap();
        store.put(stored("new", 0, Status::Completed), None);
        assert_eq!(store.size().0, MAX_RESPONSES);
        assert!(store.get("0", &None).is_ok() && store.get("1", &None).is_err());

        let large = MAX_BYTES / 4;
        for id in ["a", "b", "c", "d"] {
            store.put(stored(id, large, Status::Completed), None);
        }
        let (n_responses, n_bytes) = store.size();
        assert!(n_responses == 3 && n_bytes <= MAX_BYTES, "{n_responses} {n_bytes}");
        store.put(stored("d", 0, Status::Completed), None);
        for id in ["b", "c", "d"] {
            store.delete(id, &None).unwrap();
        }
        assert_eq!(store.size(), (0, 0));
    }

    #[test]
    fn responses_are_their_owner_s_alone() {
        let store = ResponseStore::default();
        let (mine, other): (Owner, Owner) = (Some("key_1".into()), Some("key_2".into()));
        store.put(stored("r", 0, Status::Completed), mine.clone());
        for stranger in [&other, &None] {
            assert!(store.get("r", stranger).is_err() && store.delete("r", stranger).is_err());
            assert!(store.item("in_r", stranger).is_none());
            let refused = store.previous("r", stranger).unwrap_err();
            assert_eq!(refused.status(), axum::http::StatusCode::BAD_REQUEST);
        }
        assert!(store.item("in_r", &mine).is_some() && store.item("out_r", &mine).is_some());
        assert_eq!(store.previous("r", &mine).unwrap().conversation().len(), 2);
    }

    #[tokio::test]
    async fn work_ends_with_its_response() {
        let store = ResponseStore::default();
        let begin = |id: &str| {
            store.put(stored(id, 0, Status::InProgress), None);
            let work = tokio::spawn(std::future::pending::<()>());
            store.attach(id, work.abort_handle());
            work
        };
        let work = begin("cancelled");
        assert_eq!(store.cancel("cancelled", &None).unwrap().response.status, Status::Cancelled);
        assert!(work.await.unwrap_err().is_cancelled());
        // What comes too late changes nothing.
        store.finish(stored("cancelled", 0, Status::Completed));
        assert_eq!(store.get("cancelled", &None).unwrap().response.status, Status::Cancelled);

        let work = begin("deleted");
        assert!(store.previous("deleted", &None).unwrap_err().to_string().contains("in progress"));
        store.delete("deleted", &None).unwrap();
        assert!(work.await.unwrap_err().is_cancelled());
        store.finish(stored("deleted", 0, Status::Completed));
        assert!(store.get("deleted", &None).is_err());
        let late = tokio::spawn(std::future::pending::<()>());
        store.attach("deleted", late.abort_handle());
        assert!(late.await.unwrap_err().is_cancelled());

        let work = begin("finished");
        store.finish(stored("finished", 0, Status::Completed));
        assert_eq!(store.cancel("finished", &None).unwrap().response.status, Status::Completed);
        assert!(!work.is_finished());
        work.abort();
    }
}
