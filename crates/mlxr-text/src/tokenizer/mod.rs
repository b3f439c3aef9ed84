//! One tokenizer type over every vocabulary format.
//!
//! The formats differ in how they cut text (an [`engine`](Engine)); what an id stands for is the same
//! [`Vocab`] for all of them, so decoding exists once.

mod byte_level;
mod charsmap;
mod gguf;
mod hf;
mod merge;
mod normalizer;
mod pretokenizer;
mod ranks;
mod sentencepiece;
mod special;
mod splitter;
mod spm;
mod unigram;
mod vocab;

use std::sync::Arc;

use mlxr_checkpoint::{GgufMetadata, TokenizerSource};
use serde_json::{Map, Value};

pub use hf::HfFiles;
pub use ranks::TiktokenFiles;
pub use sentencepiece::SentencePieceFiles;
use special::{Fragment, SpecialTokens};
pub use vocab::TokenKind;
pub(crate) use vocab::{StartRule, Vocab};

use crate::{Detokenizer, TextError};

/// Longest text that is encoded.
const MAX_TEXT_BYTES: usize = 1 << 30;

/// How to read a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EncodeOptions {
    /// Add the tokens the model expects around a text, such as a beginning-of-sequence token.
    pub add_special: bool,
    /// Read the spelling of a control token, such as `<|im_end|>`, as that token. Never set it for a user's text.
    pub parse_special: bool,
}

/// A vocabulary and the rules to cut text with it. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
    eog_ids: Arc<[u32]>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut summary = f.debug_struct("Tokenizer");
        summary
            .field("n_vocab", &self.n_vocab())
            .field("specials", &self.inner.specials)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) engine: Engine,
    pub(crate) vocab: Vocab,
    pub(crate) specials: Specials,
}

/// The ids with a role of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Specials {
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    /// Every end-of-generation id, ascending.
    pub(crate) eog: Vec<u32>,
    /// Added around a text on request, by the formats that leave it to us.
    pub(crate) prefix: Vec<u32>,
    pub(crate) suffix: Vec<u32>,
    /// Comes before the second text of a pair, where the first one's end is not enough.
    pub(crate) pair_joint: Option<u32>,
}

/// A text, or a pair of them, as a model that reads whole texts takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Framed {
    pub ids: Vec<u32>,
    /// For each token 0 or 1: the first or the second text.
    pub types: Vec<u32>,
    /// Tokens before anything was cut.
    pub n_whole: usize,
}

impl Framed {
    /// Takes tokens away from the end of what stands inside `frame`, the ids around an empty text.
    fn cut(mut self, frame: &[u32], max_tokens: usize) -> Framed {
        let n_head = self.ids.iter().zip(frame).take_while(|(id, frame)| id == frame).count();
        let tail = &frame[n_head..];
        if !self.ids.ends_with(tail) || self.ids.len() < frame.len() {
            return self;
        }
        let end = self.ids.len() - tail.len();
        let start = (n_head + max_tokens.saturating_sub(frame.len())).min(end);
        self.ids.drain(start..end);
        self.types.drain(start..end);
        self
    }
}

/// The algorithm behind a vocabulary.
#[derive(Debug)]
pub(crate) enum Engine {
    /// Whatever a tokenizer.json can say.
    Hf(Box<hf::HfEngine>),
    /// SentencePiece's algorithms. After a special token a text begins anew where `space_after_special` says so.
    Spm { engine: Box<spm::SpmEngine>, special: SpecialTokens, space_after_special: bool },
    /// tiktoken's rule.
    Ranks { engine: Box<ranks::RankEngine>, special: SpecialTokens },
}

impl Tokenizer {
    pub(crate) fn new(engine: Engine, vocab: Vocab, mut specials: Specials) -> Tokenizer {
        specials.eog.sort_unstable();
        specials.eog.dedup();
        let eog_ids = specials.eog.clone().into();
        Tokenizer { inner: Arc::new(Inner { engine, vocab, specials }), eog_ids }
    }

    /// The tokenizer of a checkpoint.
    pub fn from_source(source: &TokenizerSource) -> Result<Tokenizer, TextError> {
        match source {
            TokenizerSource::HfJson { tokenizer_json, tokenizer_config, special_tokens_map } => {
                Self::from_hf(&HfFiles { tokenizer_json, tokenizer_config, special_tokens_map })
            }
            TokenizerSource::SentencePiece { model, tokenizer_config, added_tokens, special_tokens_map } => {
                Self::from_sentencepiece(&SentencePieceFiles {
                    model,
                    tokenizer_config,
                    added_tokens,
                    special_tokens_map,
                })
            }
            TokenizerSource::Tiktoken { ranks, tokenizer_config, special_tokens_map } => {
                Self::from_tiktoken(&TiktokenFiles { ranks, tokenizer_config, special_tokens_map })
            }
            TokenizerSource::Gguf(metadata) => Self::from_gguf(metadata),
            TokenizerSource::None => Err(TextError::NoTokenizer),
        }
    }

    /// A tokenizer.json with the files beside it.
    pub fn from_hf(files: &HfFiles<'_>) -> Result<Tokenizer, TextError> {
        hf::load(files)
    }

    /// A SentencePiece model with the files beside it.
    pub fn from_sentencepiece(files: &SentencePieceFiles<'_>) -> Result<Tokenizer, TextError> {
        sentencepiece::load(files)
    }

    /// A tiktoken file with the files beside it.
    pub fn from_tiktoken(files: &TiktokenFiles<'_>) -> Result<Tokenizer, TextError> {
        ranks::load(files)
    }

    /// The vocabulary embedded in a GGUF file.
    pub fn from_gguf(metadata: &GgufMetadata) -> Result<Tokenizer, TextError> {
        gguf::load(metadata)
    }

    /// The same tokenizer with the end-of-generation ids of a `generation_config.json` added.
    pub fn with_generation_config(mut self, config: &Map<String, Value>) -> Tokenizer {
        let ids = match config.get("eos_token_id") {
            Some(Value::Array(ids)) => ids.as_slice(),
            Some(id) => std::slice::from_ref(id),
            None => &[],
        };
        let ids = ids.iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok());
        let mut eog: Vec<u32> = self.eog_ids.iter().copied().chain(ids).collect();
        eog.sort_unstable();
        eog.dedup();
        self.eog_ids = eog.into();
        self
    }

    /// Token ids of a text.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TextError> {
        // Every position is kept in 32 bits.
        if MAX_TEXT_BYTES < text.len() {
            return Err(TextError::Encode {
                reason: format!("{} bytes, more than {MAX_TEXT_BYTES}", text.len()),
            });
        }
        let Inner { engine, specials, .. } = &*self.inner;
        let mut ids = Vec::new();
        if options.add_special {
            ids.extend_from_slice(&specials.prefix);
        }
        match engine {
            Engine::Hf(engine) => ids.extend(engine.encode(text, options)?),
            Engine::Spm { engine, special, space_after_special } => {
                let mut anew = true;
                for fragment in special.split(text, options.parse_special) {
                    match fragment {
                        Fragment::Token(id) => {
                            ids.push(id);
                            anew = *space_after_special;
                        }
                        Fragment::Text(text) => {
                            engine.encode(text, anew, &mut ids);
                            anew = false;
                        }
                    }
                }
            }
            Engine::Ranks { engine, special } => {
                for fragment in special.split(text, options.parse_special) {
                    match fragment {
                        Fragment::Token(id) => ids.push(id),
                        Fragment::Text(text) => engine.encode(text, &mut ids)?,
                    }
                }
            }
        }
        if options.add_special {
            ids.extend_from_slice(&specials.suffix);
        }
        Ok(ids)
    }

    /// Token ids of two texts framed for a model that compares them, and for each whether it belongs to the first (0)
    /// or the second (1). Nothing in the texts is read as a control token.
    pub fn encode_pair(&self, first: &str, second: &str) -> Result<(Vec<u32>, Vec<u32>), TextError> {
        if MAX_TEXT_BYTES - first.len().min(MAX_TEXT_BYTES) < second.len() {
            return Err(TextError::Encode {
                reason: format!("two texts of more than {MAX_TEXT_BYTES} bytes together"),
            });
        }
        let Inner { engine, specials, .. } = &*self.inner;
        if let Engine::Hf(hf) = engine
            && hf.has_frame()
        {
            return hf.encode_pair(first, second);
        }
        let plain = EncodeOptions::default();
        let mut ids = specials.prefix.clone();
        ids.extend(self.encode(first, plain)?);
        ids.extend_from_slice(&specials.suffix);
        let n_first = ids.len();
        ids.extend(specials.pair_joint);
        ids.extend(self.encode(second, plain)?);
        ids.extend_from_slice(&specials.suffix);
        let types = (0..ids.len()).map(|i| u32::from(i >= n_first)).collect();
        Ok((ids, types))
    }

    /// [`Self::encode`] with what the tokenizer adds around a text, the text cut so that there are `max_tokens` at most.
    pub fn encode_within(&self, text: &str, max_tokens: usize) -> Result<Framed, TextError> {
        let options = EncodeOptions { add_special: true, parse_special: false };
        let ids = self.encode(text, options)?;
        let whole = Framed { n_whole: ids.len(), types: vec![0; ids.len()], ids };
        if whole.n_whole <= max_tokens {
            return Ok(whole);
        }
        Ok(whole.cut(&self.encode("", options)?, max_tokens))
    }

    /// [`Self::encode_pair`], the second text cut so that it has `max_second` tokens and there are `max_tokens`, at
    /// most. The first one stays whole, so the result can be too long all the same.
    pub fn encode_pair_within(
        &self,
        first: &str,
        second: &str,
        max_second: usize,
        max_tokens: usize,
    ) -> Result<Framed, TextError> {
        let (ids, types) = self.encode_pair(first, second)?;
        let whole = Framed { n_whole: ids.len(), ids, types };
        if whole.n_whole <= max_tokens.min(max_second) {
            return Ok(whole);
        }
        let (frame, _) = self.encode_pair(first, "")?;
        let max_tokens = max_tokens.min(frame.len().saturating_add(max_second));
        Ok(if whole.n_whole <= max_tokens { whole } else { whole.cut(&frame, max_tokens) })
    }

    /// The text of a sequence of ids. Bytes that are not UTF-8 become U+FFFD; ids outside the vocabulary are empty.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut detokenizer = Detokenizer::new(self).skip_special(skip_special);
        let mut text = String::new();
        for &id in ids {
            text.push_str(&detokenizer.push(id));
        }
        text.push_str(&detokenizer.finish());
        text
    }

    /// The bytes a token adds to a text (in the middle of it), or `None` outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.inner.vocab.pieces.get(id)
    }

    /// Number of ids; every id is below it.
    pub fn n_vocab(&self) -> usize {
        self.inner.vocab.pieces.len()
    }

    /// The beginning-of-sequence id.
    pub fn bos(&self) -> Option<u32> {
        self.inner.specials.bos
    }

    /// The end-of-sequence id.
    pub fn eos(&self) -> Option<u32> {
        self.inner.specials.eos
    }

    /// Every id that ends a generation, ascending.
    pub fn eog_ids(&self) -> &[u32] {
        &self.eog_ids
    }

    /// The id of a token by its spelling in the vocabulary file (`Ġthe`, `▁the`, `<|im_end|>`).
    pub fn id_of(&self, token: &str) -> Option<u32> {
        let Inner { engine, vocab, .. } = &*self.inner;
        match engine {
            Engine::Hf(engine) if vocab.ids.is_empty() => engine.id_of(token),
            _ => vocab.ids.get(token).copied(),
        }
    }

    /// Whether a token is control, so that skipping special tokens hides it.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.vocab.is_special(id)
    }

    /// The role of a token, or `None` outside the vocabulary.
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.inner.vocab.kind(id)
    }

    pub(crate) fn vocab(&self) -> &Vocab {
        &self.inner.vocab
    }
}

/// Texts that end a generation wherever they are control tokens, from the model families that use them.
const EOG_TEXTS: [&str; 23] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    "<|plamo:eos|>",
];

/// The well-known end-of-generation ids of a vocabulary; `control` gives the id of a text that is a control token.
///
/// Harmony-like formats end a turn with `<|return|>` or `<|call|>` and use `<|end|>` inside one; where a format has its
/// own end of turn, `</s>` is left to the caller's explicit `eos`.
pub(crate) fn well_known_eog(control: impl Fn(&str) -> Option<u32>) -> Vec<u32> {
    let has = |text: &str| control(text).is_some();
    let channels = has("<|end|>")
        && ((has("<|return|>") && has("<|call|>"))
            || (has("<|flush|>") && (has("<|calls|>") || has("<|call|>"))));
    let plain_s = has("<|tool_response>") || has("<|plamo:eos|>");
    EOG_TEXTS
        .iter()
        .filter(|&&text| match text {
            "<|end|>" => !channels,
            "</s>" => !plain_s,
            _ => true,
        })
        .filter_map(|text| control(text))
        .collect()
}
