//! Models that are made, copied and deleted while the server runs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use mlxr_engine::EngineOptions;
use mlxr_server::catalogue::{Catalogue, Digest};
use mlxr_server::{App, KeepAlive, Limits, Memory, ModelList, ModelSource, Models};
use serde_json::{Value, json};

use crate::harness::{Answer, HOUSE, ROOMY, TINY, app, ask, ask_json, get, post, setup, specs};

const ASK: &str = "Tell me a story about a cat.";

fn bundled() -> ModelSource {
    specs()[0].source.clone()
}

fn models(folder: &Path, keep_alive: KeepAlive) -> Arc<Models> {
    let list = ModelList::new(specs()).unwrap();
    let list = list.with_catalogue(Arc::new(Catalogue::open(folder)), Some(bundled()));
    Arc::new(Models::with_list(list, setup(EngineOptions::default()), ROOMY, keep_alive))
}

/// A service whose models are in this folder.
fn app_in(folder: &Path) -> Arc<App> {
    App::new(models(folder, KeepAlive::Forever), Limits::default()).unwrap()
}

fn request(method: Method, path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::builder().method(method).uri(path).body(body.into()).unwrap()
}

async fn create(app: &Arc<App>, body: Value) -> Answer {
    let mut body = body;
    body["stream"] = false.into();
    ask(app, post("/api/create", body)).await
}

async fn created(app: &Arc<App>, body: Value) {
    let answer = create(app, body).await;
    assert_eq!((answer.status, answer.json()), (StatusCode::OK, json!({"status": "success"})));
}

async fn refused(app: &Arc<App>, body: Value) -> String {
    let answer = create(app, body).await;
    assert!(answer.status.is_client_error(), "{}", answer.text);
    answer.json()["error"].as_str().unwrap().to_owned()
}

async fn listed(app: &Arc<App>) -> Vec<String> {
    let list = get(app, "/api/tags").await.json();
    list["models"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap().to_owned()).collect()
}

async fn chat(app: &Arc<App>, model: &str, messages: Value, options: Value) -> Value {
    let body = json!({"model": model, "messages": messages, "options": options, "stream": false});
    ask_json(app, "/api/chat", body).await
}

#[tokio::test]
async fn a_model_made_from_another_brings_along_what_it_was_given() {
    let dir = tempfile::tempdir().unwrap();
    let app = app_in(dir.path());
    created(
        &app,
        json!({
            "model": "me/mario:7b", "from": HOUSE, "system": "You are Mario.", "license": ["MIT"],
            "parameters": {"temperature": 0, "repeat_penalty": 1, "num_predict": 5, "stop": "time"},
            "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "It's me."}],
        }),
    )
    .await;
    assert_eq!(listed(&app).await, [HOUSE, "me/mario:7b", TINY]);
    let greedy = json!({"temperature": 0, "repeat_penalty": 1, "num_predict": 5, "stop": ["time"]});
    let spelt_out = json!([
        {"role": "system", "content": "You are Mario."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "It's me."}, {"role": "user", "content": ASK},
    ]);
    let expected = chat(&app, HOUSE, spelt_out, greedy).await;
    let ours = chat(&app, "ME/mario:7b", json!([{"role": "user", "content": ASK}]), json!({})).await;
    assert_eq!(ours["message"], expected["message"]);
    assert_eq!(ours["prompt_eval_count"], expected["prompt_eval_count"]);
    let body = json!({"model": "me/mario:7b", "messages": [{"role": "user", "content": ASK}]});
    let openai = ask_json(&app, "/v1/chat/completions", body).await;
    assert_eq!(openai["choices"][0]["message"]["content"], expected["message"]["content"]);
    assert_eq!(openai["usage"]["prompt_tokens"], expected["prompt_eval_count"]);

    let shown = ask_json(&app, "/api/show", json!({"model": "me/mario:7b"})).await;
    assert_eq!((&shown["system"], &shown["license"]), (&json!("You are Mario."), &json!("MIT")));
    assert_eq!(shown["details"]["parent_model"], HOUSE);
    assert_eq!(shown["messages"][1]["content"], "It's me.");
    let parameters = shown["parameters"].as_str().unwrap();
    assert!(parameters.lines().any(|line| line == "stop \"time\""), "{parameters}");
    let modelfile = shown["modelfile"].as_str().unwrap();
    for line in
        ["FROM me/mario:7b", "SYSTEM \"You are Mario.\"", "PARAMETER num_predict 5", "MESSAGE user Hi"]
    {
        assert!(modelfile.lines().any(|found| found == line), "{line} is not in\n{modelfile}");
    }
}

#[tokio::test]
async fn models_are_inherited_from_copied_and_deleted_and_outlive_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let app = app_in(dir.path());
    created(&app, json!({"model": "a", "from": HOUSE, "system": "S", "parameters": {"top_k": 7, "seed": 1}}))
        .await;
    created(&app, json!({"model": "b", "from": "a", "parameters": {"top_k": 8}})).await;
    let copied = ask(&app, post("/api/copy", json!({"source": "b", "destination": "c:x"}))).await;
    assert_eq!((copied.status, copied.text.as_str()), (StatusCode::OK, ""));

    let app = app_in(dir.path());
    assert_eq!(listed(&app).await, ["a", "b", "c:x", HOUSE, TINY]);
    let shown = ask_json(&app, "/api/show", json!({"model": "c:x"})).await;
    assert_eq!((&shown["system"], &shown["details"]["parent_model"]), (&json!("S"), &json!("a")));
    let parameters: Vec<&str> = shown["parameters"].as_str().unwrap().lines().collect();
    assert!(parameters.contains(&"top_k 8") && parameters.contains(&"seed 1"), "{parameters:?}");

    let delete = |name: &str| request(Method::DELETE, "/api/delete", json!({"model": name}).to_string());
    for name in ["a", "C:X:latest", "c:x"] {
        let answer = ask(&app, delete(name)).await;
        let expected = if name == "C:X:latest" { StatusCode::BAD_REQUEST } else { StatusCode::OK };
        assert_eq!(answer.status, expected, "{name}: {}", answer.text);
    }
    assert_eq!(listed(&app).await, ["b", HOUSE, TINY]);
    assert_eq!(ask(&app, delete("a")).await.status, StatusCode::NOT_FOUND);
    created(&app, json!({"model": "x/y:z", "from": TINY})).await;
    let delete = |name: &str| request(Method::DELETE, &format!("/v1/models/{name}"), "");
    let deleted = ask(&app, delete("x/y:z")).await;
    assert_eq!(deleted.json(), json!({"id": "x/y:z", "object": "model", "deleted": true}));
    assert_eq!(ask(&app, delete("x/y:z")).await.status, StatusCode::NOT_FOUND);
    let fixed = ask(&app, delete(TINY)).await;
    assert_eq!((fixed.status, &fixed.json()["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("model")));
    assert_eq!(
        chat(&app, "b", json!([{"role": "user", "content": ASK}]), json!({"num_predict": 1})).await["done"],
        true
    );
    let kept = ask(&app, delete(HOUSE)).await;
    assert!(kept.status == StatusCode::BAD_REQUEST && kept.text.contains("--model"), "{}", kept.text);
}

#[tokio::test]
async fn files_are_sent_checked_and_made_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let app = app_in(dir.path());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/tiny/llama/hf");
    let mut files = serde_json::Map::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let content = std::fs::read(&path).unwrap();
        let digest = Digest::of(&content).to_string();
        let uri = format!("/api/blobs/{digest}");
        assert_eq!(ask(&app, request(Method::HEAD, &uri, "")).await.status, StatusCode::NOT_FOUND);
        let wrong = ask(&app, request(Method::POST, &uri, "something else")).await;
        assert!(
            wrong.status == StatusCode::BAD_REQUEST && wrong.text.contains("has the digest"),
            "{}",
            wrong.text
        );
        assert_eq!(ask(&app, request(Method::HEAD, &uri, "")).await.status, StatusCode::NOT_FOUND);
        for expected in [StatusCode::CREATED, StatusCode::OK] {
            assert_eq!(ask(&app, request(Method::POST, &uri, content.clone())).await.status, expected);
        }
        assert_eq!(ask(&app, request(Method::HEAD, &uri, "")).await.status, StatusCode::OK);
        files.insert(path.file_name().unwrap().to_str().unwrap().to_owned(), digest.into());
    }
    let answer = ask(&app, post("/api/create", json!({"model": "sent", "files": files.clone()}))).await;
    assert_eq!(answer.headers["content-type"], "application/x-ndjson");
    let statuses: Vec<Value> = answer.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(statuses.first().unwrap()["status"], "converting model", "{}", answer.text);
    assert_eq!(statuses.last().unwrap(), &json!({"status": "success"}), "{}", answer.text);

    let prompt = json!({"prompt": "Once", "temperature": 0, "max_tokens": 4});
    let complete = async |model: &str| {
        let mut body = prompt.clone();
        body["model"] = model.into();
        ask_json(&app, "/v1/completions", body).await["choices"][0]["text"].clone()
    };
    assert_eq!(complete("sent").await, complete(TINY).await, "the same weights say the same");

    // A file that is no model ends the stream with an error, and nothing is made.
    let junk = Digest::of(b"GGUFjunk").to_string();
    ask(&app, request(Method::POST, &format!("/api/blobs/{junk}"), "GGUFjunk")).await;
    let answer = ask(&app, post("/api/create", json!({"model": "junk", "files": {"x.gguf": junk}}))).await;
    let last: Value = serde_json::from_str(answer.text.lines().last().unwrap()).unwrap();
    assert!(last["error"].as_str().unwrap().contains("cannot be used"), "{last}");
    let missing = Digest::of(b"nobody").to_string();
    assert!(refused(&app, json!({"model": "x", "files": {"x.gguf": missing}})).await.contains("is not here"));
    let outside = json!({"model": "x", "files": {"../x": files.values().next().unwrap()}});
    assert!(refused(&app, outside).await.contains("no path below a folder"));
    assert_eq!(listed(&app).await, [HOUSE, "sent", TINY]);
}

#[tokio::test]
async fn weights_are_quantised_on_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let app = app_in(dir.path());
    created(&app, json!({"model": "small", "from": TINY, "quantize": "q8_0"})).await;
    let shown = ask_json(&app, "/api/show", json!({"model": "small"})).await;
    assert_eq!(shown["details"]["quantization_level"], "Q8_0", "{}", shown["details"]);
    let blobs = || std::fs::read_dir(dir.path().join("blobs")).unwrap().count();
    assert_eq!(blobs(), 1, "what was made on the way is gone");
    ask(&app, request(Method::DELETE, "/api/delete", json!({"name": "small"}).to_string())).await;
    assert_eq!(blobs(), 0, "the weights went with their model");
}

#[tokio::test]
async fn mistakes_are_named_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let app = app_in(dir.path());
    let made = |extra: Value| {
        let mut body = json!({"model": "m", "from": HOUSE});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    for (extra, expected) in [
        (json!({"model": "a b"}), "is no name for a model"),
        (json!({"model": HOUSE}), "choose another name"),
        (json!({"from": "nobody"}), "model 'nobody' not found"),
        (json!({"from": "/etc/passwd"}), "mlxr create"),
        (json!({"from": null}), "neither from nor files"),
        (json!({"files": {"a": "x"}}), "from and files are both given"),
        (json!({"from": null, "files": {"a": "x"}}), "is no digest"),
        (json!({"adapters": {"a": "x"}}), "adapters are not applied yet"),
        (json!({"quantize": "q99"}), "q99"),
        (json!({"template": "{{ .Prompt }}"}), "Go's language"),
        (json!({"parameters": {"temprature": 1}}), "did you mean \"temperature\"?"),
        (json!({"parameters": {"num_ctx": 1_000_000}}), "num_ctx is 1000000"),
        (json!({"messages": [{"role": "king", "content": "x"}]}), "role is \"king\""),
        (json!({"messages": [{"role": "user", "content": "x", "images": ["x"]}]}), "not images"),
        (json!({"from": null, "modelfile": "FORM x"}), "did you mean \"FROM\"?"),
    ] {
        let error = refused(&app, made(extra.clone())).await;
        assert!(error.contains(expected), "{extra}: {error}");
    }
    assert!(create(&app, made(json!({"sytem": "x"}))).await.headers["x-mlxr-unsupported"] == "sytem");
    let idle = create(&app, made(json!({"parameters": {"num_gpu": 1, "top_k": 2}}))).await;
    assert_eq!(idle.headers["x-mlxr-unsupported"], "parameters.num_gpu");
    let strict = Limits { strict: true, ..Limits::default() };
    let strict = App::new(models(dir.path(), KeepAlive::Forever), strict).unwrap();
    let error = refused(&strict, made(json!({"parameters": {"num_gpu": 1}}))).await;
    assert!(error.contains("num_gpu is not honoured"), "{error}");
    for path in ["/api/pull", "/api/push"] {
        let answer = ask(&app, post(path, json!({"model": "llama3.2"}))).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(
            answer.text.contains("no store of models") && answer.text.contains("mlxr"),
            "{}",
            answer.text
        );
    }
    for (method, path) in [(Method::POST, "/api/blobs/x"), (Method::HEAD, "/api/blobs/sha256:12")] {
        assert_eq!(ask(&app, request(method, path, "")).await.status, StatusCode::BAD_REQUEST);
    }
    let copy = async |source: &str, destination: &str| {
        ask(&app, post("/api/copy", json!({"source": source, "destination": destination}))).await.status
    };
    assert_eq!(copy("nobody", "x").await, StatusCode::NOT_FOUND);
    assert_eq!(copy(HOUSE, TINY).await, StatusCode::BAD_REQUEST);
    assert_eq!(listed(&app).await, [HOUSE, "m", TINY], "only the field without effect let it through");

    let without = crate::harness::app();
    assert!(refused(&without, made(json!({}))).await.contains("--data-dir"));
}

#[tokio::test]
async fn a_blob_has_a_largest_size() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { max_blob_bytes: 3, ..Limits::default() };
    let app = App::new(models(dir.path(), KeepAlive::Forever), limits).unwrap();
    let send = |content: &'static str| {
        let uri = format!("/api/blobs/{}", Digest::of(content.as_bytes()));
        request(Method::POST, &uri, Body::from_stream(Once(Some(content))))
    };
    assert_eq!(ask(&app, send("abc")).await.status, StatusCode::CREATED);
    assert_eq!(ask(&app, send("abcd")).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    let files = std::fs::read_dir(dir.path().join("blobs")).unwrap().count();
    assert_eq!(files, 1, "nothing is left of the large one");
}

/// A body of unknown length.
struct Once(Option<&'static str>);

impl futures_core::Stream for Once {
    type Item = Result<&'static str, std::convert::Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        std::task::Poll::Ready(self.0.take().map(Ok))
    }
}

#[tokio::test]
async fn a_model_in_use_finishes_as_it_was_and_the_next_request_gets_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let app = app_in(dir.path());
    created(&app, json!({"model": "m", "from": TINY, "system": "old"})).await;
    let old = app.models.acquire("m").await.unwrap();
    created(&app, json!({"model": "m", "from": TINY, "system": "new"})).await;
    let new = app.models.acquire("m").await.unwrap();
    assert_eq!((old.settings.system.as_deref(), new.settings.system.as_deref()), (Some("old"), Some("new")));
    assert_eq!(app.models.resident().len(), 2, "the old one is still in use");
    drop(old);
    app.models.unload_expired().await;
    let left = app.models.resident();
    assert_eq!((left.len(), left[0].settings.system.as_deref()), (1, Some("new")));
    ask(&app, request(Method::DELETE, "/api/delete", json!({"model": "m"}).to_string())).await;
    assert_eq!(app.models.acquire("m").await.unwrap_err().status(), StatusCode::NOT_FOUND);
    drop(new);
    app.models.unload_expired().await;
    assert!(app.models.resident().is_empty());
}

#[tokio::test]
async fn a_pinned_model_stays_and_a_model_has_its_own_keep_alive() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("models");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("pinned.yaml"), "source: bundled\npin: true\n").unwrap();
    std::fs::write(folder.join("brief.yaml"), "source: bundled\nkeep_alive: 0\n").unwrap();
    let hour = KeepAlive::For(Duration::from_secs(3600));
    let models = models(dir.path(), hour);
    drop(models.acquire("brief").await.unwrap());
    drop(models.acquire("pinned").await.unwrap());
    models.set_keep_alive("pinned", KeepAlive::For(Duration::ZERO));
    assert_eq!(models.unload_expired().await, None);
    let names: Vec<String> = models.resident().iter().map(|model| model.name.clone()).collect();
    assert_eq!(names, ["pinned"]);
}

#[tokio::test]
async fn a_pinned_model_makes_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("models");
    std::fs::create_dir_all(&folder).unwrap();
    for (name, pin) in [("pinned", true), ("other", false), ("third", false)] {
        let text = format!("source: bundled\npin: {pin}\n");
        std::fs::write(folder.join(format!("{name}.yaml")), text).unwrap();
    }
    // An arena of a fixed size does not shrink to what is left.
    let options = EngineOptions { kv_bytes: Some(16 << 20), n_ctx: Some(256), ..EngineOptions::default() };
    let with_memory = |limit_bytes: u64| {
        let list = ModelList::new(specs()).unwrap();
        let list = list.with_catalogue(Arc::new(Catalogue::open(dir.path())), Some(bundled()));
        Arc::new(Models::with_list(list, setup(options), Memory { limit_bytes }, KeepAlive::Forever))
    };
    let one = with_memory(ROOMY.limit_bytes).acquire("other").await.unwrap().plan.total_bytes();
    let models = with_memory(one * 5 / 2);
    for name in ["pinned", "other", "third"] {
        drop(models.acquire(name).await.unwrap());
    }
    let mut names: Vec<String> = models.resident().iter().map(|model| model.name.clone()).collect();
    names.sort();
    assert_eq!(names, ["pinned", "third"], "the one that was idle longest goes, but not the pinned one");
    let busy = models.acquire("third").await.unwrap();
    let refused = models.acquire("other").await.unwrap_err();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE, "{refused}");
    drop(busy);
}

#[tokio::test]
async fn a_broken_file_hides_no_other_model() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("models");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("gone.yaml"), "source: /nowhere.gguf\n").unwrap();
    std::fs::write(folder.join("typo.yaml"), "source: bundled\nsytem: x\n").unwrap();
    let app = app_in(dir.path());
    assert_eq!(listed(&app).await, [HOUSE, TINY]);
    let answer = ask(&app, post("/api/generate", json!({"model": "typo", "prompt": "x"}))).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(answer.text.contains("typo.yaml:2:1") && answer.text.contains("did you mean"), "{}", answer.text);
    let removed =
        ask(&app, request(Method::DELETE, "/api/delete", json!({"model": "typo"}).to_string())).await;
    assert_eq!(removed.status, StatusCode::OK, "{}", removed.text);
    // A server without such a folder is as before.
    assert_eq!(listed(&self::app()).await, [HOUSE, TINY]);
}
