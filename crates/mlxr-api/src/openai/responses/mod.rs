//! `/v1/responses`: what is asked, the items a conversation consists of, what comes back, and the events it comes in.

mod events;
mod items;
mod request;
mod response;

pub use events::{EventKind, StreamEvent};
pub use items::{
    FunctionCallItem, FunctionCallOutputItem, Input, InputItem, Item, ItemReference, ItemStatus, MessageItem,
    Part, PartContent, ReasoningItem, ReasoningPart, SummaryPart,
};
pub use request::{
    FunctionTool, Reasoning, ResponseRequest, TextConfig, TextFormat, ToolChoice, ToolChoiceObject,
    Truncation,
};
pub use response::{
    DeletedResponse, ErrorCode, IncompleteDetails, InputTokenCount, InputTokensDetails, ItemList,
    OutputTokensDetails, Response, ResponseFailure, ResponseUsage, Status,
};
