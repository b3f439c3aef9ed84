//! Responses: items and their conversations, the request, and both shapes of the answer.

mod answer;
mod items;
mod page;
mod read;
mod tools;

pub use answer::Keep;
pub use items::resolve;
pub use page::{PageQuery, check_retrieval};
pub use read::{Asked, Task, count, is_structured, read};
