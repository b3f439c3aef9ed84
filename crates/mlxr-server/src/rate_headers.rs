//! What is left of a client's limits, in the headers each dialect's clients look for.

use std::time::{Duration, SystemTime};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::clients::{Left, Standing};
use crate::dialect::Dialect;
use crate::translate::ollama::rfc3339;

/// The names of one limit's headers: what it is, what is left, when all of it is back.
struct Names {
    limit: HeaderName,
    remaining: HeaderName,
    reset: HeaderName,
}

const OPENAI_REQUESTS: Names = Names {
    limit: HeaderName::from_static("x-ratelimit-limit-requests"),
    remaining: HeaderName::from_static("x-ratelimit-remaining-requests"),
    reset: HeaderName::from_static("x-ratelimit-reset-requests"),
};
const OPENAI_TOKENS: Names = Names {
    limit: HeaderName::from_static("x-ratelimit-limit-tokens"),
    remaining: HeaderName::from_static("x-ratelimit-remaining-tokens"),
    reset: HeaderName::from_static("x-ratelimit-reset-tokens"),
};
const ANTHROPIC_REQUESTS: Names = Names {
    limit: HeaderName::from_static("anthropic-ratelimit-requests-limit"),
    remaining: HeaderName::from_static("anthropic-ratelimit-requests-remaining"),
    reset: HeaderName::from_static("anthropic-ratelimit-requests-reset"),
};
const ANTHROPIC_TOKENS: Names = Names {
    limit: HeaderName::from_static("anthropic-ratelimit-tokens-limit"),
    remaining: HeaderName::from_static("anthropic-ratelimit-tokens-remaining"),
    reset: HeaderName::from_static("anthropic-ratelimit-tokens-reset"),
};

/// Every header that may be there; pages see only those they are told of.
pub fn names() -> impl Iterator<Item = HeaderName> {
    let limits = [OPENAI_REQUESTS, OPENAI_TOKENS, ANTHROPIC_REQUESTS, ANTHROPIC_TOKENS];
    limits.into_iter().flat_map(|Names { limit, remaining, reset }| [limit, remaining, reset])
}

/// Adds the headers of the limits there are.
pub fn write(standing: &Standing, dialect: Dialect, headers: &mut HeaderMap) {
    let is_anthropic = dialect == Dialect::Anthropic;
    let (requests, tokens) = match is_anthropic {
        true => (ANTHROPIC_REQUESTS, ANTHROPIC_TOKENS),
        false => (OPENAI_REQUESTS, OPENAI_TOKENS),
    };
    for (left, names) in [(standing.requests, requests), (standing.tokens, tokens)] {
        let Some(Left { limit, remaining, reset }) = left else { continue };
        let reset = if is_anthropic { rfc3339(SystemTime::now() + reset) } else { span(reset) };
        headers.insert(names.limit, limit.into());
        headers.insert(names.remaining, remaining.into());
        if let Ok(reset) = HeaderValue::try_from(reset) {
            headers.insert(names.reset, reset);
        }
    }
}

/// `6m0s`, `1s`, `20ms`, as OpenAI writes times.
fn span(time: Duration) -> String {
    let (seconds, ms) = (time.as_secs(), time.subsec_millis());
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) if seconds == 0 => format!("{ms}ms"),
        (0, 0) if ms == 0 => format!("{rest}s"),
        (0, 0) => format!("{rest}.{ms:03}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dialect_has_its_own_headers() {
        let left = Left { limit: 60, remaining: 59, reset: Duration::from_secs(1) };
        let standing = Standing { requests: Some(left), tokens: None };
        let mut headers = HeaderMap::new();
        write(&standing, Dialect::OpenAi, &mut headers);
        assert_eq!(headers.len(), 3);
        assert_eq!(headers["x-ratelimit-remaining-requests"], "59");
        assert_eq!(headers["x-ratelimit-reset-requests"], "1s");
        let mut headers = HeaderMap::new();
        write(&standing, Dialect::Anthropic, &mut headers);
        assert_eq!(headers["anthropic-ratelimit-requests-limit"], "60");
        assert!(headers["anthropic-ratelimit-requests-reset"].as_bytes().ends_with(b"Z"));
    }

    #[test]
    fn spans_are_written_as_clients_read_them() {
        let check = |ms, expected: &str| assert_eq!(span(Duration::from_millis(ms)), expected);
        check(0, "0ms");
        check(20, "20ms");
        check(1000, "1s");
        check(1500, "1.500s");
        check(360_000, "6m0s");
        check(3_661_000, "1h1m1s");
    }
}
