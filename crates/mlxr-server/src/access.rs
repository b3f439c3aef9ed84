//! Who may talk to us, by the listener they came through.
//!
//! On loopback the `Host` and `Origin` headers keep out web pages, which reach local ports through the browser: a page
//! that rebinds its own name to 127.0.0.1 still sends its own name. Elsewhere a bearer token is demanded. A Unix socket
//! is protected by its mode.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN, RETRY_AFTER};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

use crate::dialect::Dialect;
use crate::notices::UNSUPPORTED;
use crate::{ServeError, Tokens};

/// The rule of a listener.
#[derive(Clone, Debug)]
pub enum Access {
    /// The file system has decided already.
    Socket,
    /// Only names of this machine, and `hosts`. A token is demanded where there are any.
    Loopback { hosts: Vec<String>, tokens: Tokens },
    /// Only with a token.
    Tokens(Tokens),
}

impl Access {
    /// # Errors
    /// Why the request is not let in.
    pub fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), ServeError> {
        match self {
            Access::Socket => Ok(()),
            Access::Loopback { hosts, tokens } => {
                check_host(uri, headers, hosts)?;
                check_origin(headers, hosts)?;
                if tokens.is_empty() { Ok(()) } else { check_token(headers, tokens) }
            }
            Access::Tokens(tokens) => check_token(headers, tokens),
        }
    }

    /// `router` with this rule in front. Pages that pass it are told so, and get their preflights answered, which carry
    /// no token.
    pub fn guard(self, router: Router) -> Router {
        let cors = match &self {
            Access::Loopback { hosts, .. } => Some(cors(hosts.clone())),
            Access::Socket | Access::Tokens(_) => None,
        };
        let guarded = router.layer(middleware::from_fn_with_state(Arc::new(self), check));
        match cors {
            Some(cors) => guarded.layer(cors),
            None => guarded,
        }
    }
}

fn cors(hosts: Vec<String>) -> CorsLayer {
    let is_ours = move |origin: &HeaderValue, _: &Parts| is_allowed_origin(origin, &hosts);
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(is_ours))
        .allow_methods(AllowMethods::mirror_request())
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([UNSUPPORTED, RETRY_AFTER])
}

/// Lets a request through, or answers it.
async fn check(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    match access.check(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => Dialect::of_path(request.uri().path()).error(&error).into_response(),
    }
}

fn check_host(uri: &Uri, headers: &HeaderMap, hosts: &[String]) -> Result<(), ServeError> {
    // A request line with an authority overrides the header.
    let host = match uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => headers.get(HOST).and_then(|value| value.to_str().ok()),
    };
    let is_ours = host.is_some_and(|host| is_local(host_name(host), hosts));
    if is_ours {
        return Ok(());
    }
    let reason = format!("the host {:?} is not one this server answers to", host.unwrap_or_default());
    Err(ServeError::Forbidden { reason })
}

fn check_origin(headers: &HeaderMap, hosts: &[String]) -> Result<(), ServeError> {
    let Some(value) = headers.get(ORIGIN) else { return Ok(()) };
    if is_allowed_origin(value, hosts) {
        return Ok(());
    }
    Err(ServeError::Forbidden { reason: format!("pages of {value:?} may not use this server") })
}

fn is_allowed_origin(origin: &HeaderValue, hosts: &[String]) -> bool {
    let host = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    host.is_some_and(|(_, host)| is_local(host_name(host), hosts))
}

fn check_token(headers: &HeaderMap, tokens: &Tokens) -> Result<(), ServeError> {
    let shown = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(bearer);
    // Anthropic's clients send the key in a header of its own.
    let shown = shown.or_else(|| headers.get("x-api-key").and_then(|value| value.to_str().ok()));
    match shown {
        Some(token) if tokens.accept(token) => Ok(()),
        _ => Err(ServeError::Unauthorized),
    }
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// The name in `name:port` or `[address]:port`.
fn host_name(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    host.split(':').next().unwrap_or_default()
}

fn is_local(name: &str, hosts: &[String]) -> bool {
    let is_loopback = name.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    is_loopback
        || name.eq_ignore_ascii_case("localhost")
        || hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "helpers of tests are tests")]
mod tests {
    use axum::http::HeaderName;

    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn loopback(fields: &[(&'static str, &'static str)]) -> bool {
        let access = Access::Loopback { hosts: vec!["llm.lan".to_owned()], tokens: Tokens::default() };
        access.check(&Uri::from_static("/v1/models"), &headers(fields)).is_ok()
    }

    #[test]
    fn only_names_of_this_machine_pass_on_loopback() {
        for host in ["localhost", "LOCALHOST:11434", "127.0.0.1:11434", "127.9.9.9", "[::1]:80", "llm.lan:1"]
        {
            assert!(loopback(&[("host", host)]), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:11434", "10.0.0.1", "[::2]:80", ""] {
            assert!(!loopback(&[("host", host)]), "{host}");
        }
        assert!(!loopback(&[]));
        let access = Access::Loopback { hosts: Vec::new(), tokens: Tokens::default() };
        let absolute = Uri::from_static("http://evil.example/v1/models");
        assert!(access.check(&absolute, &headers(&[("host", "localhost")])).is_err());
    }

    #[test]
    fn pages_from_elsewhere_do_not_pass_on_loopback() {
        let from = |origin| loopback(&[("host", "localhost"), ("origin", origin)]);
        assert!(from("http://localhost:3000") && from("https://127.0.0.1") && from("http://llm.lan"));
        assert!(!from("https://evil.example") && !from("null") && !from("http://localhost.evil.example"));
    }

    #[test]
    fn elsewhere_only_a_token_passes() {
        let access = Access::Tokens(Tokens::new(["0123456789abcdef"]));
        let passes = |fields| access.check(&Uri::from_static("/"), &headers(fields)).is_ok();
        assert!(passes(&[("authorization", "Bearer 0123456789abcdef")]));
        assert!(passes(&[("authorization", "bearer  0123456789abcdef")]));
        assert!(passes(&[("x-api-key", "0123456789abcdef")]));
        assert!(!passes(&[("authorization", "Bearer 0123456789abcdeg")]));
        assert!(!passes(&[("authorization", "Basic 0123456789abcdef")]));
        assert!(!passes(&[("host", "localhost")]));
    }
}
