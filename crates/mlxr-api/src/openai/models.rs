//! `GET /v1/models`, `GET` and `DELETE /v1/models/{id}`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::Model)]
pub struct Model {
    pub id: String,
    /// `model`.
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    pub owned_by: String,
}

/// All models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::ModelList)]
pub struct ModelList {
    /// `list`.
    pub object: String,
    pub data: Vec<Model>,
}

/// A model that is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::DeletedModel)]
pub struct DeletedModel {
    pub id: String,
    /// `model`.
    pub object: String,
    pub deleted: bool,
}

impl Model {
    pub fn new(id: String, created: u64) -> Model {
        Model { id, object: "model".to_owned(), created, owned_by: "mlxr".to_owned() }
    }
}

impl DeletedModel {
    pub fn new(id: String) -> DeletedModel {
        DeletedModel { id, object: "model".to_owned(), deleted: true }
    }
}

impl ModelList {
    pub fn new(data: Vec<Model>) -> ModelList {
        ModelList { object: "list".to_owned(), data }
    }
}
