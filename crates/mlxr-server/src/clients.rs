//! Who asks, and how much each may ask for: requests and tokens per minute, requests at a time.
//!
//! Buckets that fill steadily: a client may use a minute's worth at once and then as fast as it fills. Tokens are counted
//! as they are read and generated, not as they are asked for, so a request that runs may overdraw its bucket and the next
//! one waits until that is paid back. (The usual limiter crates decide on a known cost beforehand and keep every
//! client for good; both do not fit here.)

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody};
use bytes::Bytes;

use crate::ServeError;
use crate::keys::{ClientLimits, Key};

/// Clients remembered at a time. Beyond it those go first whose buckets are full, then those seen longest ago, whose
/// buckets then begin anew.
const MAX_CLIENTS: usize = 10_000;

/// Seconds until a client with too many requests at a time may try again.
const BUSY_RETRY_S: u32 = 1;

/// What a client has used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateLimit {
    Requests,
    Tokens,
    Concurrent,
}

impl RateLimit {
    pub const fn name(self) -> &'static str {
        match self {
            RateLimit::Requests => "requests per minute",
            RateLimit::Tokens => "tokens per minute",
            RateLimit::Concurrent => "requests at a time",
        }
    }
}

/// Who sent a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Client {
    id: ClientId,
    limits: ClientLimits,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
enum ClientId {
    /// Whoever came by the Unix socket: the owner, who is not limited.
    #[default]
    Owner,
    Address(IpAddr),
    /// The id of a key.
    Key(Arc<str>),
}

impl Client {
    pub(crate) fn of_key(key: &Key) -> Client {
        Client { id: ClientId::Key(key.id.as_str().into()), limits: key.limits }
    }

    /// One of a token file, which has no names.
    pub(crate) fn of_token(secret: &str) -> Client {
        let hash = crate::keys::Hash::of(secret);
        let id = hash.bytes()[..4].iter().fold("token_".to_owned(), |id, byte| format!("{id}{byte:02x}"));
        Client { id: ClientId::Key(id.into()), limits: ClientLimits::default() }
    }

    pub(crate) fn of_address(address: IpAddr) -> Client {
        let address = match address.to_canonical() {
            // A machine has all addresses below its prefix.
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
            v4 @ IpAddr::V4(_) => v4,
        };
        Client { id: ClientId::Address(address), limits: ClientLimits::default() }
    }

    /// The id of its key, if it has one.
    pub(crate) fn key(&self) -> Option<Arc<str>> {
        match &self.id {
            ClientId::Key(id) => Some(id.clone()),
            ClientId::Owner | ClientId::Address(_) => None,
        }
    }

    /// For the log.
    fn name(&self) -> String {
        match &self.id {
            ClientId::Owner => "owner".to_owned(),
            ClientId::Address(address) => address.to_string(),
            ClientId::Key(id) => id.to_string(),
        }
    }
}

/// All clients of a server that have limits.
pub(crate) struct Clients {
    /// Where a key says nothing else.
    limits: ClientLimits,
    slots: Mutex<HashMap<ClientId, Arc<Slot>>>,
}

/// What is kept of a client.
#[derive(Debug)]
struct Slot(Mutex<Usage>);

#[derive(Debug)]
struct Usage {
    requests: Bucket,
    tokens: Bucket,
    n_running: u32,
    limits: ClientLimits,
}

impl Slot {
    fn usage(&self) -> MutexGuard<'_, Usage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much is left, at a time. A level below zero is overdrawn.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    level: f64,
    at: Instant,
}

impl Bucket {
    fn full(per_minute: Option<u32>, now: Instant) -> Bucket {
        Bucket { level: per_minute.map_or(0.0, f64::from), at: now }
    }

    fn fill(&mut self, per_minute: u32, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + elapsed * f64::from(per_minute) / 60.0).min(per_minute.into());
        self.at = now;
    }

    /// Time until the bucket holds `level`.
    fn until(&self, level: f64, per_minute: u32) -> Duration {
        let missing = (level - self.level).max(0.0);
        // A limit of 0 never fills; an hour is long enough to say so.
        if per_minute == 0 {
            return Duration::from_secs(3600);
        }
        Duration::from_secs_f64(missing * 60.0 / f64::from(per_minute))
    }
}

/// What is left of one limit, for the headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    pub limit: u32,
    pub remaining: u32,
    /// Until everything is back.
    pub reset: Duration,
}

impl Left {
    fn of(bucket: &Bucket, per_minute: u32) -> Left {
        Left {
            limit: per_minute,
            // Between 0 and the limit, so the cast keeps it.
            remaining: bucket.level.max(0.0) as u32,
            reset: bucket.until(per_minute.into(), per_minute),
        }
    }
}

/// A client's limits as they stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub requests: Option<Left>,
    pub tokens: Option<Left>,
}

/// A request that was let in; it counts as running until this and all copies of its meter are dropped.
#[derive(Debug)]
pub(crate) struct Entered {
    pub meter: Meter,
    pub standing: Standing,
}

#[derive(Debug)]
struct Running(Arc<Slot>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.usage().n_running -= 1;
    }
}

impl Clients {
    pub(crate) fn new(limits: ClientLimits) -> Clients {
        Clients { limits, slots: Mutex::default() }
    }

    /// Lets a request of `client` in, or says what stands against it. What was left at that moment comes with both.
    pub(crate) fn enter(&self, client: &Client, now: Instant) -> Result<Entered, (ServeError, Standing)> {
        let name: Arc<str> = client.name().into();
        let limits = client.limits.or(self.limits);
        if client.id == ClientId::Owner || limits.is_none() {
            let meter = Meter { slot: None, name: Some(name), running: None };
            return Ok(Entered { meter, standing: Standing::default() });
        }
        let slot = self.slot(client, limits, now);
        let refused = {
            let mut usage = slot.usage();
            usage.limits = limits;
            usage.fill(now);
            let refused = usage.refusal();
            if refused.is_none() {
                usage.requests.level -= 1.0;
                usage.n_running += 1;
            }
            refused.map(|error| (error, usage.standing()))
        };
        match refused {
            Some(refused) => Err(refused),
            None => {
                let standing = slot.usage().standing();
                let running = Some(Arc::new(Running(slot.clone())));
                Ok(Entered { meter: Meter { slot: Some(slot), name: Some(name), running }, standing })
            }
        }
    }

    fn slot(&self, client: &Client, limits: ClientLimits, now: Instant) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(&client.id) {
            return slot.clone();
        }
        if slots.len() >= MAX_CLIENTS {
            make_room(&mut slots, now);
        }
        let usage = Usage {
            requests: Bucket::full(limits.requests_per_minute, now),
            tokens: Bucket::full(limits.tokens_per_minute, now),
            n_running: 0,
            limits,
        };
        let slot = Arc::new(Slot(Mutex::new(usage)));
        slots.insert(client.id.clone(), slot.clone());
        slot
    }
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clients").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// Forgets an eighth of the clients or more, but none that has a request running.
fn make_room(slots: &mut HashMap<ClientId, Arc<Slot>>, now: Instant) {
    slots.retain(|_, slot| {
        let mut usage = slot.usage();
        usage.fill(now);
        Arc::strong_count(slot) > 1 || !usage.is_full()
    });
    let target = MAX_CLIENTS - MAX_CLIENTS / 8;
    let Some(excess) = slots.len().checked_sub(target) else { return };
    let mut idle: Vec<(f64, ClientId)> = slots
        .iter()
        .filter(|(_, slot)| Arc::strong_count(slot) == 1)
        .map(|(id, slot)| (slot.usage().fullness(), id.clone()))
        .collect();
    // Those that lose least by being forgotten first.
    idle.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (_, id) in idle.into_iter().take(excess) {
        slots.remove(&id);
    }
}

impl Usage {
    fn fill(&mut self, now: Instant) {
        if let Some(limit) = self.limits.requests_per_minute {
            self.requests.fill(limit, now);
        }
        if let Some(limit) = self.limits.tokens_per_minute {
            self.tokens.fill(limit, now);
        }
    }

    fn refusal(&self) -> Option<ServeError> {
        let refuse = |what, limit, wait: Duration| {
            // Rounded up, so that who comes then is let in.
            let retry_after_s = u32::try_from(wait.as_secs() + 1).unwrap_or(u32::MAX);
            Some(ServeError::RateLimited { what, limit, retry_after_s })
        };
        let ClientLimits { requests_per_minute, tokens_per_minute, concurrent } = self.limits;
        if let Some(limit) = concurrent
            && self.n_running >= limit
        {
            return Some(ServeError::RateLimited {
                what: RateLimit::Concurrent,
                limit,
                retry_after_s: BUSY_RETRY_S,
            });
        }
        if let Some(limit) = requests_per_minute
            && self.requests.level < 1.0
        {
            return refuse(RateLimit::Requests, limit, self.requests.until(1.0, limit));
        }
        if let Some(limit) = tokens_per_minute
            && self.tokens.level < 1.0
        {
            return refuse(RateLimit::Tokens, limit, self.tokens.until(1.0, limit));
        }
        None
    }

    fn standing(&self) -> Standing {
        let ClientLimits { requests_per_minute, tokens_per_minute, .. } = self.limits;
        Standing {
            requests: requests_per_minute.map(|limit| Left::of(&self.requests, limit)),
            tokens: tokens_per_minute.map(|limit| Left::of(&self.tokens, limit)),
        }
    }

    /// The emptier bucket's share of its limit.
    fn fullness(&self) -> f64 {
        let share = |bucket: &Bucket, limit: Option<u32>| {
            limit.map_or(1.0, |limit| if limit == 0 { 1.0 } else { bucket.level / f64::from(limit) })
        };
        let ClientLimits { requests_per_minute, tokens_per_minute, .. } = self.limits;
        share(&self.requests, requests_per_minute).min(share(&self.tokens, tokens_per_minute))
    }

    fn is_full(&self) -> bool {
        self.fullness() >= 1.0
    }
}

tokio::task_local! {
    static METER: Meter;
}

/// Counts what a request costs its client. Handlers find theirs with [`Meter::current`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter {
    slot: Option<Arc<Slot>>,
    name: Option<Arc<str>>,
    running: Option<Arc<Running>>,
}

impl Meter {
    /// The meter of the request this task handles; one that counts nothing outside of a request.
    pub(crate) fn current() -> Meter {
        METER.try_with(Meter::clone).unwrap_or_default()
    }

    /// Runs `work` as the handling of a request that this meter counts.
    pub(crate) async fn during<T>(self, work: impl Future<Output = T>) -> T {
        METER.scope(self, work).await
    }

    pub(crate) fn charge(&self, n_tokens: usize) {
        if let Some(slot) = &self.slot {
            slot.usage().tokens.level -= n_tokens as f64;
        }
    }

    /// Puts right what was charged before the cost was known.
    pub(crate) fn settle(&self, n_charged: usize, n_tokens: usize) {
        if let Some(slot) = &self.slot {
            slot.usage().tokens.level += n_charged as f64 - n_tokens as f64;
        }
    }

    /// The client, for the log.
    pub(crate) fn client(&self) -> Option<&str> {
        self.name.as_deref()
    }
}

impl Entered {
    /// `body` as part of the request: it runs until the body has been sent or given up.
    pub(crate) fn hold_for(self, body: Body) -> Body {
        match self.meter.running {
            Some(running) => Body::new(Held { body, _running: running }),
            None => body,
        }
    }
}

struct Held {
    body: Body,
    _running: Arc<Running>,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "helpers of tests are tests")]
mod tests {
    use super::*;

    fn clients(requests: Option<u32>, tokens: Option<u32>, concurrent: Option<u32>) -> Clients {
        Clients::new(ClientLimits { requests_per_minute: requests, tokens_per_minute: tokens, concurrent })
    }

    fn address(n: u32) -> Client {
        Client::of_address(IpAddr::from(n.to_be_bytes()))
    }

    fn refused(result: Result<Entered, (ServeError, Standing)>) -> (RateLimit, u32) {
        match result.unwrap_err().0 {
            ServeError::RateLimited { what, retry_after_s, .. } => (what, retry_after_s),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn requests_come_back_at_the_rate_of_the_limit() {
        let clients = clients(Some(2), None, None);
        let start = Instant::now();
        let left = |entered: Entered| entered.standing.requests.unwrap();
        let first = left(clients.enter(&address(1), start).unwrap());
        assert_eq!((first.limit, first.remaining, first.reset), (2, 1, Duration::from_secs(30)));
        assert_eq!(left(clients.enter(&address(1), start).unwrap()).remaining, 0);
        assert_eq!(refused(clients.enter(&address(1), start)), (RateLimit::Requests, 31));
        assert!(clients.enter(&address(2), start).is_ok(), "others have buckets of their own");
        assert!(clients.enter(&address(1), start + Duration::from_secs(29)).is_err());
        assert!(clients.enter(&address(1), start + Duration::from_secs(31)).is_ok());
        assert!(clients.enter(&Client::default(), start).is_ok(), "the owner is not limited");
    }

    #[test]
    fn overdrawn_tokens_are_paid_back_first() {
        let clients = clients(None, Some(60), None);
        let start = Instant::now();
        let entered = clients.enter(&address(1), start).unwrap();
        entered.meter.charge(50);
        entered.meter.charge(30);
        assert_eq!(refused(clients.enter(&address(1), start)), (RateLimit::Tokens, 22));
        let later = start + Duration::from_secs(22);
        let standing = clients.enter(&address(1), later).unwrap().standing;
        assert_eq!(standing.tokens.unwrap().remaining, 2);
    }

    #[test]
    fn a_request_runs_until_its_body_is_gone() {
        let clients = clients(None, None, Some(1));
        let now = Instant::now();
        let body = clients.enter(&address(1), now).unwrap().hold_for(Body::empty());
        assert_eq!(refused(clients.enter(&address(1), now)), (RateLimit::Concurrent, 1));
        drop(body);
        assert!(clients.enter(&address(1), now).is_ok());
    }

    #[test]
    fn a_key_s_limits_come_before_the_server_s() {
        let clients = clients(Some(1), Some(9), None);
        let own = ClientLimits { requests_per_minute: Some(5), ..ClientLimits::default() };
        let key = Client { id: ClientId::Key("k".into()), limits: own };
        let standing = clients.enter(&key, Instant::now()).unwrap().standing;
        assert_eq!((standing.requests.unwrap().limit, standing.tokens.unwrap().limit), (5, 9));
    }

    #[test]
    fn the_table_is_bounded_and_forgets_idle_clients_first() {
        let clients = clients(Some(10), None, None);
        let now = Instant::now();
        let kept = clients.enter(&address(0), now).unwrap();
        for n in 1..MAX_CLIENTS as u32 + 100 {
            drop(clients.enter(&address(n), now).unwrap());
        }
        let slots = clients.slots.lock().unwrap();
        assert!(slots.len() <= MAX_CLIENTS);
        assert!(slots.contains_key(&address(0).id), "one that has a request running stays");
        drop((slots, kept));
    }

    #[test]
    fn addresses_below_one_prefix_are_one_client() {
        let of = |text: &str| Client::of_address(text.parse().unwrap()).id;
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
