//! What comes back from `/v1/responses`.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use super::items::Item;
use super::request::{FunctionTool, Reasoning, TextConfig, ToolChoice, Truncation};

/// A response, finished or as far as it has come.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = openai::Response)]
pub struct Response {
    pub id: String,
    /// `response`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created_at: u64,
    pub status: Status,
    pub completed_at: Option<u64>,
    pub background: bool,
    pub error: Option<ResponseFailure>,
    pub incomplete_details: Option<IncompleteDetails>,
    pub instructions: Option<String>,
    pub max_output_tokens: Option<usize>,
    pub max_tool_calls: Option<usize>,
    pub model: String,
    pub output: Vec<Item>,
    pub parallel_tool_calls: bool,
    pub previous_response_id: Option<String>,
    pub reasoning: Reasoning,
    /// `default`.
    pub service_tier: &'static str,
    pub store: bool,
    pub temperature: f32,
    pub text: TextConfig,
    pub tool_choice: ToolChoice,
    pub tools: Vec<FunctionTool>,
    pub top_logprobs: usize,
    pub top_p: f32,
    pub truncation: Truncation,
    pub usage: Option<ResponseUsage>,
    pub metadata: BTreeMap<String, String>,
    /// What of the request was not honoured; ours, absent when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = openai::ResponseStatus)]
pub enum Status {
    InProgress,
    Completed,
    Incomplete,
    Failed,
    Cancelled,
}

/// Why a response is `incomplete`: `max_output_tokens`, or `loop` for one that repeated itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = openai::IncompleteDetails)]
pub struct IncompleteDetails {
    pub reason: &'static str,
}

/// Why a response `failed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = openai::ResponseFailure)]
pub struct ResponseFailure {
    pub code: ErrorCode,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = openai::ResponseErrorCode)]
pub enum ErrorCode {
    ServerError,
}

/// Token counts, under this endpoint's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = openai::ResponseUsage)]
pub struct ResponseUsage {
    pub input_tokens: usize,
    pub input_tokens_details: InputTokensDetails,
    pub output_tokens: usize,
    pub output_tokens_details: OutputTokensDetails,
    pub total_tokens: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = openai::InputTokensDetails)]
pub struct InputTokensDetails {
    /// Those that were not computed, because their keys and values were still there.
    pub cached_tokens: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = openai::OutputTokensDetails)]
pub struct OutputTokensDetails {
    pub reasoning_tokens: usize,
}

/// What `DELETE` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = openai::DeletedResponse)]
pub struct DeletedResponse {
    pub id: String,
    /// `response`.
    pub object: &'static str,
    pub deleted: bool,
}

/// A page of the items a response was the answer to.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = openai::ResponseItemList)]
pub struct ItemList {
    /// `list`.
    pub object: &'static str,
    pub data: Vec<Item>,
    pub first_id: Option<String>,
    pub last_id: Option<String>,
    pub has_more: bool,
}

/// `POST /v1/responses/input_tokens`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = openai::InputTokenCount)]
pub struct InputTokenCount {
    /// `response.input_tokens`.
    pub object: &'static str,
    pub input_tokens: usize,
}
