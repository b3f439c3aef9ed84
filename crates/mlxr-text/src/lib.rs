//! Tokenizers, streaming detokeniser, chat templates.
//!
//! [`Tokenizer`] turns text into ids whatever file the vocabulary came from; [`Detokenizer`] turns ids back into text
//! as they arrive, never splitting a character; [`StopMatcher`] finds stop strings in that stream; [`ChatTemplate`]
//! renders a conversation into the prompt a model was trained on.

mod chat_template;
mod detokenize;
mod error;
mod stop;
mod tokenizer;

pub use chat_template::{ChatInput, ChatTemplate, TemplateTokens};
pub use detokenize::Detokenizer;
pub use error::TextError;
pub use stop::{StopMatch, StopMatcher};
pub use tokenizer::{EncodeOptions, HfFiles, SentencePieceFiles, TiktokenFiles, TokenKind, Tokenizer};
