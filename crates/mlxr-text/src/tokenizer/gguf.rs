//! Vocabularies embedded in GGUF files (`tokenizer.ggml.*`).
//!
//! Merge lists and WordPiece are rewritten as the tokenizer.json they came from and take that path; SentencePiece
//! vocabularies go to their own engine.

use mlxr_checkpoint::{GgufMetadata, MetaValue};
use serde_json::{Map, Value, json};

use super::charsmap::Charsmap;
use super::normalizer::{BLANK, Normalizer, Protected};
use super::pretokenizer::{self, Pretokenizer, Symbols};
use super::ranks::RankEngine;
use super::special::SpecialTokens;
use super::spm::{Algorithm, Piece, SpmEngine};
use super::vocab::Pieces;
use super::{
    EOG_TEXTS, Engine, Specials, StartRule, TokenKind, Tokenizer, Vocab, byte_level, hf, sentencepiece,
    well_known_eog,
};
use crate::TextError;

const WHAT: &str = "GGUF vocabulary";
/// Longest word WordPiece looks into, in characters; longer ones are unknown.
const MAX_WORD_CHARS: u32 = 100;

/// Reads the vocabulary of a GGUF file.
pub(crate) fn load(metadata: &GgufMetadata) -> Result<Tokenizer, TextError> {
    let model = metadata
        .str("tokenizer.ggml.model")
        .ok_or_else(|| TextError::malformed(WHAT, "tokenizer.ggml.model is missing"))?;
    let file = File { metadata, tokens: tokens(metadata)? };
    match model {
        "llama" => file.spm(Algorithm::Bpe),
        "t5" => file.spm(Algorithm::Unigram),
        "gpt2" | "gemma4" | "whitespace" => file.bpe(model),
        "bert" => file.word_piece(),
        "none" | "no_vocab" => Err(TextError::NoTokenizer),
        other => Err(TextError::Unsupported { what: "GGUF tokenizer model", name: other.to_owned() }),
    }
}

/// Tokens, scores and kinds, checked against each other.
fn tokens(metadata: &GgufMetadata) -> Result<Vec<Piece>, TextError> {
    let texts = metadata
        .strings("tokenizer.ggml.tokens")
        .ok_or_else(|| TextError::malformed(WHAT, "tokenizer.ggml.tokens is no array of strings"))?;
    let short = |key: &str, n: usize| {
        TextError::malformed(WHAT, format!("{key} has {n} entries for {} tokens", texts.len()))
    };
    let scores = metadata.f32s("tokenizer.ggml.scores").or_else(|| {
        let scores = metadata.i32s("tokenizer.ggml.scores")?;
        Some(scores.into_iter().map(|s| s as f32).collect())
    });
    let kinds = metadata.i32s("tokenizer.ggml.token_type");
    if let Some(scores) = scores.as_ref().filter(|s| s.len() < texts.len()) {
        return Err(short("tokenizer.ggml.scores", scores.len()));
    }
    if let Some(kinds) = kinds.as_ref().filter(|k| k.len() < texts.len()) {
        return Err(short("tokenizer.ggml.token_type", kinds.len()));
    }
    let piece = |id: usize| Piece {
        text: texts.get(id).unwrap_or_default().into_owned(),
        score: scores.as_ref().map_or(0.0, |s| s[id]),
        kind: kinds
            .as_ref()
            .and_then(|k| TokenKind::from_number(i64::from(k[id])))
            .unwrap_or(TokenKind::Normal),
    };
    let mut pieces: Vec<Piece> = (0..texts.len()).map(piece).collect();
    mark_ends(&mut pieces);
    Ok(pieces)
}

/// Some converters leave the tokens that end a turn unmarked; by their spelling they can be nothing else.
fn mark_ends(pieces: &mut [Piece]) {
    for piece in pieces {
        let unmarked = matches!(piece.kind, TokenKind::Normal | TokenKind::UserDefined);
        let marker = piece.text.starts_with("<|") || piece.text == "<end_of_turn>";
        if unmarked && marker && EOG_TEXTS.contains(&piece.text.as_str()) {
            piece.kind = TokenKind::Control;
        }
    }
}

struct File<'a> {
    metadata: &'a GgufMetadata,
    tokens: Vec<Piece>,
}

impl File<'_> {
    fn id(&self, key: &str) -> Result<Option<u32>, TextError> {
        let key = format!("tokenizer.ggml.{key}_token_id");
        // Some converters write -1 or u32::MAX for "none".
        let Some(id) = self.metadata.get(&key).and_then(MetaValue::as_i64) else { return Ok(None) };
        if !(0..i64::from(u32::MAX)).contains(&id) {
            return Ok(None);
        }
        if self.tokens.len() as i64 <= id {
            return Err(TextError::malformed(WHAT, format!("{key} is {id} of {} tokens", self.tokens.len())));
        }
        Ok(Some(id as u32))
    }

    fn flag(&self, key: &str, default: bool) -> bool {
        self.metadata.bool(&format!("tokenizer.ggml.{key}")).unwrap_or(default)
    }

    /// The ids with a role; `default` are those a family has where the file names none.
    fn specials(&self, default: [Option<u32>; 2], add: [bool; 2]) -> Result<Specials, TextError> {
        let within = |id: Option<u32>| id.filter(|&id| (id as usize) < self.tokens.len());
        let bos = self.id("bos")?.or(within(default[0]));
        let eos = self.id("eos")?.or(within(default[1]));
        let control = |text: &str| {
            let id = self.tokens.iter().position(|t| t.text == text)?;
            (self.tokens[id].kind == TokenKind::Control).then_some(id as u32)
        };
        let mut eog = well_known_eog(control);
        eog.extend(eos);
        for key in ["eot", "eom"] {
            eog.extend(self.id(key)?);
        }
        let prefix = bos.filter(|_| self.flag("add_bos_token", add[0])).into_iter().collect();
        let suffix = eos.filter(|_| self.flag("add_eos_token", add[1])).into_iter().collect();
        Ok(Specials { bos, eos, eog, prefix, suffix, pair_joint: None })
    }

    fn spm(self, algorithm: Algorithm) -> Result<Tokenizer, TextError> {
        let charsmap = match self.metadata.array("tokenizer.ggml.precompiled_charsmap") {
            None => Charsmap::default(),
            Some(blob) => {
                let bytes = blob.to_i64s().unwrap_or_default();
                Charsmap::parse(&bytes.into_iter().map(|b| b as u8).collect::<Vec<u8>>())?
            }
        };
        let unigram = algorithm == Algorithm::Unigram;
        let user_defined = self
            .tokens
            .iter()
            .filter(|t| unigram && t.kind == TokenKind::UserDefined)
            .map(|t| t.text.as_str());
        let normalizer = Normalizer {
            charsmap,
            add_dummy_prefix: self.flag("add_space_prefix", !unigram),
            remove_extra_whitespaces: self.flag("remove_extra_whitespaces", false),
            escape_whitespaces: true,
            whitespace_as_suffix: false,
            protected: Protected::new(user_defined)?,
        };
        let start = if normalizer.add_dummy_prefix { StartRule::DropSpace } else { StartRule::Same };
        let unknown = self.id("unknown")?.or(Some(if unigram { 2 } else { 0 }));
        let unknown = unknown.filter(|&id| (id as usize) < self.tokens.len());
        let engine = SpmEngine::new(&self.tokens, algorithm, normalizer, unknown, true)?;
        let defaults = if unigram { [None, Some(1)] } else { [Some(1), Some(2)] };
        let mut specials = self.specials(defaults, [!unigram, unigram])?;
        // XLM-RoBERTa's pairs have a separator as well as an end.
        specials.pair_joint = if unigram { self.id("seperator")? } else { None };
        let vocab = sentencepiece::vocab(&self.tokens, start, " \u{2047} ")?;
        let special = self.special_tokens()?;
        let engine = Engine::Spm { engine: Box::new(engine), special, space_after_special: true };
        Ok(Tokenizer::new(engine, vocab, specials))
    }

    fn special_tokens(&self) -> Result<SpecialTokens, TextError> {
        let tokens = self.tokens.iter().enumerate().map(|(id, t)| (id as u32, t.text.as_str(), t.kind));
        // Phi 3's tokens swallow blanks, which the file cannot say.
        let name = self.metadata.str("general.name").unwrap_or_default().to_lowercase();
        let phi3 = name.contains("phi-3") || name.contains("phi3");
        let keeps =
            |id: u32| matches!(self.tokens[id as usize].text.as_str(), "<unk>" | "<s>" | "<|endoftext|>");
        Ok(SpecialTokens::new(tokens)?.swallowing(|id| phi3 && !keeps(id)))
    }

    fn bpe(self, model: &str) -> Result<Tokenizer, TextError> {
        let name = match self.metadata.str("tokenizer.ggml.pre") {
            _ if model == "gemma4" => "gemma4",
            None if model == "whitespace" => "whitespace",
            name => name.unwrap_or("default"),
        };
        let pre = pretokenizer::by_name(name)
            .ok_or_else(|| TextError::Unsupported { what: "pre-tokenizer", name: name.to_owned() })?;
        // Falcon's file names no ends: both are token 11. In other vocabularies that is an ordinary token.
        let falcon_end =
            Some(11).filter(|_| self.tokens.get(11).is_some_and(|t| t.kind == TokenKind::Control));
        let default_bos = if pre.no_bos || model == "gemma4" { None } else { falcon_end };
        let default_eos = if model == "gemma4" { None } else { falcon_end };
        let specials = self.specials([default_bos, default_eos], [pre.add_bos, false])?;
        let vocab = self.bpe_vocab(pre.symbols)?;
        let Some(merges) = self.metadata.strings("tokenizer.ggml.merges") else {
            if name != "kimi-k2" {
                return Err(TextError::malformed(WHAT, "tokenizer.ggml.merges is no array of strings"));
            }
            let normal = self.tokens.iter().enumerate().filter(|(_, t)| t.kind == TokenKind::Normal);
            let tokens = normal
                .filter_map(|(id, t)| Some((byte_level::decode(&t.text)?.into_boxed_slice(), id as u32)));
            let engine = RankEngine::new(pre.patterns, tokens)?;
            let special = self.special_tokens()?;
            return Ok(Tokenizer::new(Engine::Ranks { engine: Box::new(engine), special }, vocab, specials));
        };
        let merges: Vec<Value> = merges
            .iter()
            .enumerate()
            .map(|(i, merge)| {
                let text = String::from_utf8_lossy(merge);
                // The left half may itself begin with a space.
                let first = text.chars().next().map_or(0, char::len_utf8);
                let space = text[first..].find(' ').map(|at| at + first);
                let at = space.ok_or_else(|| TextError::malformed(WHAT, format!("merge {i} is {text:?}")))?;
                Ok(json!([text[..at], text[at + 1..]]))
            })
            .collect::<Result<_, TextError>>()?;
        let mut file = bpe_file(&pre, self.flag("normalizer.lowercase", false));
        file["model"]["vocab"] = Value::Object(self.vocab_map(|t| t.text.clone()));
        file["model"]["merges"] = Value::Array(merges);
        file["added_tokens"] = self.added_tokens();
        let engine = hf::HfEngine::from_json(&file)?;
        Ok(Tokenizer::new(Engine::Hf(Box::new(engine)), vocab, specials))
    }

    fn bpe_vocab(&self, symbols: Symbols) -> Result<Vocab, TextError> {
        if symbols != Symbols::ByteLevel {
            return sentencepiece::vocab(&self.tokens, StartRule::Same, "");
        }
        let mut pieces = Pieces::default();
        for token in &self.tokens {
            let spelt = match token.kind {
                TokenKind::Normal | TokenKind::Unused => byte_level::decode(&token.text),
                TokenKind::Byte => byte_level::fallback_byte(&token.text).map(|b| vec![b]),
                _ => None,
            };
            pieces.push(spelt.as_deref().unwrap_or(token.text.as_bytes()))?;
        }
        self.vocab(pieces, StartRule::Same)
    }

    fn vocab(&self, pieces: Pieces, start: StartRule) -> Result<Vocab, TextError> {
        let ids =
            self.tokens.iter().enumerate().rev().map(|(id, t)| (t.text.as_str().into(), id as u32)).collect();
        Ok(Vocab { pieces, kinds: self.tokens.iter().map(|t| t.kind).collect(), start, ids })
    }

    /// Token texts to ids; of several tokens with one text the first counts.
    fn vocab_map(&self, spell: impl Fn(&Piece) -> String) -> Map<String, Value> {
        let mut map = Map::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            map.entry(spell(token)).or_insert(Value::from(id));
        }
        map
    }

    /// Special tokens as tokenizer.json lists them, with the blanks some families' tokens swallow.
    fn added_tokens(&self) -> Value {
        let name = self.metadata.str("general.name").unwrap_or_default().to_lowercase();
        let pre = self.metadata.str("tokenizer.ggml.pre").unwrap_or_default();
        let masks = pre.starts_with("jina-v2") || name.contains("modern-bert");
        let added = self.tokens.iter().enumerate().filter_map(|(id, token)| {
            let special = match token.kind {
                TokenKind::Control | TokenKind::Unknown => true,
                TokenKind::UserDefined => false,
                _ => return None,
            };
            Some(json!({
                "id": id, "content": token.text, "special": special, "normalized": false, "single_word": false,
                "lstrip": masks && matches!(token.text.as_str(), "<mask>" | "[MASK]"),
                "rstrip": false,
            }))
        });
        Value::Array(added.collect())
    }

    fn word_piece(self) -> Result<Tokenizer, TextError> {
        // A word's first piece is stored with a leading block, the pieces inside without BERT's `##`.
        let spell = |t: &Piece| match (t.kind, t.text.strip_prefix(BLANK)) {
            (TokenKind::Normal, Some(word)) => word.to_owned(),
            (TokenKind::Normal, None) => format!("##{}", t.text),
            _ => t.text.clone(),
        };
        let role = |key: &str, default: u32| {
            Ok::<_, TextError>(
                self.id(key)?.or(Some(default).filter(|&id| (id as usize) < self.tokens.len())),
            )
        };
        let unknown = role("unknown", 100)?.ok_or_else(|| TextError::malformed(WHAT, "no unknown token"))?;
        let (cls, sep) = (role("bos", 101)?, role("seperator", 102)?);
        let lowercase = self.flag("normalizer.lowercase", true);
        let file = json!({
            "version": "1.0",
            "normalizer": {
                "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                "strip_accents": self.flag("normalizer.strip_accents", lowercase), "lowercase": lowercase,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "model": {
                "type": "WordPiece", "unk_token": spell(&self.tokens[unknown as usize]),
                "continuing_subword_prefix": "##", "max_input_chars_per_word": MAX_WORD_CHARS,
                "vocab": self.vocab_map(spell),
            },
            "added_tokens": self.added_tokens(),
        });
        let engine = hf::HfEngine::from_json(&file)?;
        let mut specials = self.specials([cls, None], [true, false])?;
        specials.prefix = cls.into_iter().collect();
        specials.suffix = sep.into_iter().collect();
        let (mut pieces, mut first) = (Pieces::default(), Pieces::default());
        for token in &self.tokens {
            let text = spell(token);
            let (inside, start) = match text.strip_prefix("##") {
                Some(rest) if token.kind == TokenKind::Normal => (rest.to_owned(), rest.to_owned()),
                _ => (hf::clean_up(format!(" {text}")), text),
            };
            pieces.push(inside.as_bytes())?;
            first.push(start.as_bytes())?;
        }
        let vocab = self.vocab(pieces, StartRule::Words(Box::new(first)))?;
        Ok(Tokenizer::new(Engine::Hf(Box::new(engine)), vocab, specials))
    }
}

/// The tokenizer.json of a pre-tokenizer, without vocabulary and merges.
fn bpe_file(pre: &Pretokenizer, lowercase: bool) -> Value {
    let mut cutters: Vec<Value> = pre
        .patterns
        .iter()
        .map(|p| json!({"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": false}))
        .collect();
    let normalizer = match pre.symbols {
        Symbols::ByteLevel => {
            cutters.push(json!({
                "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
            }));
            Value::Null
        }
        Symbols::Blocks => json!({"type": "Replace", "pattern": {"String": " "}, "content": BLANK}),
        Symbols::Words => {
            cutters.push(json!({"type": "WhitespaceSplit"}));
            if lowercase { json!({"type": "Lowercase"}) } else { Value::Null }
        }
    };
    json!({
        "version": "1.0",
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": cutters},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": pre.symbols != Symbols::ByteLevel, "ignore_merges": pre.ignore_merges,
        },
    })
}
