//! Byte-pair vocabularies without a list of merges: two tokens merge when their bytes together are a token, lowest rank
//! first (tiktoken's rule).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use ahash::AHashMap;
use base64::Engine as _;
use serde_json::{Map, Value};

use super::merge::{line_up, merge};
use super::pretokenizer;
use super::special::SpecialTokens;
use super::splitter::{self, Splitter};
use super::vocab::Pieces;
use super::{Engine, Specials, StartRule, TokenKind, Tokenizer, Vocab, byte_level, well_known_eog};
use crate::TextError;

const WHAT: &str = "tiktoken file";
/// Ids a file may leave unused between its highest rank and its special tokens.
const MAX_GAP: usize = 1 << 16;

/// The files of a tiktoken tokenizer.
#[derive(Debug, Clone, Copy)]
pub struct TiktokenFiles<'a> {
    /// Lines of a base64 token and its rank.
    pub ranks: &'a [u8],
    /// `tokenizer_config.json`, or empty. `pattern` or `pat_str` names the pattern of an unknown family.
    pub tokenizer_config: &'a Map<String, Value>,
    /// `special_tokens_map.json`, or empty.
    pub special_tokens_map: &'a Map<String, Value>,
}

/// Tokens by their bytes.
#[derive(Debug)]
pub(crate) struct RankEngine {
    splitters: Vec<Splitter>,
    ranks: Arc<AHashMap<Box<[u8]>, u32>>,
    longest: usize,
}

impl RankEngine {
    /// An engine over tokens and their ids, which are also their ranks.
    pub(crate) fn new(
        patterns: &[&str],
        tokens: impl IntoIterator<Item = (Box<[u8]>, u32)>,
    ) -> Result<RankEngine, TextError> {
        let ranks: AHashMap<_, _> = tokens.into_iter().collect();
        if let Some(byte) = (0..=255u8).find(|b| !ranks.contains_key(&[*b][..])) {
            return Err(TextError::malformed(WHAT, format!("byte {byte} is no token")));
        }
        let longest = ranks.keys().map(|token| token.len()).max().unwrap_or(0);
        let splitters = patterns.iter().map(|p| Splitter::new(p)).collect::<Result<_, _>>()?;
        Ok(RankEngine { splitters, ranks: Arc::new(ranks), longest })
    }

    pub(crate) fn encode(&self, text: &str, out: &mut Vec<u32>) -> Result<(), TextError> {
        let mut pieces: Vec<Range<usize>> = std::iter::once(0..text.len()).collect();
        for splitter in &self.splitters {
            let mut finer = Vec::with_capacity(pieces.len());
            for piece in pieces {
                let at = piece.start;
                finer.extend(splitter.pieces(&text[piece])?.into_iter().map(|r| r.start + at..r.end + at));
            }
            pieces = finer;
        }
        pieces.into_iter().for_each(|piece| self.encode_piece(&text.as_bytes()[piece], out));
        Ok(())
    }

    fn encode_piece(&self, piece: &[u8], out: &mut Vec<u32>) {
        if let Some(&id) = self.ranks.get(piece) {
            out.push(id);
            return;
        }
        let mut symbols = line_up(piece.iter().map(|_| (1, false)));
        merge(&mut symbols, |range, _| {
            if self.longest < range.len() { None } else { self.ranks.get(&piece[range]).copied() }
        });
        let whole = symbols.iter().filter(|s| s.len > 0);
        out.extend(whole.filter_map(|s| self.ranks.get(&piece[s.range()])));
    }
}

/// A family of tiktoken vocabularies, told by its size.
struct Family {
    n_ranks: usize,
    patterns: &'static [&'static str],
    specials: fn(usize) -> Vec<(String, u32)>,
    bos: Option<&'static str>,
    eos: &'static str,
}

/// Known families: rank count, the patterns, and the special tokens that follow the ranks.
const FAMILIES: [Family; 5] = [
    Family {
        n_ranks: 50_256,
        patterns: &[pretokenizer::GPT2],
        specials: gpt2,
        bos: None,
        eos: "<|endoftext|>",
    },
    Family {
        n_ranks: 100_256,
        patterns: &[splitter::CL100K],
        specials: cl100k,
        bos: None,
        eos: "<|endoftext|>",
    },
    Family {
        n_ranks: 128_000,
        patterns: &[pretokenizer::LLAMA3],
        specials: llama3,
        bos: Some("<|begin_of_text|>"),
        eos: "<|eot_id|>",
    },
    Family {
        n_ranks: 151_643,
        patterns: &[pretokenizer::QWEN2],
        specials: qwen,
        bos: None,
        eos: "<|endoftext|>",
    },
    Family {
        n_ranks: 199_998,
        patterns: &[pretokenizer::GPT4O],
        specials: o200k,
        bos: None,
        eos: "<|endoftext|>",
    },
];

fn at(texts: &[&str], first: usize) -> Vec<(String, u32)> {
    texts.iter().enumerate().map(|(i, text)| ((*text).to_owned(), (first + i) as u32)).collect()
}

fn gpt2(n: usize) -> Vec<(String, u32)> {
    at(&["<|endoftext|>"], n)
}

fn cl100k(n: usize) -> Vec<(String, u32)> {
    let mut tokens = at(&["<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"], n + 1);
    tokens.extend(at(&["<|endofprompt|>"], n + 20));
    tokens
}

fn o200k(n: usize) -> Vec<(String, u32)> {
    let mut tokens = at(&["<|endoftext|>"], n + 1);
    tokens.extend(at(&["<|endofprompt|>"], n + 20));
    tokens
}

fn qwen(n: usize) -> Vec<(String, u32)> {
    let mut tokens = at(&["<|endoftext|>", "<|im_start|>", "<|im_end|>"], n);
    tokens.extend((0..205).map(|i| (format!("<|extra_{i}|>"), (n + 3 + i) as u32)));
    tokens
}

fn llama3(n: usize) -> Vec<(String, u32)> {
    let reserved = |i: usize| format!("<|reserved_special_token_{i}|>");
    let mut texts: Vec<String> = vec![
        "<|begin_of_text|>".to_owned(),
        "<|end_of_text|>".to_owned(),
        reserved(0),
        reserved(1),
        "<|finetune_right_pad_id|>".to_owned(),
        reserved(2),
        "<|start_header_id|>".to_owned(),
        "<|end_header_id|>".to_owned(),
        "<|eom_id|>".to_owned(),
        "<|eot_id|>".to_owned(),
        "<|python_tag|>".to_owned(),
    ];
    texts.extend((3..248).map(reserved));
    texts.into_iter().enumerate().map(|(i, text)| (text, (n + i) as u32)).collect()
}

/// Reads the files into a tokenizer.
pub(crate) fn load(files: &TiktokenFiles<'_>) -> Result<Tokenizer, TextError> {
    let ranks = parse(files.ranks)?;
    let family = FAMILIES.iter().find(|f| f.n_ranks == ranks.len());
    let config = files.tokenizer_config;
    let own_pattern = ["pattern", "pat_str"].iter().find_map(|name| config.get(*name)?.as_str());
    let patterns: Vec<&str> = match (own_pattern, family) {
        (Some(pattern), _) => vec![pattern],
        (None, Some(family)) => family.patterns.to_vec(),
        (None, None) => {
            let name = format!("{} ranks and no pattern in tokenizer_config.json", ranks.len());
            return Err(TextError::Unsupported { what: "tiktoken family", name });
        }
    };
    let mut specials = declared_specials(config);
    if specials.is_empty() {
        specials = family.map(|f| (f.specials)(f.n_ranks)).unwrap_or_default();
    }
    let vocab = vocab(&ranks, &specials)?;
    let id = |text: &str| vocab.ids.get(text).copied();
    let named = |name: &str| {
        let token = [config, files.special_tokens_map].into_iter().find_map(|map| map.get(name))?;
        id(token.as_str().or_else(|| token.get("content")?.as_str())?)
    };
    let bos = named("bos_token").or_else(|| id(family?.bos?));
    let eos = named("eos_token").or_else(|| id(family?.eos));
    let mut eog = well_known_eog(|text| id(text).filter(|&id| vocab.is_special(id)));
    eog.extend(eos);
    let add_bos = config.get("add_bos_token").and_then(Value::as_bool).unwrap_or(bos.is_some());
    let prefix = bos.filter(|_| add_bos).into_iter().collect();
    let specials_found =
        SpecialTokens::new(specials.iter().map(|(text, id)| (*id, text.as_str(), TokenKind::Control)))?;
    let engine = RankEngine::new(&patterns, ranks)?;
    let engine = Engine::Ranks { engine: Box::new(engine), special: specials_found };
    Ok(Tokenizer::new(engine, vocab, Specials { bos, eos, eog, prefix, ..Specials::default() }))
}

fn parse(file: &[u8]) -> Result<HashMap<Box<[u8]>, u32>, TextError> {
    let mut ranks = HashMap::new();
    for (i, line) in file.split(|&b| b == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let bad = |reason: &str| TextError::malformed(WHAT, format!("line {}: {reason}", i + 1));
        let space = line.iter().position(|&b| b == b' ').ok_or_else(|| bad("no space"))?;
        let token = base64::engine::general_purpose::STANDARD
            .decode(&line[..space])
            .map_err(|_| bad("the token is not base64"))?;
        let rank = std::str::from_utf8(&line[space + 1..])
            .ok()
            .and_then(|rank| rank.trim().parse().ok())
            .ok_or_else(|| bad("the rank is not a number"))?;
        ranks.insert(token.into_boxed_slice(), rank);
    }
    Ok(ranks)
}

fn declared_specials(config: &Map<String, Value>) -> Vec<(String, u32)> {
    let declared = config.get("added_tokens_decoder").and_then(Value::as_object);
    let mut specials: Vec<_> = declared
        .into_iter()
        .flatten()
        .filter_map(|(id, token)| Some((token.get("content")?.as_str()?.to_owned(), id.parse().ok()?)))
        .collect();
    specials.sort_by_key(|(_, id)| *id);
    specials
}

fn vocab(ranks: &HashMap<Box<[u8]>, u32>, specials: &[(String, u32)]) -> Result<Vocab, TextError> {
    let highest = ranks.values().copied().chain(specials.iter().map(|(_, id)| *id)).max();
    let n_vocab = highest.map_or(0, |id| id as usize + 1);
    if ranks.len() + specials.len() + MAX_GAP < n_vocab {
        return Err(TextError::malformed(WHAT, format!("{} tokens with ids up to {n_vocab}", ranks.len())));
    }
    let mut texts: Vec<(&[u8], TokenKind)> = vec![(&[], TokenKind::Unused); n_vocab];
    for (token, &id) in ranks {
        texts[id as usize] = (token, TokenKind::Normal);
    }
    for (text, id) in specials {
        texts[*id as usize] = (text.as_bytes(), TokenKind::Control);
    }
    let mut pieces = Pieces::default();
    let mut ids = HashMap::with_capacity(n_vocab);
    for (id, (bytes, kind)) in texts.iter().enumerate() {
        pieces.push(bytes)?;
        let spelling: String = match kind {
            TokenKind::Normal => bytes.iter().map(|&b| byte_level::CHARS[usize::from(b)]).collect(),
            _ => String::from_utf8_lossy(bytes).into_owned(),
        };
        ids.insert(spelling.into_boxed_str(), id as u32);
    }
    let kinds = texts.iter().map(|(_, kind)| *kind).collect();
    Ok(Vocab { pieces, kinds, start: StartRule::Same, ids })
}
