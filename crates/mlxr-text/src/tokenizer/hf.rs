//! Hugging Face tokenizer.json, through the `tokenizers` crate.
//!
//! The crate cuts text; three things are ours. Split patterns run in linear time ([`Splitter`]), because the crate's
//! backtracking engine silently stops on a long run of blanks. The model is shared between the two readings of special
//! tokens. And decoding goes through [`Vocab`] so that it can stream.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::tokenizer::pattern;
use tokenizers::{
    DecoderWrapper, Model, ModelWrapper, NormalizerWrapper, Offsets, PostProcessorWrapper,
    PreTokenizedString, PreTokenizer, PreTokenizerWrapper, SplitDelimiterBehavior, Token, TokenizerImpl,
};

use super::splitter::Splitter;
use super::vocab::Pieces;
use super::{
    EncodeOptions, Engine, Specials, StartRule, TokenKind, Tokenizer, Vocab, byte_level, well_known_eog,
};
use crate::TextError;

const WHAT: &str = "tokenizer.json";
const GPT2_PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The files of a Hugging Face tokenizer.
#[derive(Debug, Clone, Copy)]
pub struct HfFiles<'a> {
    pub tokenizer_json: &'a [u8],
    /// `tokenizer_config.json`, or empty.
    pub tokenizer_config: &'a Map<String, Value>,
    /// `special_tokens_map.json`, or empty.
    pub special_tokens_map: &'a Map<String, Value>,
}

type Hf = TokenizerImpl<SharedModel, NormalizerWrapper, Cutter, PostProcessorWrapper, DecoderWrapper>;

/// The cutting half of a Hugging Face tokenizer.
pub(crate) struct HfEngine {
    /// Reads special tokens as tokens.
    parsing: Hf,
    /// Reads special tokens as text.
    literal: Hf,
}

impl std::fmt::Debug for HfEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HfEngine").finish_non_exhaustive()
    }
}

impl HfEngine {
    pub(crate) fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TextError> {
        let hf = if options.parse_special { &self.parsing } else { &self.literal };
        let failed = |reason: String| TextError::Encode { reason };
        let encoding = guarded(|| hf.encode_fast(text, options.add_special))
            .map_err(failed)?
            .map_err(|e| failed(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Two texts framed as the file says, and which of them each token belongs to.
    pub(crate) fn encode_pair(&self, first: &str, second: &str) -> Result<(Vec<u32>, Vec<u32>), TextError> {
        let failed = |reason: String| TextError::Encode { reason };
        let encoding = guarded(|| self.literal.encode_fast((first, second), true))
            .map_err(failed)?
            .map_err(|e| failed(e.to_string()))?;
        Ok((encoding.get_ids().to_vec(), encoding.get_type_ids().to_vec()))
    }

    /// Whether the file says how texts are framed.
    pub(crate) fn has_frame(&self) -> bool {
        self.literal.get_post_processor().is_some()
    }

    /// An engine from the contents of a tokenizer.json.
    pub(crate) fn from_json(json: &Value) -> Result<HfEngine, TextError> {
        let parsing = parse(json)?;
        let mut literal = parsing.clone();
        literal.set_encode_special_tokens(true);
        Ok(HfEngine { parsing, literal })
    }

    pub(crate) fn id_of(&self, token: &str) -> Option<u32> {
        self.parsing.token_to_id(token)
    }
}

/// Reads the files into a tokenizer.
pub(crate) fn load(files: &HfFiles<'_>) -> Result<Tokenizer, TextError> {
    let json: Value =
        serde_json::from_slice(files.tokenizer_json).map_err(|e| TextError::malformed(WHAT, e))?;
    let mut parsing = parse(&json)?;
    guarded(|| add_config_tokens(&mut parsing, files.tokenizer_config))
        .map_err(|reason| TextError::malformed("tokenizer_config.json", reason))?;
    let vocab = vocab(&parsing, &json)?;
    let mut literal = parsing.clone();
    literal.set_encode_special_tokens(true);

    let special = |name: &str| {
        let token = [files.tokenizer_config, files.special_tokens_map]
            .into_iter()
            .find_map(|map| map.get(name).and_then(token_text))?;
        parsing.token_to_id(token)
    };
    let (bos, eos) = (special("bos_token"), special("eos_token"));
    let control = |text: &str| parsing.token_to_id(text).filter(|&id| vocab.is_special(id));
    let mut eog = well_known_eog(control);
    eog.extend(eos);
    let specials = Specials { bos, eos, eog, ..Specials::default() };
    Ok(Tokenizer::new(Engine::Hf(Box::new(HfEngine { parsing, literal })), vocab, specials))
}

fn parse(json: &Value) -> Result<Hf, TextError> {
    check_sizes(json)?;
    let mut hf = guarded(|| Hf::deserialize(json))
        .map_err(|reason| TextError::malformed(WHAT, reason))?
        .map_err(|e| TextError::malformed(WHAT, e))?;
    // Truncation and padding are the caller's business.
    hf.with_truncation(None).map_err(|e| TextError::malformed(WHAT, e))?;
    hf.with_padding(None);
    Ok(hf)
}

/// Runs the crate's code, whose asserts are about inputs too; a failed one becomes an error.
fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("an assertion failed").to_owned()
    })
}

/// A token of a config file: a string, or an object with its `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// Adds what `tokenizer_config.json` declares beyond tokenizer.json, in id order.
fn add_config_tokens(hf: &mut Hf, config: &Map<String, Value>) {
    let Some(Value::Object(declared)) = config.get("added_tokens_decoder") else { return };
    let mut tokens: Vec<(u64, tokenizers::AddedToken)> = declared
        .iter()
        .filter_map(|(id, token)| {
            let flag = |name: &str| token.get(name).and_then(Value::as_bool);
            let special = flag("special").unwrap_or(false);
            let added = tokenizers::AddedToken::from(token_text(token)?, special)
                .single_word(flag("single_word").unwrap_or(false))
                .lstrip(flag("lstrip").unwrap_or(false))
                .rstrip(flag("rstrip").unwrap_or(false))
                .normalized(flag("normalized").unwrap_or(!special));
            Some((id.parse().ok()?, added))
        })
        .collect();
    tokens.sort_by_key(|(id, _)| *id);
    let known: std::collections::HashSet<String> =
        hf.get_added_tokens_decoder().values().map(|t| t.content.clone()).collect();
    let new: Vec<_> = tokens.into_iter().map(|(_, t)| t).filter(|t| !known.contains(&t.content)).collect();
    if !new.is_empty() {
        hf.add_tokens(&new);
    }
}

/// Refuses what would make the crate panic or allocate without bound.
fn check_sizes(json: &Value) -> Result<(), TextError> {
    let model = json.get("model").ok_or_else(|| TextError::malformed(WHAT, "it has no model"))?;
    if let Some(Value::Object(vocab)) = model.get("vocab") {
        let limit = vocab.len() as u64 * 4 + (1 << 16);
        if let Some((token, id)) = vocab.iter().find(|(_, id)| id.as_u64().is_none_or(|id| limit <= id)) {
            return Err(TextError::malformed(WHAT, format!("token {token:?} has id {id}")));
        }
    }
    check_charsmaps(json.get("normalizer").unwrap_or(&Value::Null), 0)?;
    for affix in ["continuing_subword_prefix", "end_of_word_suffix"] {
        check_affix(model, affix)?;
    }
    Ok(())
}

/// The crate cuts the prefix's length off every right half of a merge without looking.
fn check_affix(model: &Value, affix: &str) -> Result<(), TextError> {
    let Some(prefix) = model.get(affix).and_then(Value::as_str).filter(|p| !p.is_empty()) else {
        return Ok(());
    };
    if affix == "end_of_word_suffix" || model.get("type").and_then(Value::as_str) != Some("BPE") {
        return Ok(());
    }
    let merges = model.get("merges").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    for merge in merges {
        let right = match merge {
            Value::String(pair) => pair.split_once(' ').map(|(_, right)| right),
            Value::Array(pair) => pair.get(1).and_then(Value::as_str),
            _ => None,
        };
        if right.is_some_and(|right| !right.is_char_boundary(prefix.len())) {
            return Err(TextError::malformed(WHAT, format!("merge {merge} lacks the prefix {prefix:?}")));
        }
    }
    Ok(())
}

/// Checks every precompiled character map, however deep in a sequence of normalisers.
fn check_charsmaps(normalizer: &Value, depth: usize) -> Result<(), TextError> {
    if 16 < depth {
        return Err(TextError::malformed(WHAT, "normalizers are nested more than 16 deep"));
    }
    if let Some(encoded) = normalizer.get("precompiled_charsmap").and_then(Value::as_str) {
        use base64::Engine as _;
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(encoded)
            .map_err(|e| TextError::malformed("precompiled charsmap", e))?;
        super::charsmap::Charsmap::parse(&bytes)?;
    }
    for inner in normalizer.get("normalizers").and_then(Value::as_array).into_iter().flatten() {
        check_charsmaps(inner, depth + 1)?;
    }
    Ok(())
}

/// How tokens become bytes, read from the `decoder` of the file.
enum Spelling {
    ByteLevel,
    /// Spaces are spelt `▁`, unknown bytes `<0xNN>`.
    Blocks {
        byte_fallback: bool,
        drop_space: bool,
    },
    /// Continuations begin with a prefix, everything else with a space.
    WordPiece {
        prefix: String,
        cleanup: bool,
    },
    /// The end of a word is marked.
    WordEnd {
        suffix: String,
    },
    /// Tokens joined by spaces.
    Words,
    Plain,
}

impl Spelling {
    fn of(decoder: &Value) -> Result<Spelling, TextError> {
        let parts: Vec<&Value> = match decoder.get("type").and_then(Value::as_str) {
            None => return Ok(Spelling::Words),
            Some("Sequence") => {
                decoder.get("decoders").and_then(Value::as_array).into_iter().flatten().collect()
            }
            Some(_) => vec![decoder],
        };
        let mut spelling = Spelling::Plain;
        for part in parts {
            let text = |name: &str| part.get(name).and_then(Value::as_str);
            let name = text("type").unwrap_or_default();
            match (name, &mut spelling) {
                ("ByteLevel", _) => spelling = Spelling::ByteLevel,
                ("WordPiece", _) => {
                    let prefix = text("prefix").unwrap_or("##").to_owned();
                    let cleanup = part.get("cleanup").and_then(Value::as_bool).unwrap_or(true);
                    spelling = Spelling::WordPiece { prefix, cleanup };
                }
                ("BPEDecoder", _) => {
                    spelling = Spelling::WordEnd { suffix: text("suffix").unwrap_or("</w>").to_owned() };
                }
                ("Metaspace", _) => {
                    let drop_space = match text("prepend_scheme") {
                        Some(scheme) => scheme != "never",
                        None => part.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(true),
                    };
                    spelling = Spelling::Blocks { byte_fallback: false, drop_space };
                }
                ("Replace", Spelling::Plain) if replaces_blocks(part) => {
                    spelling = Spelling::Blocks { byte_fallback: false, drop_space: false };
                }
                ("ByteFallback", Spelling::Blocks { byte_fallback, .. }) => *byte_fallback = true,
                ("ByteFallback", Spelling::Plain) => {
                    spelling = Spelling::Blocks { byte_fallback: true, drop_space: false };
                }
                ("Replace", Spelling::Blocks { .. }) if replaces_blocks(part) => {}
                ("Strip", Spelling::Blocks { drop_space, .. }) if text("content") == Some(" ") => {
                    *drop_space = part.get("start").and_then(Value::as_u64) == Some(1);
                }
                ("Fuse", _) => {}
                _ => return Err(TextError::Unsupported { what: "token decoder", name: name.to_owned() }),
            }
        }
        Ok(spelling)
    }

    /// The bytes of a model token inside a text.
    fn bytes(&self, token: &str) -> Vec<u8> {
        match self {
            Spelling::ByteLevel => byte_level::decode(token).unwrap_or_else(|| token.into()),
            Spelling::Blocks { byte_fallback, .. } => match byte_level::fallback_byte(token) {
                Some(byte) if *byte_fallback => vec![byte],
                _ => token.replace('▁', " ").into(),
            },
            Spelling::WordPiece { prefix, cleanup } => {
                let spelt = match token.strip_prefix(prefix.as_str()) {
                    Some(rest) if !prefix.is_empty() => rest.to_owned(),
                    _ => format!(" {token}"),
                };
                if *cleanup { clean_up(spelt) } else { spelt }.into()
            }
            Spelling::WordEnd { suffix } => token.replace(suffix.as_str(), " ").into(),
            Spelling::Words => format!(" {token}").into(),
            Spelling::Plain => token.into(),
        }
    }

    /// The bytes of a token at the start of a text, where they are not [`Self::bytes`] less a space.
    fn first_bytes(&self, token: &str) -> Option<Vec<u8>> {
        match self {
            Spelling::WordPiece { cleanup: true, .. } => Some(clean_up(token.to_owned()).into()),
            Spelling::WordPiece { .. } | Spelling::Words => Some(token.into()),
            _ => None,
        }
    }
}

fn replaces_blocks(part: &Value) -> bool {
    part.pointer("/pattern/String").and_then(Value::as_str) == Some("▁")
        && part.get("content").and_then(Value::as_str) == Some(" ")
}

/// The spacing BERT's decoder repairs around punctuation and English contractions.
pub(super) fn clean_up(token: String) -> String {
    const REPAIRS: [(&str, &str); 11] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" do not", " don't"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    REPAIRS.iter().fold(token, |token, (from, to)| token.replace(from, to))
}

fn vocab(hf: &Hf, json: &Value) -> Result<Vocab, TextError> {
    let spelling = Spelling::of(json.get("decoder").unwrap_or(&Value::Null))?;
    let added = hf.get_added_tokens_decoder();
    let tokens: HashMap<String, u32> = hf.get_vocab(true);
    let n_vocab = tokens.values().max().map_or(0, |&id| id as usize + 1);
    if tokens.len() * 4 + (1 << 18) < n_vocab {
        return Err(TextError::malformed(WHAT, format!("{} tokens have ids up to {n_vocab}", tokens.len())));
    }
    let mut texts: Vec<Option<&str>> = vec![None; n_vocab];
    for (text, &id) in &tokens {
        texts[id as usize] = Some(text);
    }
    for (&id, token) in &added {
        if let Some(text) = texts.get_mut(id as usize) {
            *text = Some(&token.content);
        }
    }
    let unknown = json.pointer("/model/unk_token").and_then(Value::as_str).and_then(|t| hf.token_to_id(t));
    let mut pieces = Pieces::default();
    let mut first = Pieces::default();
    let mut kinds = Vec::with_capacity(n_vocab);
    for (id, text) in texts.iter().enumerate() {
        let id = id as u32;
        let text = text.unwrap_or_default();
        pieces.push(&if text.is_empty() { Vec::new() } else { spelling.bytes(text) })?;
        if let Some(bytes) = spelling.first_bytes(text) {
            first.push(&bytes)?;
        }
        kinds.push(match added.get(&id) {
            Some(token) if token.special => TokenKind::Control,
            Some(_) => TokenKind::UserDefined,
            None if Some(id) == unknown => TokenKind::Unknown,
            None if text.is_empty() => TokenKind::Unused,
            None if matches!(spelling, Spelling::Blocks { byte_fallback: true, .. })
                && byte_level::fallback_byte(text).is_some() =>
            {
                TokenKind::Byte
            }
            None => TokenKind::Normal,
        });
    }
    let start = match spelling {
        Spelling::WordPiece { .. } | Spelling::Words => StartRule::Words(Box::new(first)),
        Spelling::Blocks { drop_space: true, .. } => StartRule::DropSpace,
        _ => StartRule::Same,
    };
    Ok(Vocab { pieces, kinds, start, ids: HashMap::new() })
}

/// A model both readings share.
#[derive(Clone)]
struct SharedModel(Arc<ModelWrapper>);

impl<'de> Deserialize<'de> for SharedModel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        ModelWrapper::deserialize(deserializer).map(|model| SharedModel(Arc::new(model)))
    }
}

impl Model for SharedModel {
    type Trainer = <ModelWrapper as Model>::Trainer;

    fn tokenize(&self, sequence: &str) -> tokenizers::Result<Vec<Token>> {
        self.0.tokenize(sequence)
    }
    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.token_to_id(token)
    }
    fn id_to_token(&self, id: u32) -> Option<String> {
        self.0.id_to_token(id)
    }
    fn get_vocab(&self) -> HashMap<String, u32> {
        self.0.get_vocab()
    }
    fn get_vocab_size(&self) -> usize {
        self.0.get_vocab_size()
    }
    fn save(&self, folder: &Path, prefix: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        self.0.save(folder, prefix)
    }
    fn get_trainer(&self) -> Self::Trainer {
        self.0.get_trainer()
    }
}

/// The crate's pre-tokenizers, with ours where a pattern is involved.
#[derive(Clone)]
enum Cutter {
    Sequence(Vec<Cutter>),
    Pattern { splitter: Arc<Splitter>, behavior: SplitDelimiterBehavior, invert: bool },
    ByteLevel { add_prefix_space: bool, splitter: Option<Arc<Splitter>>, encode: ByteLevel },
    Theirs(PreTokenizerWrapper),
}

impl<'de> Deserialize<'de> for Cutter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cutter::read(Value::deserialize(deserializer)?, 0).map_err(serde::de::Error::custom)
    }
}

impl Cutter {
    fn read(json: Value, depth: usize) -> Result<Cutter, String> {
        if 16 < depth {
            return Err("pre-tokenizers are nested more than 16 deep".to_owned());
        }
        let flag = |name: &str, default| json.get(name).and_then(Value::as_bool).unwrap_or(default);
        match json.get("type").and_then(Value::as_str) {
            Some("Sequence") => {
                let parts = json.get("pretokenizers").and_then(Value::as_array).cloned().unwrap_or_default();
                Ok(Cutter::Sequence(
                    parts.into_iter().map(|part| Cutter::read(part, depth + 1)).collect::<Result<_, _>>()?,
                ))
            }
            Some("Split") if json.pointer("/pattern/Regex").is_some() => {
                let pattern =
                    json.pointer("/pattern/Regex").and_then(Value::as_str).ok_or("pattern is no string")?;
                let behavior = json.get("behavior").cloned().unwrap_or(Value::Null);
                Ok(Cutter::Pattern {
                    splitter: Arc::new(Splitter::new(pattern).map_err(|e| e.to_string())?),
                    behavior: serde_json::from_value(behavior).map_err(|e| e.to_string())?,
                    invert: flag("invert", false),
                })
            }
            Some("ByteLevel") => {
                let splitter = if flag("use_regex", true) {
                    Some(Arc::new(Splitter::new(GPT2_PATTERN).map_err(|e| e.to_string())?))
                } else {
                    None
                };
                Ok(Cutter::ByteLevel {
                    add_prefix_space: flag("add_prefix_space", true),
                    splitter,
                    encode: ByteLevel::default().use_regex(false).add_prefix_space(false),
                })
            }
            _ => serde_json::from_value(json).map(Cutter::Theirs).map_err(|e| e.to_string()),
        }
    }
}

impl PreTokenizer for Cutter {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        match self {
            Cutter::Sequence(parts) => parts.iter().try_for_each(|part| part.pre_tokenize(text)),
            Cutter::Pattern { splitter, behavior, invert } => {
                text.split(|_, piece| piece.split(Cut { splitter, invert: *invert }, *behavior))
            }
            Cutter::ByteLevel { add_prefix_space, splitter, encode } => {
                text.split(|_, mut piece| {
                    if *add_prefix_space && !piece.get().starts_with(' ') {
                        piece.prepend(" ");
                    }
                    match splitter {
                        Some(splitter) => {
                            piece.split(Cut { splitter, invert: false }, SplitDelimiterBehavior::Isolated)
                        }
                        None => Ok(vec![piece]),
                    }
                })?;
                encode.pre_tokenize(text)
            }
            Cutter::Theirs(theirs) => theirs.pre_tokenize(text),
        }
    }
}

/// A pattern in the crate's terms: contiguous ranges, matched or not.
struct Cut<'a> {
    splitter: &'a Splitter,
    invert: bool,
}

impl pattern::Pattern for Cut<'_> {
    fn find_matches(&self, inside: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        if inside.is_empty() {
            return Ok(vec![((0, 0), false)]);
        }
        let mut cuts = Vec::new();
        let mut end = 0;
        for m in self.splitter.matches(inside)? {
            if end != m.start {
                cuts.push(((end, m.start), self.invert));
            }
            end = m.end;
            cuts.push(((m.start, m.end), !self.invert));
        }
        if end != inside.len() {
            cuts.push(((end, inside.len()), self.invert));
        }
        Ok(cuts)
    }
}
