//! AWQ as AutoAWQ's GEMM version stores it: `qweight` `[inputs, outputs / 8]`, eight outputs in a word in an order made
//! for a GPU kernel.

use mlxr_tensor::{DType, HostTensor};

use super::affine::{Affine, transposed_floats, words};
use super::{Module, Settings};
use crate::CheckpointError;

/// Which of eight outputs the four bits at `4 * i` belong to.
const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// How a folder is quantised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scheme {
    /// `None` where a row is one group.
    group_size: Option<usize>,
}

impl Scheme {
    pub fn of(settings: Settings<'_>) -> Result<Scheme, CheckpointError> {
        if settings.int(&["bits", "w_bit"]) != Some(4) {
            return Err(settings.unsupported("bits", "AWQ weights have 4 bits"));
        }
        if !settings.str("version").is_none_or(|v| v.eq_ignore_ascii_case("gemm")) {
            return Err(settings.unsupported("version", "of AWQ's layouts only gemm is known here"));
        }
        let group_size = match settings.int(&["group_size", "q_group_size"]) {
            Some(-1) => None,
            Some(n @ 1..=0xffff_ffff) => Some(n as usize),
            _ => return Err(settings.unsupported("group_size", "it is -1 or a number of columns")),
        };
        Ok(Scheme { group_size })
    }

    pub fn join(self, module: &mut Module<'_>) -> Result<(), CheckpointError> {
        let qweight = module.need("qweight")?;
        let (qzeros, scales) = (module.need("qzeros")?, module.need("scales")?);
        let [cols, n_words] = module.matrix(&qweight, DType::I32)?;
        let Some(rows) = n_words.checked_mul(8).filter(|_| cols.is_multiple_of(8)) else {
            return Err(module.fault(&qweight, "a multiple of eight inputs"));
        };
        let group_size = self.group_size.unwrap_or(cols);
        let n_groups = cols / group_size;
        if scales.shape() != [n_groups, rows] || !cols.is_multiple_of(group_size) {
            return Err(
                module.fault(&scales, format!("{rows} scales for each {group_size} of {cols} columns"))
            );
        }
        if module.matrix(&qzeros, DType::I32)? != [n_groups, n_words] {
            return Err(module.fault(&qzeros, format!("[{n_groups}, {n_words}] words")));
        }
        let affine = Affine {
            bits: 4,
            rows,
            cols,
            group_size,
            codes: turned(&qweight, cols, n_words).into(),
            scales: transposed_floats(&module.floats(&scales)?, n_groups, rows),
            zeros: zeros(&qzeros, n_groups, n_words),
            scale_type: scales.format().plain().unwrap_or(DType::F32),
        };
        let tensor = affine.into_tensor(module)?;
        module.put(tensor);
        Ok(())
    }
}

/// The codes as rows `[outputs, inputs]`, eight inputs in a word.
fn turned(qweight: &HostTensor, cols: usize, n_words: usize) -> Vec<u8> {
    let word = words(qweight);
    let mut out = vec![0u8; cols * n_words * 4];
    let (target, _) = out.as_chunks_mut::<4>();
    for run in 0..cols / 8 {
        for w in 0..n_words {
            let column: [u32; 8] = std::array::from_fn(|j| word((run * 8 + j) * n_words + w));
            for (i, output) in ORDER.iter().enumerate() {
                let codes = column.iter().rev().fold(0, |codes, c| codes << 4 | c >> (4 * i) & 15);
                target[(w * 8 + output) * (cols / 8) + run] = codes.to_le_bytes();
            }
        }
    }
    out
}

/// `[outputs, groups]`.
fn zeros(qzeros: &HostTensor, n_groups: usize, n_words: usize) -> Vec<f32> {
    let word = words(qzeros);
    let mut zeros = vec![0.0; n_groups * n_words * 8];
    for group in 0..n_groups {
        for w in 0..n_words {
            for (i, output) in ORDER.iter().enumerate() {
                zeros[(w * 8 + output) * n_groups + group] =
                    (word(group * n_words + w) >> (4 * i) & 15) as f32;
            }
        }
    }
    zeros
}
