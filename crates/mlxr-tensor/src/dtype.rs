//! Element types as stored in model files, and their block geometry.
//!
//! A type is a fixed number of elements packed into a fixed number of bytes; plain types are blocks of one.
//! Numeric ids and block sizes follow the GGML type table (ggml.h, GGUF specification).

use std::fmt;
use std::str::FromStr;

macro_rules! dtypes {
    ($($variant:ident = $id:literal, $name:literal, $block_len:literal, $block_bytes:literal;)*) => {
        /// A storage type: plain (`F32`, `I8`, ...) or a GGML quant block (`Q4_K`, `IQ2_XS`, ...).
        #[allow(non_camel_case_types, reason = "the field's own names")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum DType { $($variant,)* }

        impl DType {
            /// Every type, in GGML id order; the types GGML does not number come last.
            pub const ALL: &'static [DType] = &[$(DType::$variant,)*];

            /// Elements per block (1 for plain types).
            pub const fn block_len(self) -> usize {
                match self { $(DType::$variant => $block_len,)* }
            }

            /// Bytes per block.
            pub const fn block_bytes(self) -> usize {
                match self { $(DType::$variant => $block_bytes,)* }
            }

            /// The name users type and read, e.g. `Q4_K`.
            pub const fn name(self) -> &'static str {
                match self { $(DType::$variant => $name,)* }
            }

            /// The GGML type id, or `None` for types a GGUF file cannot hold.
            pub const fn ggml_id(self) -> Option<u32> {
                let id: i32 = match self { $(DType::$variant => $id,)* };
                if id < 0 { None } else { Some(id as u32) }
            }
        }
    };
}

dtypes! {
    F32 = 0, "F32", 1, 4;
    F16 = 1, "F16", 1, 2;
    Q4_0 = 2, "Q4_0", 32, 18;
    Q4_1 = 3, "Q4_1", 32, 20;
    Q5_0 = 6, "Q5_0", 32, 22;
    Q5_1 = 7, "Q5_1", 32, 24;
    Q8_0 = 8, "Q8_0", 32, 34;
    Q8_1 = 9, "Q8_1", 32, 36;
    Q2_K = 10, "Q2_K", 256, 84;
    Q3_K = 11, "Q3_K", 256, 110;
    Q4_K = 12, "Q4_K", 256, 144;
    Q5_K = 13, "Q5_K", 256, 176;
    Q6_K = 14, "Q6_K", 256, 210;
    Q8_K = 15, "Q8_K", 256, 292;
    IQ2_XXS = 16, "IQ2_XXS", 256, 66;
    IQ2_XS = 17, "IQ2_XS", 256, 74;
    IQ3_XXS = 18, "IQ3_XXS", 256, 98;
    IQ1_S = 19, "IQ1_S", 256, 50;
    IQ4_NL = 20, "IQ4_NL", 32, 18;
    IQ3_S = 21, "IQ3_S", 256, 110;
    IQ2_S = 22, "IQ2_S", 256, 82;
    IQ4_XS = 23, "IQ4_XS", 256, 136;
    I8 = 24, "I8", 1, 1;
    I16 = 25, "I16", 1, 2;
    I32 = 26, "I32", 1, 4;
    I64 = 27, "I64", 1, 8;
    F64 = 28, "F64", 1, 8;
    IQ1_M = 29, "IQ1_M", 256, 56;
    BF16 = 30, "BF16", 1, 2;
    TQ1_0 = 34, "TQ1_0", 256, 54;
    TQ2_0 = 35, "TQ2_0", 256, 66;
    MXFP4 = 39, "MXFP4", 32, 17;
    NVFP4 = 40, "NVFP4", 64, 36;
    Q1_0 = 41, "Q1_0", 128, 18;
    F8E4M3 = -1, "F8_E4M3", 1, 1;
    F8E5M2 = -1, "F8_E5M2", 1, 1;
    U8 = -1, "U8", 1, 1;
    U16 = -1, "U16", 1, 2;
    U32 = -1, "U32", 1, 4;
    U64 = -1, "U64", 1, 8;
    BOOL = -1, "BOOL", 1, 1;
}

impl DType {
    /// The type behind a GGML id; `None` when the id is unknown or was retired (4, 5, 31-33, 36-38).
    pub fn from_ggml_id(id: u32) -> Option<DType> {
        Self::ALL.iter().copied().find(|d| d.ggml_id() == Some(id))
    }

    /// Whether elements share a block (and so rows must be a multiple of [`Self::block_len`]).
    pub const fn is_quantised(self) -> bool {
        self.block_len() > 1
    }

    /// Bytes of `n` elements, or `None` when `n` is not a whole number of blocks or the size overflows.
    pub fn bytes_for(self, n: usize) -> Option<usize> {
        if !n.is_multiple_of(self.block_len()) {
            return None;
        }
        (n / self.block_len()).checked_mul(self.block_bytes())
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Parses the name of a type, ignoring case (`q4_k`, `bf16`).
impl FromStr for DType {
    type Err = UnknownDType;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .iter()
            .copied()
            .find(|d| d.name().eq_ignore_ascii_case(s))
            .ok_or_else(|| UnknownDType { name: s.to_owned() })
    }
}

/// A type name nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown tensor type {name:?}")]
pub struct UnknownDType {
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_round_trip() {
        for &d in DType::ALL {
            assert_eq!(d.name().to_lowercase().parse::<DType>().as_ref(), Ok(&d));
            if let Some(id) = d.ggml_id() {
                assert_eq!(DType::from_ggml_id(id), Some(d));
            }
        }
        assert_eq!(DType::from_ggml_id(4), None);
    }

    #[test]
    fn a_partial_block_has_no_size() {
        assert_eq!(DType::Q4_K.bytes_for(512), Some(288));
        assert_eq!(DType::Q4_K.bytes_for(300), None);
        assert_eq!(DType::F32.bytes_for(usize::MAX), None);
    }
}
