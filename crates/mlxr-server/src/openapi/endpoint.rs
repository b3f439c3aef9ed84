//! One route as the document describes it.

use serde_json::Value;
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::extensions::ExtensionsBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{AllOfBuilder, ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{Content, ContentBuilder, Ref, RefOr, Required, ResponseBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

const JSON: &str = "application/json";

/// See the module.
pub struct Endpoint {
    pub path: &'static str,
    pub method: HttpMethod,
    /// The schemas the description refers to, by name.
    pub schemas: Vec<(String, RefOr<Schema>)>,
    operation: OperationBuilder,
    body: Option<Body>,
    ok: ResponseBuilder,
}

/// What goes in.
struct Body {
    content_type: &'static str,
    schema: RefOr<Schema>,
    examples: Vec<(&'static str, Value)>,
    required: Required,
}

impl Endpoint {
    pub fn get(path: &'static str, summary: &str) -> Endpoint {
        Endpoint::new(HttpMethod::Get, path, summary)
    }

    pub fn post(path: &'static str, summary: &str) -> Endpoint {
        Endpoint::new(HttpMethod::Post, path, summary)
    }

    pub fn delete(path: &'static str, summary: &str) -> Endpoint {
        Endpoint::new(HttpMethod::Delete, path, summary)
    }

    pub fn new(method: HttpMethod, path: &'static str, summary: &str) -> Endpoint {
        let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        let name = words.fold(method_name(&method).to_owned(), |name, word| name + "_" + word);
        Endpoint {
            path,
            method,
            schemas: Vec::new(),
            operation: OperationBuilder::new().operation_id(Some(name)).summary(Some(summary)),
            body: None,
            ok: ResponseBuilder::new().description("It worked."),
        }
    }

    /// More than the summary.
    pub fn about(mut self, text: &str) -> Endpoint {
        self.operation = self.operation.description(Some(text));
        self
    }

    /// A JSON body.
    pub fn body<T: ToSchema>(mut self) -> Endpoint {
        let schema = self.reference::<T>();
        self.with_body(JSON, schema)
    }

    /// A JSON body with the fields of both types.
    pub fn body_with<T: ToSchema, More: ToSchema>(mut self) -> Endpoint {
        let both = AllOfBuilder::new().item(self.reference::<T>()).item(self.reference::<More>());
        self.with_body(JSON, Schema::AllOf(both.build()).into())
    }

    /// A body of any bytes.
    pub fn bytes(self) -> Endpoint {
        let schema = ObjectBuilder::new().schema_type(SchemaType::Type(Type::String));
        self.with_body("application/octet-stream", RefOr::T(Schema::Object(schema.build())))
    }

    /// A second way it may have worked.
    pub fn also(mut self, status: u16, about: &str) -> Endpoint {
        let response = ResponseBuilder::new().description(about);
        self.operation = self.operation.response(status.to_string(), response);
        self
    }

    fn with_body(mut self, content_type: &'static str, schema: RefOr<Schema>) -> Endpoint {
        self.body = Some(Body { content_type, schema, examples: Vec::new(), required: Required::True });
        self
    }

    /// A body to begin with, for the bundled model. A test sends it.
    pub fn example(mut self, name: &'static str, example: Value) -> Endpoint {
        if let Some(body) = &mut self.body {
            body.examples.push((name, example));
        }
        self
    }

    /// The body may be left out.
    pub fn optional(mut self) -> Endpoint {
        self.body = self.body.map(|body| Body { required: Required::False, ..body });
        self
    }

    /// A part of the path.
    pub fn part(self, name: &str, about: &str) -> Endpoint {
        self.parameter(ParameterIn::Path, Required::True, name, about, text())
    }

    /// A parameter behind `?`.
    pub fn query(self, name: &str, about: &str, schema: RefOr<Schema>) -> Endpoint {
        self.parameter(ParameterIn::Query, Required::False, name, about, schema)
    }

    fn parameter(
        mut self,
        place: ParameterIn,
        required: Required,
        name: &str,
        about: &str,
        schema: RefOr<Schema>,
    ) -> Endpoint {
        let parameter = ParameterBuilder::new()
            .name(name)
            .parameter_in(place)
            .required(required)
            .description(Some(about))
            .schema(Some(schema));
        self.operation = self.operation.parameter(parameter);
        self
    }

    /// What comes back as JSON.
    pub fn answer<T: ToSchema>(mut self) -> Endpoint {
        let schema = self.reference::<T>();
        self.ok = self.ok.content(JSON, Content::new(Some(schema)));
        self
    }

    /// What comes back as text, or in a format with a name of its own.
    pub fn answer_text(mut self, content_type: &str) -> Endpoint {
        self.ok = self.ok.content(content_type, Content::new(Some(text())));
        self
    }

    /// What comes back as JSON that has a schema elsewhere.
    pub fn answer_object(mut self) -> Endpoint {
        let schema = ObjectBuilder::new().schema_type(SchemaType::Type(Type::Object)).build();
        self.ok = self.ok.content(JSON, Content::new(Some(Schema::Object(schema))));
        self
    }

    /// What comes back as server-sent events, each with a `T` as its data.
    pub fn events<T: ToSchema>(self, about: &str) -> Endpoint {
        let event = ObjectBuilder::new().property("event", text()).property("data", text()).required("data");
        self.stream::<T>("text/event-stream", event.description(Some(about)))
    }

    /// What comes back as lines of JSON, each a `T`.
    pub fn lines<T: ToSchema>(self, about: &str) -> Endpoint {
        let lines = ObjectBuilder::new().schema_type(SchemaType::Type(Type::String));
        self.stream::<T>("application/x-ndjson", lines.description(Some(about)))
    }

    /// OpenAPI 3.1 has no word for the JSON in the pieces of a stream: the schema is that of one event, as its readers
    /// take it, or of all lines as one text, and the extension `x-item-schema` that of the JSON.
    fn stream<T: ToSchema>(mut self, content_type: &str, schema: ObjectBuilder) -> Endpoint {
        let item = serde_json::to_value(self.reference::<T>()).unwrap_or(Value::Null);
        let content = ContentBuilder::new()
            .schema(Some(RefOr::T(Schema::Object(schema.build()))))
            .extensions(Some(ExtensionsBuilder::new().add("x-item-schema", item).build()));
        self.ok = self.ok.content(content_type, content.build());
        self
    }

    /// A status of its own and when it comes.
    pub fn refuses<E: ToSchema>(mut self, status: u16, about: &str) -> Endpoint {
        let response = self.refusal::<E>(about);
        self.operation = self.operation.response(status.to_string(), response);
        self
    }

    /// Every other status, with the dialect's error.
    pub fn errors<E: ToSchema>(mut self) -> Endpoint {
        let request = self.refusal::<E>("The request is at fault; the error says what to change.");
        let server = self.refusal::<E>("The server cannot do it now, or at all; 503 says when to try again.");
        self.operation = self.operation.response("4XX", request).response("5XX", server);
        self
    }

    /// The queue may be full.
    pub fn queues<E: ToSchema>(mut self) -> Endpoint {
        let after = HeaderBuilder::new()
            .description(Some("Seconds after which to try again."))
            .schema(ObjectBuilder::new().schema_type(SchemaType::Type(Type::Integer)));
        let response = self.refusal::<E>("The queue is full.").header("Retry-After", after.build());
        self.operation = self.operation.response("429", response);
        self
    }

    fn refusal<E: ToSchema>(&mut self, about: &str) -> ResponseBuilder {
        let schema = self.reference::<E>();
        ResponseBuilder::new().description(about).content(JSON, Content::new(Some(schema)))
    }

    /// The description as the document has it.
    pub fn operation(self, tag: &str) -> OperationBuilder {
        let Endpoint { mut operation, body, mut ok, .. } = self;
        if let Some(Body { content_type, schema, examples, required }) = body {
            if content_type == JSON {
                let about = "Names the fields that had no effect, if there were any.";
                let header = HeaderBuilder::new().description(Some(about)).schema(text());
                ok = ok.header("x-mlxr-unsupported", header.build());
            }
            let example = |(name, value)| (name, ExampleBuilder::new().value(Some(value)).build());
            let examples = examples.into_iter().map(example);
            let content = ContentBuilder::new().schema(Some(schema)).examples_from_iter(examples).build();
            let body = RequestBodyBuilder::new().required(Some(required)).content(content_type, content);
            operation = operation.request_body(Some(body.build()));
        }
        operation.tag(tag).response("200", ok)
    }

    fn reference<T: ToSchema>(&mut self) -> RefOr<Schema> {
        self.schemas.push((T::name().into_owned(), <T as PartialSchema>::schema()));
        T::schemas(&mut self.schemas);
        Ref::from_schema_name(T::name()).into()
    }
}

pub fn text() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(SchemaType::Type(Type::String)).into()
}

pub fn one_of(texts: &[&str]) -> RefOr<Schema> {
    let schema = ObjectBuilder::new().schema_type(SchemaType::Type(Type::String));
    schema.enum_values(Some(texts.iter().copied())).into()
}

pub fn number(minimum: usize, maximum: usize) -> RefOr<Schema> {
    let schema = ObjectBuilder::new().schema_type(SchemaType::Type(Type::Integer));
    schema.minimum(Some(minimum)).maximum(Some(maximum)).into()
}

const fn method_name(method: &HttpMethod) -> &'static str {
    match method {
        HttpMethod::Get => "get",
        HttpMethod::Post => "post",
        HttpMethod::Put => "put",
        HttpMethod::Delete => "delete",
        HttpMethod::Options => "options",
        HttpMethod::Head => "head",
        HttpMethod::Patch => "patch",
        HttpMethod::Trace => "trace",
    }
}
