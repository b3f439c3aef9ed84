//! Who may talk to us, by the listener they came through.
//!
//! On loopback the `Host` and `Origin` headers keep out web pages, which reach local ports through the browser: a page
//! that rebinds its own name to 127.0.0.1 still sends its own name. Elsewhere a key is demanded, and on loopback too once
//! there are any. A Unix socket is protected by its mode.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN, RETRY_AFTER};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

use crate::ServeError;
use crate::clients::Client;
use crate::dialect::Dialect;
use crate::keys::{Keys, Needs, needed};
use crate::notices::UNSUPPORTED;
use crate::rate_headers;

/// The address at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub IpAddr);

/// The rule of a listener.
#[derive(Clone, Debug)]
pub enum Access {
    /// The file system has decided already.
    Socket,
    /// Only names of this machine, and `hosts`. A key is demanded where there are any.
    Loopback { hosts: Vec<String>, keys: Keys },
    /// Only with a key. Pages of this machine and of `hosts` are told that they may use theirs.
    Keys { hosts: Vec<String>, keys: Keys },
}

impl Access {
    /// Who sends the request, if it may.
    ///
    /// # Errors
    /// Why the request is not let in.
    fn check(&self, uri: &Uri, headers: &HeaderMap, needs: Needs) -> Result<Option<Client>, ServeError> {
        match self {
            Access::Socket => Ok(Some(Client::default())),
            Access::Loopback { hosts, keys } => {
                check_host(uri, headers, hosts)?;
                check_origin(headers, hosts)?;
                if !keys.are_demanded() {
                    return Ok(None);
                }
                Ok(Some(keys.check(shown_key(headers), needs)?))
            }
            Access::Keys { keys, .. } => Ok(Some(keys.check(shown_key(headers), needs)?)),
        }
    }

    pub(crate) fn keys(&self) -> Option<&Keys> {
        match self {
            Access::Socket => None,
            Access::Loopback { keys, .. } | Access::Keys { keys, .. } => Some(keys),
        }
    }

    /// `router` with this rule in front. Pages that pass it are told so, and get their preflights answered, which carry
    /// no token.
    pub fn guard(self, router: Router) -> Router {
        let cors = match &self {
            Access::Loopback { hosts, .. } | Access::Keys { hosts, .. } => Some(cors(hosts.clone())),
            Access::Socket => None,
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
        .expose_headers(
            [UNSUPPORTED, RETRY_AFTER].into_iter().chain(rate_headers::names()).collect::<Vec<_>>(),
        )
}

/// Lets a request through, or answers it.
async fn check(State(access): State<Arc<Access>>, mut request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let needs = needed(request.method(), route);
    match access.check(request.uri(), request.headers(), needs) {
        Ok(client) => {
            let peer = request.extensions().get::<Peer>().copied();
            let client = client.or_else(|| peer.map(|Peer(address)| Client::of_address(address)));
            request.extensions_mut().insert(client.unwrap_or_default());
            next.run(request).await
        }
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

fn shown_key(headers: &HeaderMap) -> Option<&str> {
    let shown = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(bearer);
    // Anthropic's clients send the key in a header of its own.
    shown.or_else(|| headers.get("x-api-key").and_then(|value| value.to_str().ok()))
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
    use axum::body::Body;
    use axum::http::HeaderName;
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;
    use crate::Tokens;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn loopback(fields: &[(&'static str, &'static str)]) -> bool {
        let access = Access::Loopback { hosts: vec!["llm.lan".to_owned()], keys: Keys::default() };
        access.check(&Uri::from_static("/v1/models"), &headers(fields), Needs::AnyKey).is_ok()
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
        let access = Access::Loopback { hosts: Vec::new(), keys: Keys::default() };
        let absolute = Uri::from_static("http://evil.example/v1/models");
        assert!(access.check(&absolute, &headers(&[("host", "localhost")]), Needs::AnyKey).is_err());
    }

    #[test]
    fn pages_from_elsewhere_do_not_pass_on_loopback() {
        let from = |origin| loopback(&[("host", "localhost"), ("origin", origin)]);
        assert!(from("http://localhost:3000") && from("https://127.0.0.1") && from("http://llm.lan"));
        assert!(!from("https://evil.example") && !from("null") && !from("http://localhost.evil.example"));
    }

    #[test]
    fn elsewhere_only_a_token_passes() {
        let keys = Tokens::new(["0123456789abcdef"]).into();
        let access = Access::Keys { hosts: Vec::new(), keys };
        let passes = |fields| access.check(&Uri::from_static("/"), &headers(fields), Needs::AnyKey).is_ok();
        assert!(passes(&[("authorization", "Bearer 0123456789abcdef")]));
        assert!(passes(&[("authorization", "bearer  0123456789abcdef")]));
        assert!(passes(&[("x-api-key", "0123456789abcdef")]));
        assert!(!passes(&[("authorization", "Bearer 0123456789abcdeg")]));
        assert!(!passes(&[("authorization", "Basic 0123456789abcdef")]));
        assert!(!passes(&[("host", "localhost")]));
    }

    #[tokio::test]
    async fn pages_of_known_hosts_are_told_what_they_may_on_every_tcp_listener() {
        let send = async |access: &Access, method: &str, origin: &str| {
            let router = Router::new().route("/v1/models", get(|| async { "yes" }));
            let request = Request::builder().method(method).uri("/v1/models");
            let request = request.header(HOST, "llm.lan").header(ORIGIN, origin);
            // The browser's question carries no key.
            let request = match method {
                "OPTIONS" => request
                    .header("access-control-request-method", "GET")
                    .header("access-control-request-headers", "authorization"),
                _ => request.header(AUTHORIZATION, "Bearer 0123456789abcdef"),
            };
            let request = request.body(Body::empty()).unwrap();
            access.clone().guard(router).oneshot(request).await.unwrap()
        };
        let hosts = vec!["llm.lan".to_owned()];
        let keys = Keys::from(Tokens::new(["0123456789abcdef"]));
        let loopback = Access::Loopback { hosts: hosts.clone(), keys: keys.clone() };
        for access in [loopback, Access::Keys { hosts, keys }] {
            let allowed = send(&access, "OPTIONS", "https://llm.lan").await;
            assert_eq!(allowed.status(), 200);
            assert_eq!(allowed.headers()["access-control-allow-origin"], "https://llm.lan");
            assert_eq!(allowed.headers()["access-control-allow-headers"], "authorization");
            let shown = send(&access, "GET", "https://llm.lan").await;
            assert_eq!(shown.status(), 200);
            assert_eq!(shown.headers()["access-control-allow-origin"], "https://llm.lan");
            let exposed = shown.headers()["access-control-expose-headers"].to_str().unwrap();
            for name in ["retry-after", "x-ratelimit-remaining-tokens"] {
                assert!(exposed.contains(name), "{exposed}");
            }
            for method in ["OPTIONS", "GET"] {
                let refused = send(&access, method, "https://evil.example").await;
                assert!(!refused.headers().contains_key("access-control-allow-origin"), "{method}");
            }
        }
    }
}
