//! SentencePiece `.model` files: a protobuf of pieces, trainer and normaliser settings (`sentencepiece_model.proto`).

use prost::Message;
use serde_json::{Map, Value};

use super::charsmap::Charsmap;
use super::normalizer::{BLANK, Normalizer, Protected};
use super::special::SpecialTokens;
use super::spm::{Algorithm, Piece, SpmEngine};
use super::vocab::Pieces;
use super::{Engine, Specials, StartRule, TokenKind, Tokenizer, Vocab, byte_level, well_known_eog};
use crate::TextError;

const WHAT: &str = "SentencePiece model";

/// The files of a SentencePiece tokenizer.
#[derive(Debug, Clone, Copy)]
pub struct SentencePieceFiles<'a> {
    pub model: &'a [u8],
    /// `tokenizer_config.json`, or empty.
    pub tokenizer_config: &'a Map<String, Value>,
    /// `added_tokens.json` (text to id), or empty.
    pub added_tokens: &'a Map<String, Value>,
    /// `special_tokens_map.json`, or empty.
    pub special_tokens_map: &'a Map<String, Value>,
}

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<PieceProto>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<TrainerProto>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<NormalizerProto>,
}

#[derive(Clone, PartialEq, Message)]
struct PieceProto {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct TrainerProto {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "24")]
    treat_whitespace_as_suffix: Option<bool>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
    #[prost(int32, optional, tag = "41")]
    bos_id: Option<i32>,
    #[prost(int32, optional, tag = "42")]
    eos_id: Option<i32>,
    #[prost(string, optional, tag = "44")]
    unk_surface: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerProto {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    escape_whitespaces: Option<bool>,
}

/// Reads the files into a tokenizer.
pub(crate) fn load(files: &SentencePieceFiles<'_>) -> Result<Tokenizer, TextError> {
    let proto = ModelProto::decode(files.model).map_err(|e| TextError::malformed(WHAT, e))?;
    let trainer = proto.trainer.unwrap_or_default();
    let settings = proto.normalizer.unwrap_or_default();
    let mut pieces = pieces(proto.pieces)?;
    let algorithm = match trainer.model_type.unwrap_or(1) {
        1 => Algorithm::Unigram,
        2 => Algorithm::Bpe,
        other => {
            return Err(TextError::Unsupported { what: "SentencePiece model type", name: other.to_string() });
        }
    };
    let user_defined = pieces.iter().filter(|p| p.kind == TokenKind::UserDefined).map(|p| p.text.as_str());
    let normalizer = Normalizer {
        charsmap: Charsmap::parse(settings.precompiled_charsmap.as_deref().unwrap_or_default())?,
        add_dummy_prefix: settings.add_dummy_prefix.unwrap_or(true),
        remove_extra_whitespaces: settings.remove_extra_whitespaces.unwrap_or(true),
        escape_whitespaces: settings.escape_whitespaces.unwrap_or(true),
        whitespace_as_suffix: trainer.treat_whitespace_as_suffix.unwrap_or(false),
        protected: Protected::new(user_defined)?,
    };
    let start = match (normalizer.remove_extra_whitespaces, normalizer.add_dummy_prefix) {
        (true, _) => StartRule::DropSpaces,
        (false, true) => StartRule::DropSpace,
        (false, false) => StartRule::Same,
    };
    let byte_fallback = trainer.byte_fallback.unwrap_or(false);
    let engine = SpmEngine::new(&pieces, algorithm, normalizer, None, byte_fallback)?;
    let n_model = pieces.len();
    add_tokens(&mut pieces, files)?;
    let vocab = vocab(&pieces, start, trainer.unk_surface.as_deref().unwrap_or(" \u{2047} "))?;

    // The model's own user-defined pieces are found by the normaliser, in the middle of the text.
    let special = SpecialTokens::new(pieces.iter().enumerate().filter_map(|(id, p)| {
        let found_by_model = id < n_model && p.kind == TokenKind::UserDefined;
        (!found_by_model).then_some((id as u32, p.text.as_str(), p.kind))
    }))?;
    let specials = specials(files, &trainer, &pieces, &vocab);
    let engine = Engine::Spm { engine: Box::new(engine), special, space_after_special: true };
    Ok(Tokenizer::new(engine, vocab, specials))
}

fn pieces(protos: Vec<PieceProto>) -> Result<Vec<Piece>, TextError> {
    protos
        .into_iter()
        .enumerate()
        .map(|(id, proto)| {
            let number = i64::from(proto.kind.unwrap_or(1));
            let kind = TokenKind::from_number(number)
                .ok_or_else(|| TextError::malformed(WHAT, format!("piece {id} is of kind {number}")))?;
            Ok(Piece { text: proto.piece.unwrap_or_default(), score: proto.score.unwrap_or(0.0), kind })
        })
        .collect()
}

/// Appends the tokens Hugging Face files declare beyond the model, and takes over their roles.
fn add_tokens(pieces: &mut Vec<Piece>, files: &SentencePieceFiles<'_>) -> Result<(), TextError> {
    let mut added: Vec<(u64, String, Option<bool>)> = Vec::new();
    for (text, id) in files.added_tokens {
        let id = id
            .as_u64()
            .ok_or_else(|| TextError::malformed("added_tokens.json", format!("{text:?}: {id}")))?;
        added.push((id, text.clone(), None));
    }
    if let Some(Value::Object(declared)) = files.tokenizer_config.get("added_tokens_decoder") {
        for (id, token) in declared {
            let text = token.get("content").and_then(Value::as_str);
            if let (Ok(id), Some(text)) = (id.parse(), text) {
                added.push((id, text.to_owned(), token.get("special").and_then(Value::as_bool)));
            }
        }
    }
    added.sort();
    for (id, text, special) in added {
        let id = usize::try_from(id).unwrap_or(usize::MAX);
        if let Some(piece) = pieces.get_mut(id) {
            if piece.text == text && special == Some(true) && piece.kind == TokenKind::Normal {
                piece.kind = TokenKind::Control;
            }
            continue;
        }
        if pieces.len() + (1 << 16) < id {
            return Err(TextError::malformed("added tokens", format!("{text:?} has id {id}")));
        }
        let empty = Piece { text: String::new(), score: 0.0, kind: TokenKind::Unused };
        pieces.resize(id, empty);
        let kind = if special == Some(false) { TokenKind::UserDefined } else { TokenKind::Control };
        pieces.push(Piece { text, score: 0.0, kind });
    }
    Ok(())
}

/// What SentencePiece ids stand for; `unknown` is how an unknown token is shown.
pub(super) fn vocab(tokens: &[Piece], start: StartRule, unknown: &str) -> Result<Vocab, TextError> {
    let mut pieces = Pieces::default();
    for token in tokens {
        match (token.kind, byte_level::fallback_byte(&token.text)) {
            (TokenKind::Byte, Some(byte)) => pieces.push(&[byte])?,
            (TokenKind::Unknown, _) => pieces.push(unknown.as_bytes())?,
            _ => pieces.push(token.text.replace(BLANK, " ").as_bytes())?,
        }
    }
    let ids = tokens.iter().enumerate().rev().map(|(id, p)| (p.text.as_str().into(), id as u32)).collect();
    Ok(Vocab { pieces, kinds: tokens.iter().map(|p| p.kind).collect(), start, ids })
}

fn specials(
    files: &SentencePieceFiles<'_>,
    trainer: &TrainerProto,
    pieces: &[Piece],
    vocab: &Vocab,
) -> Specials {
    let named = |name: &str| {
        let token =
            [files.tokenizer_config, files.special_tokens_map].into_iter().find_map(|map| map.get(name))?;
        let text = token.as_str().or_else(|| token.get("content")?.as_str())?;
        vocab.ids.get(text).copied()
    };
    let by_id = |id: i32| u32::try_from(id).ok().filter(|&id| vocab.kind(id) == Some(TokenKind::Control));
    let bos = named("bos_token").or(by_id(trainer.bos_id.unwrap_or(1)));
    let eos = named("eos_token").or(by_id(trainer.eos_id.unwrap_or(2)));
    let flag =
        |name: &str, default| files.tokenizer_config.get(name).and_then(Value::as_bool).unwrap_or(default);
    let control = |text: &str| {
        vocab.ids.get(text).copied().filter(|&id| pieces[id as usize].kind == TokenKind::Control)
    };
    let mut eog = well_known_eog(control);
    eog.extend(eos);
    Specials {
        bos,
        eos,
        eog,
        prefix: bos.filter(|_| flag("add_bos_token", true)).into_iter().collect(),
        suffix: eos.filter(|_| flag("add_eos_token", false)).into_iter().collect(),
        pair_joint: None,
    }
}
