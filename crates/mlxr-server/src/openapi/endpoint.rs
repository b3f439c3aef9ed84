//! One route as the document describes it.

use serde_json::Value;
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
    ok: ResponseBuilder,
    has_body: bool,
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
            ok: ResponseBuilder::new().description("It worked."),
            has_body: false,
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

    fn with_body(mut self, content_type: &str, schema: RefOr<Schema>) -> Endpoint {
        let body = RequestBodyBuilder::new().required(Some(Required::True));
        let body = body.content(content_type, Content::new(Some(schema)));
        self.operation = self.operation.request_body(Some(body.build()));
        self.has_body = content_type == JSON;
        self
    }

    /// A part of the path.
    pub fn part(self, name: &str, about: &str) -> Endpoint {
        self.parameter(ParameterIn::Path, Required::True, name, about, text(None))
    }

    /// A parameter behind `?`; `values` are the only ones it takes, if there are any.
    pub fn query(self, name: &str, about: &str, values: &[&str]) -> Endpoint {
        let schema = text((!values.is_empty()).then_some(values));
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
        self.ok = self.ok.content(content_type, Content::new(Some(text(None))));
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
        self.stream::<T>("text/event-stream", about)
    }

    /// What comes back as lines of JSON, each a `T`.
    pub fn lines<T: ToSchema>(self, about: &str) -> Endpoint {
        self.stream::<T>("application/x-ndjson", about)
    }

    /// OpenAPI 3.1 has no word for the pieces of a stream: the schema is that of a text, and the extension
    /// `x-item-schema` that of one piece.
    fn stream<T: ToSchema>(mut self, content_type: &str, about: &str) -> Endpoint {
        let item = serde_json::to_value(self.reference::<T>()).unwrap_or(Value::Null);
        let schema =
            ObjectBuilder::new().schema_type(SchemaType::Type(Type::String)).description(Some(about));
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
        let mut ok = self.ok;
        if self.has_body {
            let about = "Names the fields that had no effect, if there were any.";
            let header = HeaderBuilder::new().description(Some(about)).schema(text(None));
            ok = ok.header("x-mlxr-unsupported", header.build());
        }
        self.operation.tag(tag).response("200", ok)
    }

    fn reference<T: ToSchema>(&mut self) -> RefOr<Schema> {
        self.schemas.push((T::name().into_owned(), <T as PartialSchema>::schema()));
        T::schemas(&mut self.schemas);
        Ref::from_schema_name(T::name()).into()
    }
}

fn text(values: Option<&[&str]>) -> RefOr<Schema> {
    let schema = ObjectBuilder::new().schema_type(SchemaType::Type(Type::String));
    let schema = schema.enum_values(values.map(|values| values.iter().copied()));
    RefOr::T(Schema::Object(schema.build()))
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
