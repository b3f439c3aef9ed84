//! Tokenizers, streaming detokeniser, chat templates, tool calls, grammars.
//!
//! [`Tokenizer`] turns text into ids whatever file the vocabulary came from; [`Detokenizer`] turns ids back into text
//! as they arrive, never splitting a character; [`StopMatcher`] finds stop strings in that stream; [`ChatTemplate`]
//! renders a conversation into the prompt a model was trained on; [`tool_calls::OutputParser`] takes the answer apart;
//! [`grammar::Constraint`] holds it to a form.

mod chat_template;
mod detokenize;
mod error;
pub mod grammar;
pub mod reasoning;
mod stop;
mod tokenizer;
pub mod tool_calls;

pub use chat_template::{ChatInput, ChatTemplate, TemplateTokens};
pub use detokenize::Detokenizer;
pub use error::TextError;
pub use stop::{StopMatch, StopMatcher};
pub use tokenizer::{
    EncodeOptions, Framed, HfFiles, SentencePieceFiles, TiktokenFiles, TokenKind, Tokenizer,
};
