//! Tokenizers, streaming detokeniser, chat templates.
