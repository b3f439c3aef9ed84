//! The OpenAPI 3.1 document of every route, built from the wire types' own schemas.
//!
//! One file per dialect lists its routes. Invariant: each route of the router is described here and each description
//! has its route; a test compares the two.

mod anthropic;
mod endpoint;
mod native;
mod ollama;
mod openai;
mod service;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use bytes::Bytes;
use serde_json::{Value, json};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{
    ComponentsBuilder, InfoBuilder, License, OpenApi, OpenApiBuilder, Paths, RefOr, Schema,
};

use endpoint::Endpoint;

/// Routes of one family of clients.
struct Section {
    tag: &'static str,
    about: &'static str,
    endpoints: Vec<Endpoint>,
}

/// The model that examples ask for: the bundled one.
const MODEL: &str = "mlxr-27m";

/// What examples call a cross-encoder.
const RERANKER: &str = "reranker";

/// The prompt of examples.
const BEGINNING: &str = "Once upon a time";

/// The conversation of examples.
fn question() -> Value {
    json!([{"role": "user", "content": "Tell me a story about a fox."}])
}

const ABOUT: &str = "\
A local LLM engine and server. The same models answer OpenAI's, Ollama's and Anthropic's clients, and `/mlxr/v1` looks \
after the server itself.

Fields that are known but have no effect are named in the header `x-mlxr-unsupported` and in `warnings`; with `strict` \
they are refused. Requests with a body may take up to the server's body limit; more is refused with 413. A full queue \
is refused at once with 429 and `Retry-After`. Dropping the connection cancels what it had asked for.";

/// The document as it goes over the wire.
pub fn text() -> Bytes {
    static TEXT: OnceLock<Bytes> = OnceLock::new();
    // Our own types always serialise.
    TEXT.get_or_init(|| serde_json::to_vec(&document()).unwrap_or_default().into()).clone()
}

fn sections() -> [Section; 5] {
    [openai::section(), ollama::section(), anthropic::section(), native::section(), service::section()]
}

fn document() -> OpenApi {
    let mut paths = Paths::new();
    let mut schemas: BTreeMap<String, RefOr<Schema>> = BTreeMap::new();
    let mut tags = Vec::new();
    for Section { tag, about, endpoints } in sections() {
        tags.push(TagBuilder::new().name(tag).description(Some(about)).build());
        for mut endpoint in endpoints {
            schemas.append(&mut endpoint.schemas.drain(..).collect());
            let (path, method) = (endpoint.path, endpoint.method.clone());
            paths.add_path_operation(path, vec![method], endpoint.operation(tag));
        }
    }
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(
        "Demanded by listeners that other machines can reach, and on loopback where the server has tokens.",
    ));
    let components = ComponentsBuilder::new()
        .schemas_from_iter(schemas)
        .security_scheme("bearer", SecurityScheme::Http(bearer.build()))
        .build();
    let mut license = License::new("Apache-2.0");
    license.identifier = Some("Apache-2.0".to_owned());
    let info = InfoBuilder::new()
        .title("mlxr")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(ABOUT))
        .license(Some(license));
    OpenApiBuilder::new()
        .info(info.build())
        .paths(paths)
        .components(Some(components))
        .tags(Some(tags))
        // Either is enough: a token, or a listener that asks for none.
        .security(Some([
            SecurityRequirement::default(),
            SecurityRequirement::new::<_, [String; 0], _>("bearer", []),
        ]))
        .build()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_types_share_a_name() {
        let mut known: BTreeMap<String, RefOr<Schema>> = BTreeMap::new();
        let endpoints = sections().into_iter().flat_map(|section| section.endpoints);
        for (name, schema) in endpoints.flat_map(|endpoint| endpoint.schemas) {
            if let Some(other) = known.insert(name.clone(), schema.clone()) {
                assert!(other == schema, "{name} is the name of two types");
            }
        }
        assert!(known.len() > 50, "{}", known.len());
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_operation_has_a_name_of_its_own() {
        let document: Value = serde_json::from_slice(&text()).expect("JSON");
        let schemas = document["components"]["schemas"].as_object().expect("schemas");
        let (mut open, mut n_references) = (vec![&document], 0);
        while let Some(value) = open.pop() {
            if let Some(Value::String(reference)) = value.get("$ref") {
                let name = reference.strip_prefix("#/components/schemas/").expect("a schema");
                assert!(schemas.contains_key(name), "{name} is not described");
                n_references += 1;
            }
            match value {
                Value::Array(list) => open.extend(list),
                Value::Object(map) => open.extend(map.values()),
                _ => {}
            }
        }
        assert!(n_references > 100, "{n_references}");
        let operations = document["paths"].as_object().expect("paths").values().flat_map(|path| {
            path.as_object().expect("methods").values().map(|operation| operation["operationId"].to_string())
        });
        let ids: Vec<String> = operations.collect();
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
    }
}
