//! GPTQ as AutoGPTQ and GPTQModel store it: `qweight` packs codes along the inputs, one stream per output.
//!
//! `scales` and `qzeros` are `[groups, outputs]`. Files of the first version store zero points less one.

use mlxr_tensor::{DType, HostTensor};

use super::affine::{Affine, code_at, transposed, transposed_floats, words};
use super::{Module, Settings};
use crate::CheckpointError;

/// How a folder is quantised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scheme {
    bits: usize,
    /// `None` where a row is one group.
    group_size: Option<usize>,
    /// What zero points are short of.
    zero_offset: u32,
}

impl Scheme {
    pub fn of(settings: Settings<'_>) -> Result<Scheme, CheckpointError> {
        let bits = match settings.int(&["bits"]) {
            Some(bits @ (2 | 3 | 4 | 8)) => bits as usize,
            _ => return Err(settings.unsupported("bits", "GPTQ weights have 2, 3, 4 or 8 bits")),
        };
        let group_size = match settings.int(&["group_size"]) {
            Some(-1) => None,
            Some(n @ 1..=0xffff_ffff) => Some(n as usize),
            _ => return Err(settings.unsupported("group_size", "it is -1 or a number of columns")),
        };
        let zero_offset = match settings.str("checkpoint_format") {
            None | Some("gptq") => 1,
            Some("gptq_v2") => 0,
            _ => return Err(settings.unsupported("checkpoint_format", "gptq and gptq_v2 are supported")),
        };
        Ok(Scheme { bits, group_size, zero_offset })
    }

    pub fn join(self, module: &mut Module<'_>) -> Result<(), CheckpointError> {
        let qweight = module.need("qweight")?;
        let (qzeros, scales) = (module.need("qzeros")?, module.need("scales")?);
        let [n_words, rows] = module.matrix(&qweight, DType::I32)?;
        let Some(cols) =
            n_words.checked_mul(32).filter(|n| n.is_multiple_of(self.bits)).map(|n| n / self.bits)
        else {
            return Err(module.fault(&qweight, format!("whole words of {}-bit codes", self.bits)));
        };
        let group_size = self.group_size.unwrap_or(cols);
        let n_groups = cols.div_ceil(group_size);
        if scales.shape() != [n_groups, rows] || !cols.is_multiple_of(group_size) {
            return Err(
                module.fault(&scales, format!("{rows} scales for each {group_size} of {cols} columns"))
            );
        }
        if let Some(g_idx) = module.take("g_idx") {
            check_order(module, &g_idx, cols, group_size)?;
        }
        let zeros = self.zeros(module, &qzeros, n_groups, rows)?;
        let affine = Affine {
            bits: self.bits,
            rows,
            cols,
            group_size,
            codes: transposed(words(&qweight), n_words, rows).into(),
            scales: transposed_floats(&module.floats(&scales)?, n_groups, rows),
            zeros: transposed_floats(&zeros, n_groups, rows),
            scale_type: scales.format().plain().unwrap_or(DType::F32),
        };
        let tensor = affine.into_tensor(module)?;
        module.put(tensor);
        Ok(())
    }

    /// `[groups, outputs]`.
    fn zeros(
        self,
        module: &Module<'_>,
        qzeros: &HostTensor,
        n_groups: usize,
        rows: usize,
    ) -> Result<Vec<f32>, CheckpointError> {
        let n_words = (rows * self.bits).div_ceil(32);
        if module.matrix(qzeros, DType::I32)? != [n_groups, n_words] {
            return Err(module.fault(qzeros, format!("[{n_groups}, {n_words}] words")));
        }
        let word = words(qzeros);
        let mut zeros = Vec::with_capacity(n_groups * rows);
        for group in 0..n_groups {
            for row in 0..rows {
                let stored = code_at(&word, group * n_words, 1, self.bits, row);
                if (stored + self.zero_offset) >> self.bits != 0 {
                    let hint = "readers of this format disagree about zero points of all ones; convert it to gptq_v2";
                    return Err(module.unsupported(format!("qzeros with the code {stored}"), hint));
                }
                zeros.push((stored + self.zero_offset) as f32);
            }
        }
        Ok(zeros)
    }
}

/// Columns must lie in the order of their groups.
pub(super) fn check_order(
    module: &Module<'_>,
    g_idx: &HostTensor,
    cols: usize,
    group_size: usize,
) -> Result<(), CheckpointError> {
    if g_idx.format().plain() != Some(DType::I32) || g_idx.n_elements() != cols {
        return Err(module.fault(g_idx, format!("{cols} group numbers of type I32")));
    }
    let word = words(g_idx);
    if (0..cols).all(|i| word(i) as usize == i / group_size) {
        return Ok(());
    }
    let hint = "the columns of this model are grouped by importance (desc_act or actorder in quantization_config); \
                take a version without, or a GGUF file";
    Err(module.unsupported("g_idx that is not in order", hint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    fn scheme(settings: serde_json::Value) -> Result<Scheme, CheckpointError> {
        let settings = settings.as_object().unwrap();
        Scheme::of(Settings { settings, path: Path::new("config.json") })
    }

    #[test]
    fn settings_say_how_zero_points_are_stored() {
        let v1 = scheme(json!({"bits": 4, "group_size": 128})).unwrap();
        assert_eq!(v1, Scheme { bits: 4, group_size: Some(128), zero_offset: 1 });
        let v2 = scheme(json!({"bits": 3, "group_size": -1, "checkpoint_format": "gptq_v2"})).unwrap();
        assert_eq!(v2, Scheme { bits: 3, group_size: None, zero_offset: 0 });
    }

    #[test]
    fn settings_nobody_knows_are_refused_by_name() {
        for (settings, field) in [
            (json!({"bits": 5, "group_size": 128}), "quantization_config.bits: 5"),
            (json!({"bits": 4}), "quantization_config.group_size: missing"),
            (
                json!({"bits": 4, "group_size": 32, "checkpoint_format": "marlin"}),
                "checkpoint_format: \"marlin\"",
            ),
        ] {
            let text = scheme(settings).unwrap_err().to_string();
            assert!(text.contains(field), "{text}");
        }
    }
}
