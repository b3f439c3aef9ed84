//! The document at `/openapi.json` against the router, and the page that shows it.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use mlxr_engine::EngineOptions;
use mlxr_server::Limits;

use crate::harness::{HOUSE, RANKER, app, app_with_embedders, ask, get, post};

const METHODS: [&str; 9] = ["get", "head", "delete", "options", "patch", "post", "put", "trace", "connect"];

/// `GET /path` for every route of the router. It tells them only to who debugs it, as
/// `routes: {RouteId(1): MethodRouter(MethodRouter { get: BoxedHandler, head: None, ... }` and, further on,
/// `paths: {RouteId(1): "/path", ...}`.
fn routes(router: &axum::Router) -> BTreeSet<String> {
    let text = format!("{router:?}");
    let (handlers, paths) =
        text.split_once("node: Node { paths: {").expect("the paths come after the handlers");
    let (paths, _) = paths.split_once('}').map(|_| paths.split_at(end_of_map(paths))).expect("the map ends");
    let mut routes = BTreeSet::new();
    for entry in paths.split("RouteId(").skip(1) {
        let (id, path) = entry.split_once("): \"").expect("an id and a path");
        let path = &path[..path.rfind('"').expect("a quoted path")];
        let marker = format!("RouteId({id}): ");
        let methods = &handlers[handlers.find(&marker).expect("a handler") + marker.len()..];
        let methods = methods.split("RouteId(").next().expect("the handler's methods");
        for method in METHODS {
            let (_, handler) = methods.split_once(&format!("{method}: ")).expect("every method is told");
            if !handler.starts_with("None") {
                routes.insert(format!("{method} {}", path.replace("{*", "{")));
            }
        }
    }
    routes
}

/// Where the braces of `{a: "{x}"}` without its first one are closed.
fn end_of_map(text: &str) -> usize {
    let mut is_quoted = false;
    let end = text.find(|c: char| {
        is_quoted ^= c == '"';
        c == '}' && !is_quoted
    });
    end.expect("the map is closed")
}

#[tokio::test]
async fn every_route_is_in_the_document_and_nothing_else() {
    let app = app();
    let document = get(&app, "/openapi.json").await;
    assert_eq!(document.headers["content-type"], "application/json");
    let document = document.json();
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap().iter();
    let described: BTreeSet<String> = paths
        .flat_map(|(path, item)| {
            item.as_object().unwrap().keys().map(move |method| format!("{method} {path}"))
        })
        .collect();
    let known = routes(&app.router());
    assert!(known.len() > 25, "{known:?}");
    let forgotten: Vec<_> = known.difference(&described).collect();
    assert!(forgotten.is_empty(), "add to src/openapi: {forgotten:?}");
    let gone: Vec<_> = described.difference(&known).collect();
    assert!(gone.is_empty(), "no such routes: {gone:?}");
}

#[tokio::test]
async fn what_is_described_is_answered() {
    let app = app();
    let document = get(&app, "/openapi.json").await.json();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let uri = path.replace(['{', '}'], "");
            let request = Request::builder().method(method.to_uppercase().as_str()).uri(&uri);
            let answer = ask(&app, request.body(Body::empty()).unwrap()).await;
            let is_known =
                !answer.text.contains("no such route") && answer.status != StatusCode::METHOD_NOT_ALLOWED;
            assert!(is_known && !answer.status.is_server_error(), "{method} {path}: {}", answer.text);
        }
    }
}

/// Routes that need a folder, that refuse whatever is asked, or that end the server.
const APART: [&str; 7] = [
    "/api/create",
    "/api/copy",
    "/api/delete",
    "/api/pull",
    "/api/push",
    "/mlxr/v1/config",
    "/mlxr/v1/shutdown",
];

#[tokio::test]
async fn every_example_succeeds() {
    let app = app_with_embedders(EngineOptions::default(), Limits::default());
    let document = get(&app, "/openapi.json").await.json();
    let mut n_sent = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let content = &operation["requestBody"]["content"]["application/json"];
            if content.is_null() {
                continue;
            }
            let examples = content["examples"].as_object();
            let examples = examples.unwrap_or_else(|| panic!("{method} {path} has no example"));
            for (name, example) in examples.iter().filter(|_| !APART.contains(&path.as_str())) {
                let mut body = example["value"].clone();
                body["model"] = match body["model"].as_str() {
                    Some("mlxr-27m") => HOUSE.into(),
                    Some("reranker") => RANKER.into(),
                    other => panic!("{method} {path}: {name}: {other:?}"),
                };
                let answer = ask(&app, post(path, &body)).await;
                assert_eq!(answer.status, StatusCode::OK, "{method} {path}: {name}: {}", answer.text);
                assert!(!answer.text.contains("warnings"), "{method} {path}: {name}: {}", answer.text);
                n_sent += 1;
            }
        }
    }
    assert!(n_sent > 20, "{n_sent}");
}

#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere() {
    let page = get(&app(), "/docs").await;
    assert_eq!(page.status, StatusCode::OK);
    assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
    assert!(page.headers["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
    assert!(page.text.contains("openapi.json"));
    for elsewhere in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!page.text.contains(elsewhere), "{elsewhere}");
    }
}
