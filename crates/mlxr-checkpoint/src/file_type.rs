//! `general.file_type`: what most of a GGUF file's matrices are, and the mixed recipes by name.

use std::fmt;
use std::str::FromStr;

use mlxr_tensor::DType;

/// `general.quantization_version` of the block layouts in use since 2023.
pub const QUANTISATION_VERSION: u32 = 2;

macro_rules! file_types {
    ($($variant:ident = $id:literal, $base:ident;)*) => {
        /// The name of a way to quantise a whole model; `id` and names are those of the GGML ecosystem.
        #[allow(non_camel_case_types, reason = "the field's own names")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum FileType { $($variant,)* }

        impl FileType {
            /// Every way, in the order of their ids.
            pub const ALL: &'static [FileType] = &[$(FileType::$variant,)*];

            /// The number in `general.file_type`.
            pub const fn id(self) -> u32 {
                match self { $(FileType::$variant => $id,)* }
            }

            /// The name users type, e.g. `Q4_K_M`.
            pub const fn name(self) -> &'static str {
                match self { $(FileType::$variant => stringify!($variant),)* }
            }

            /// The type of tensors that no rule singles out.
            pub const fn base(self) -> DType {
                match self { $(FileType::$variant => DType::$base,)* }
            }
        }
    };
}

file_types! {
    F32 = 0, F32;
    F16 = 1, F16;
    Q4_0 = 2, Q4_0;
    Q4_1 = 3, Q4_1;
    Q8_0 = 7, Q8_0;
    Q5_0 = 8, Q5_0;
    Q5_1 = 9, Q5_1;
    Q2_K = 10, Q2_K;
    Q3_K_S = 11, Q3_K;
    Q3_K_M = 12, Q3_K;
    Q3_K_L = 13, Q3_K;
    Q4_K_S = 14, Q4_K;
    Q4_K_M = 15, Q4_K;
    Q5_K_S = 16, Q5_K;
    Q5_K_M = 17, Q5_K;
    Q6_K = 18, Q6_K;
    IQ2_XXS = 19, IQ2_XXS;
    IQ2_XS = 20, IQ2_XS;
    Q2_K_S = 21, Q2_K;
    IQ3_XS = 22, IQ3_S;
    IQ3_XXS = 23, IQ3_XXS;
    IQ1_S = 24, IQ1_S;
    IQ4_NL = 25, IQ4_NL;
    IQ3_S = 26, IQ3_S;
    IQ3_M = 27, IQ3_S;
    IQ2_S = 28, IQ2_XS;
    IQ2_M = 29, IQ2_S;
    IQ4_XS = 30, IQ4_XS;
    IQ1_M = 31, IQ1_M;
    BF16 = 32, BF16;
    TQ1_0 = 36, TQ1_0;
    TQ2_0 = 37, TQ2_0;
    MXFP4_MOE = 38, MXFP4;
}

impl FileType {
    pub fn from_id(id: u32) -> Option<FileType> {
        Self::ALL.iter().copied().find(|t| t.id() == id)
    }

    /// The way that makes every matrix this type, where there is one.
    pub fn of_dtype(dtype: DType) -> Option<FileType> {
        match dtype {
            DType::Q3_K => Some(FileType::Q3_K_S),
            DType::Q4_K => Some(FileType::Q4_K_S),
            DType::Q5_K => Some(FileType::Q5_K_S),
            _ => Self::ALL.iter().copied().find(|t| t.name() == dtype.name()),
        }
    }

    /// Whether errors would be large without knowing which inputs matter.
    pub const fn needs_importance(self) -> bool {
        matches!(
            self,
            FileType::IQ2_XXS
                | FileType::IQ2_XS
                | FileType::IQ2_S
                | FileType::IQ1_S
                | FileType::IQ1_M
                | FileType::Q2_K_S
        )
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A recipe name nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown quantisation {name:?}\nhint: known are {}", FileType::ALL.iter().map(|t| t.name()).collect::<Vec<_>>().join(", "))]
pub struct UnknownFileType {
    pub name: String,
}

/// Parses a name, ignoring case; `Q3_K`, `Q4_K` and `Q5_K` mean their `_M` recipes.
impl FromStr for FileType {
    type Err = UnknownFileType;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let medium = format!("{s}_M");
        let named = |name: &str| Self::ALL.iter().copied().find(|t| t.name().eq_ignore_ascii_case(name));
        named(s).or_else(|| named(&medium)).ok_or_else(|| UnknownFileType { name: s.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_round_trip() {
        for &t in FileType::ALL {
            assert_eq!(t.name().to_lowercase().parse(), Ok(t));
            assert_eq!(FileType::from_id(t.id()), Some(t));
        }
        assert_eq!("q4_k".parse(), Ok(FileType::Q4_K_M));
        assert!("Q9".parse::<FileType>().unwrap_err().to_string().contains("Q4_K_M"));
        assert_eq!(FileType::of_dtype(DType::Q6_K), Some(FileType::Q6_K));
        assert_eq!(FileType::of_dtype(DType::I8), None);
    }
}
