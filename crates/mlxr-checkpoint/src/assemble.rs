//! From the tensors of a file to canonical ones: names translated, fused tensors cut apart, quirks undone.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use mlxr_tensor::HostTensor;
use serde_json::{Map, Value};

use crate::CheckpointError;
use crate::arch::{ArchSpec, Layout, Naming, Pattern, TensorRule};
use crate::gguf::RawTensor;
use crate::layout;

/// Canonical tensors, and what no rule knows.
#[derive(Debug, Default)]
pub(crate) struct Assembled {
    pub tensors: BTreeMap<String, HostTensor>,
    pub unknown: Vec<HostTensor>,
    pub ignored: Vec<String>,
}

impl Assembled {
    /// Adds the parts of a model that another family's rules know.
    pub fn extend(&mut self, other: Assembled) {
        self.tensors.extend(other.tensors);
        self.unknown.extend(other.unknown);
        self.ignored.extend(other.ignored);
    }
}

pub(crate) fn assemble(
    arch: &'static ArchSpec,
    naming: Naming,
    config: &Map<String, Value>,
    raw: Vec<RawTensor>,
) -> Result<Assembled, CheckpointError> {
    let rules = arch.rule_index(naming);
    let mut out = Assembler { arch, naming, config, rules, done: Assembled::default() };
    for RawTensor { tensor, path } in raw {
        out.add(tensor, &path)?;
    }
    Ok(out.done)
}

struct Assembler<'a> {
    arch: &'static ArchSpec,
    naming: Naming,
    config: &'a Map<String, Value>,
    rules: HashMap<&'static str, &'static TensorRule>,
    done: Assembled,
}

impl Assembler<'_> {
    fn add(&mut self, tensor: HostTensor, path: &Path) -> Result<(), CheckpointError> {
        let tensor = self.rename(tensor);
        let pattern = Pattern::of(tensor.name());
        let Some(&rule) = self.rules.get(pattern.text.as_str()) else {
            let skip = self.naming == Naming::Hf
                && self.arch.hf_ignored.iter().any(|prefix| pattern.text.starts_with(prefix));
            if skip {
                self.done.ignored.push(tensor.name().to_owned());
            } else {
                self.done.unknown.push(tensor);
            }
            return Ok(());
        };
        let names: Vec<String> = rule.parts.iter().map(|p| Pattern::fill(p, &pattern.numbers)).collect();
        let parts = self.cut(&tensor, rule, path)?;
        for (name, part) in names.into_iter().zip(parts) {
            let part = self.undo_norm_shift(part.renamed(name.clone()), path)?;
            if self.done.tensors.insert(name.clone(), part).is_some() {
                let what = format!("tensor {name:?} (as {:?})", tensor.name());
                return Err(CheckpointError::malformed(path, what, 0, "it again", "every tensor once"));
            }
        }
        Ok(())
    }

    /// Takes off the prefixes of wrappers.
    fn rename(&self, tensor: HostTensor) -> HostTensor {
        if self.naming != Naming::Hf {
            return tensor;
        }
        let renamed = self
            .arch
            .hf_renames
            .iter()
            .find_map(|(from, to)| tensor.name().strip_prefix(from).map(|rest| format!("{to}{rest}")));
        match renamed {
            Some(name) => tensor.renamed(name),
            None => tensor,
        }
    }

    /// The canonical parts of `tensor`, in the rule's order.
    fn cut(
        &self,
        tensor: &HostTensor,
        rule: &TensorRule,
        path: &Path,
    ) -> Result<Vec<HostTensor>, CheckpointError> {
        let n = rule.parts.len();
        let parts = match rule.layout {
            Layout::Whole => return Ok(vec![tensor.clone()]),
            Layout::Qkv => self.qkv_rows().and_then(|shares| layout::split_rows(tensor, &shares)),
            Layout::Halves => layout::split_equally(tensor, n),
            Layout::Interleaved => layout::take_in_turn(tensor, n),
            Layout::InterleavedColumns => layout::take_columns_in_turn(tensor, n),
            Layout::Transposed | Layout::TransposedInterleaved => layout::transpose_in_turn(tensor, n),
        };
        parts.ok_or_else(|| {
            let what = format!("tensor {:?}: shape", tensor.name());
            let found = format!("{:?} of {}", tensor.shape(), tensor.format().name());
            let expected = format!("one that divides into {}", rule.parts.join(", "));
            CheckpointError::malformed(path, what, 0, found, expected)
        })
    }

    fn qkv_rows(&self) -> Option<Vec<usize>> {
        let int = |key: &str| usize::try_from(self.config.get(key)?.as_u64()?).ok();
        let head_dim = int("head_dim")?;
        let q = int("num_attention_heads")?.checked_mul(head_dim)?;
        let kv = int("num_key_value_heads").or(int("num_attention_heads"))?.checked_mul(head_dim)?;
        q.checked_add(kv)?.checked_add(kv)?;
        Some(vec![q, kv, kv])
    }

    /// Norm weights that mean `1 + w` become what they mean.
    fn undo_norm_shift(&self, tensor: HostTensor, path: &Path) -> Result<HostTensor, CheckpointError> {
        let shifted =
            self.arch.hf_norm_plus_one && self.naming == Naming::Hf && tensor.name().ends_with("norm.weight");
        if !shifted {
            return Ok(tensor);
        }
        let values = tensor.to_f32().map_err(CheckpointError::tensor(path))?;
        let values: Vec<f32> = values.into_iter().map(|w| 1.0 + w).collect();
        HostTensor::from_f32(tensor.name(), tensor.shape(), &values).map_err(CheckpointError::tensor(path))
    }
}
