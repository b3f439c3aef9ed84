//! What a key may do, and what each route needs.

use std::fmt;
use std::str::FromStr;

use axum::http::Method;
use serde::{Deserialize, Serialize};

/// A permission. [`Scope::Admin`] includes the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Generate, embed, tokenise.
    Inference,
    /// Load, unload, create, copy and delete models.
    Models,
    /// Read metrics and statistics.
    Metrics,
    /// Everything.
    Admin,
}

impl Scope {
    pub const ALL: [Scope; 4] = [Scope::Inference, Scope::Models, Scope::Metrics, Scope::Admin];

    pub const fn name(self) -> &'static str {
        match self {
            Scope::Inference => "inference",
            Scope::Models => "models",
            Scope::Metrics => "metrics",
            Scope::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Scope, String> {
        let known = Scope::ALL.into_iter().find(|scope| scope.name() == text);
        known.ok_or_else(|| "expected inference, models, metrics or admin".to_owned())
    }
}

/// What a route asks of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Any valid key: these say what is here and do nothing.
    AnyKey,
    Scope(Scope),
}

/// Routes that only read what any client may know.
const OPEN: [&str; 12] = [
    "/",
    "/health",
    "/openapi.json",
    "/docs",
    "/v1/models",
    "/v1/models/{*id}",
    "/api/tags",
    "/api/show",
    "/api/ps",
    "/api/version",
    "/mlxr/v1/version",
    "/mlxr/v1/health",
];

/// Routes that give or take tokens, by their beginnings. A beginning that ends in a slash has more routes below.
const INFERENCE: [&str; 14] = [
    "/v1/",
    "/v2/rerank",
    "/rerank",
    "/api/generate",
    "/api/chat",
    "/api/embed",
    "/api/embeddings",
    "/mlxr/v1/tokenize",
    "/mlxr/v1/detokenize",
    "/mlxr/v1/apply-template",
    "/mlxr/v1/score",
    "/mlxr/v1/rerank",
    "/mlxr/v1/embed",
    "/mlxr/v1/cache/explain",
];

const MODELS: [&str; 13] = [
    "/v1/models/",
    "/api/create",
    "/api/copy",
    "/api/delete",
    "/api/pull",
    "/api/push",
    "/api/blobs/",
    "/mlxr/v1/load",
    "/mlxr/v1/unload",
    "/mlxr/v1/plan",
    "/mlxr/v1/models",
    "/mlxr/v1/models/",
    "/mlxr/v1/blobs/",
];

const METRICS: [&str; 3] = ["/metrics", "/mlxr/v1/metrics", "/mlxr/v1/stats"];

/// What `route`, a pattern of the router, needs. `None` is a path without a route: the answer is that there is none. A
/// route that no list names needs [`Scope::Admin`], so that a forgotten one is closed.
pub(crate) fn needed(method: &Method, route: Option<&str>) -> Needs {
    let Some(route) = route else { return Needs::AnyKey };
    let is_in = |list: &[&str]| {
        list.iter().any(|known| *known == route || known.ends_with('/') && route.starts_with(known))
    };
    let is_read = method == Method::GET || method == Method::HEAD;
    if route == "/api/show" || is_read && OPEN.contains(&route) {
        Needs::AnyKey
    } else if is_in(&INFERENCE) && !route.starts_with("/v1/models") {
        Needs::Scope(Scope::Inference)
    } else if is_in(&MODELS) {
        // Lists of models are no secret; what changes them is not for everybody.
        if is_read && route == "/mlxr/v1/models" { Needs::AnyKey } else { Needs::Scope(Scope::Models) }
    } else if is_in(&METRICS) {
        Needs::Scope(Scope::Metrics)
    } else {
        Needs::Scope(Scope::Admin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_need_what_they_do() {
        let check = |method: Method, route: &str, expected: Needs| {
            assert_eq!(needed(&method, Some(route)), expected, "{method} {route}");
        };
        check(Method::GET, "/v1/models", Needs::AnyKey);
        check(Method::GET, "/v1/models/{*id}", Needs::AnyKey);
        check(Method::POST, "/api/show", Needs::AnyKey);
        check(Method::POST, "/v1/chat/completions", Needs::Scope(Scope::Inference));
        check(Method::POST, "/v1/messages/count_tokens", Needs::Scope(Scope::Inference));
        check(Method::DELETE, "/v1/responses/{id}", Needs::Scope(Scope::Inference));
        check(Method::DELETE, "/v1/models/{*id}", Needs::Scope(Scope::Models));
        check(Method::DELETE, "/api/delete", Needs::Scope(Scope::Models));
        check(Method::POST, "/api/blobs/{digest}", Needs::Scope(Scope::Models));
        check(Method::GET, "/mlxr/v1/models", Needs::AnyKey);
        check(Method::POST, "/mlxr/v1/models/{name}/load", Needs::Scope(Scope::Models));
        check(Method::GET, "/metrics", Needs::Scope(Scope::Metrics));
        check(Method::GET, "/mlxr/v1/requests", Needs::Scope(Scope::Admin));
        check(Method::POST, "/mlxr/v1/shutdown", Needs::Scope(Scope::Admin));
        check(Method::POST, "/nobody/thought/of/it", Needs::Scope(Scope::Admin));
        assert_eq!(needed(&Method::GET, None), Needs::AnyKey);
    }

    #[test]
    fn names_of_scopes_are_read_back() {
        for scope in Scope::ALL {
            assert_eq!(scope.name().parse(), Ok(scope));
        }
        assert!("root".parse::<Scope>().is_err());
    }
}
