//! The parts of a SentencePiece model that GGUF keeps: pieces with scores and kinds, and the dummy prefix.
//!
//! The file is one protocol buffer message (`sentencepiece_model.proto`): field 1 is a piece, 2 the trainer's
//! settings, 3 the normalizer's.

/// What a piece is; the numbers are the ones both SentencePiece and GGUF use.
pub(crate) const NORMAL: i32 = 1;
pub(crate) const UNKNOWN: i32 = 2;
pub(crate) const CONTROL: i32 = 3;
pub(crate) const USER_DEFINED: i32 = 4;
pub(crate) const UNUSED: i32 = 5;
pub(crate) const BYTE: i32 = 6;

#[derive(Debug, PartialEq)]
pub(crate) struct Piece {
    pub text: Vec<u8>,
    pub score: f32,
    pub kind: i32,
}

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Model {
    pub pieces: Vec<Piece>,
    /// Unigram instead of BPE.
    pub is_unigram: bool,
    pub add_dummy_prefix: Option<bool>,
}

/// One field of a message.
enum Field<'a> {
    Varint(u64),
    Fixed32([u8; 4]),
    Bytes(&'a [u8]),
}

/// The fields of a message in order; `None` when the bytes are no message.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn next(&mut self) -> Option<Option<(u64, Field<'a>)>> {
        if self.rest.is_empty() {
            return Some(None);
        }
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                return self.next();
            }
            2 => {
                let n = usize::try_from(self.varint()?).ok()?;
                Field::Bytes(self.take(n)?)
            }
            5 => Field::Fixed32(self.take(4)?.try_into().ok()?),
            _ => return None,
        };
        Some(Some((key >> 3, field)))
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Some(value);
            }
        }
        None
    }
}

/// Reads a model; `None` when the bytes are not one.
pub(crate) fn parse(bytes: &[u8]) -> Option<Model> {
    let mut model = Model::default();
    let mut fields = Fields { rest: bytes };
    while let Some((number, field)) = fields.next()? {
        match (number, field) {
            (1, Field::Bytes(piece)) => model.pieces.push(parse_piece(piece)?),
            (2, Field::Bytes(trainer)) => model.is_unigram = varint_field(trainer, 3)?.unwrap_or(1) == 1,
            (3, Field::Bytes(normalizer)) => {
                model.add_dummy_prefix = varint_field(normalizer, 3)?.map(|v| v != 0);
            }
            _ => {}
        }
    }
    (!model.pieces.is_empty()).then_some(model)
}

fn parse_piece(bytes: &[u8]) -> Option<Piece> {
    let mut piece = Piece { text: Vec::new(), score: 0.0, kind: NORMAL };
    let mut fields = Fields { rest: bytes };
    while let Some((number, field)) = fields.next()? {
        match (number, field) {
            (1, Field::Bytes(text)) => piece.text = text.to_vec(),
            (2, Field::Fixed32(bytes)) => piece.score = f32::from_le_bytes(bytes),
            (3, Field::Varint(kind)) => piece.kind = i32::try_from(kind).ok()?,
            _ => {}
        }
    }
    Some(piece)
}

fn varint_field(bytes: &[u8], wanted: u64) -> Option<Option<u64>> {
    let mut found = None;
    let mut fields = Fields { rest: bytes };
    while let Some((number, field)) = fields.next()? {
        if let (true, Field::Varint(value)) = (number == wanted, field) {
            found = Some(value);
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pieces_and_settings_are_read() {
        let piece = [&[0x0a, 3][..], "▁".as_bytes(), &[0x15], &(-1.5f32).to_le_bytes(), &[0x18, 6]].concat();
        let mut bytes = vec![0x0a, piece.len() as u8];
        bytes.extend(&piece);
        bytes.extend([0x12, 2, 0x18, 2]); // trainer: model_type BPE
        bytes.extend([0x1a, 2, 0x18, 0]); // normalizer: no dummy prefix
        let model = parse(&bytes).unwrap();
        let piece = Piece { text: "▁".into(), score: -1.5, kind: BYTE };
        assert_eq!(model, Model { pieces: vec![piece], is_unigram: false, add_dummy_prefix: Some(false) });
        assert_eq!(parse(&bytes[..bytes.len() - 1]), None);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }
    }
}
