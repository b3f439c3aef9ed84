//! Schemas of types that read themselves: a field that takes one form or another.

use utoipa::openapi::schema::{
    AdditionalProperties, AnyOfBuilder, ArrayBuilder, ObjectBuilder, Schema, SchemaType, Type,
};
use utoipa::openapi::{Ref, RefOr};

/// What matches at least one of `forms`.
pub fn any_of(forms: impl IntoIterator<Item = RefOr<Schema>>) -> RefOr<Schema> {
    let any = forms.into_iter().fold(AnyOfBuilder::new(), AnyOfBuilder::item);
    Schema::AnyOf(any.build()).into()
}

pub fn text() -> RefOr<Schema> {
    of_type(Type::String).build().into()
}

/// One of a few texts.
pub fn one_of_texts(texts: &[&str]) -> RefOr<Schema> {
    of_type(Type::String).enum_values(Some(texts.iter().copied())).build().into()
}

pub fn boolean() -> RefOr<Schema> {
    of_type(Type::Boolean).build().into()
}

pub fn number() -> RefOr<Schema> {
    of_type(Type::Number).build().into()
}

/// A `u32`.
pub fn token_id() -> RefOr<Schema> {
    let id = of_type(Type::Integer).minimum(Some(0)).maximum(Some(u32::MAX));
    id.build().into()
}

pub fn list(items: RefOr<Schema>) -> RefOr<Schema> {
    ArrayBuilder::new().items(items).build().into()
}

/// An object with any names; `None` is any values too.
pub fn map(values: Option<RefOr<Schema>>) -> RefOr<Schema> {
    let values = values.map_or(AdditionalProperties::FreeForm(true), AdditionalProperties::RefOr);
    of_type(Type::Object).additional_properties(Some(values)).build().into()
}

/// A type of the document by its name.
pub fn reference<T: utoipa::ToSchema>() -> RefOr<Schema> {
    Ref::from_schema_name(T::name()).into()
}

fn of_type(of: Type) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(SchemaType::Type(of))
}

/// Gives a type its schema: `schema_of!(Type, "dialect.Type", schema, Part, ...)`, where the parts are the types that
/// the schema refers to.
macro_rules! schema_of {
    ($type:ty, $name:literal, $schema:expr $(, $part:ty)*) => {
        impl utoipa::PartialSchema for $type {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                $schema
            }
        }

        impl utoipa::ToSchema for $type {
            fn name() -> std::borrow::Cow<'static, str> {
                std::borrow::Cow::Borrowed($name)
            }

            #[allow(unused_variables, reason = "a type may have no parts")]
            fn schemas(
                schemas: &mut Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::schema::Schema>)>,
            ) {
                $(
                    schemas.push((
                        <$part as utoipa::ToSchema>::name().into_owned(),
                        <$part as utoipa::PartialSchema>::schema(),
                    ));
                    <$part as utoipa::ToSchema>::schemas(schemas);
                )*
            }
        }
    };
}
pub(crate) use schema_of;
