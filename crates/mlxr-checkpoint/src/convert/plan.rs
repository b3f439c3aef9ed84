//! From canonical tensors to the tensors of a target format: names, fused and stacked parts, row order, norms.

use std::collections::{BTreeMap, HashMap};

use mlxr_tensor::{DType, Format, HostTensor, RopePairing};
use serde_json::Value;

use super::transcode;
use crate::arch::{ArchSpec, Layout, Naming, Pattern, TensorRule};
use crate::{Checkpoint, CheckpointError, layout};

/// One tensor of the target file: its parts follow each other in memory.
#[derive(Debug)]
pub(crate) struct Output {
    pub name: String,
    pub shape: Vec<usize>,
    pub parts: Vec<HostTensor>,
}

impl Output {
    /// Bytes the parts take as they are stored now.
    pub fn n_source_bytes(&self) -> u64 {
        self.parts.iter().map(|p| p.n_bytes() as u64).sum()
    }
}

/// Every tensor of `ckpt` as `naming` has it, blocks in order.
pub(crate) fn outputs(ckpt: &Checkpoint, naming: Naming) -> Result<Vec<Output>, CheckpointError> {
    if let Some(unknown) = ckpt.unknown.first() {
        let what = format!("tensor {:?} ({} unknown in all)", unknown.name(), ckpt.unknown.len());
        let hint = "no table knows where it belongs; only models that are fully understood are converted";
        return Err(CheckpointError::unsupported(&ckpt.path, what, hint));
    }
    if ckpt.vision.is_some() {
        let hint = "it runs from its folder as it is";
        return Err(CheckpointError::unsupported(&ckpt.path, "converting a model that reads images", hint));
    }
    let writer = Writer { ckpt, naming, rules: rules_by_part(ckpt.arch, naming) };
    let stacks = stacks(ckpt);
    let mut done: BTreeMap<(Option<u32>, String), Output> = BTreeMap::new();
    for name in stacks.keys() {
        // In a config these are numbers.
        if naming != Naming::Gguf && name.starts_with("rope_factors.") {
            continue;
        }
        for output in writer.write(name, &stacks)? {
            let layer = Pattern::of(&output.name).numbers.first().copied();
            done.entry((layer, output.name.clone())).or_insert(output);
        }
    }
    Ok(done.into_values().collect())
}

/// Canonical tensors with the experts of a layer together: name -> one tensor, or its items.
type Stacks = BTreeMap<String, Vec<HostTensor>>;

fn stacks(ckpt: &Checkpoint) -> Stacks {
    let mut numbered: BTreeMap<String, BTreeMap<u32, HostTensor>> = BTreeMap::new();
    let mut stacks = Stacks::new();
    for tensor in ckpt.tensors() {
        match split_expert(tensor.name()) {
            Some((stack, expert)) => {
                numbered.entry(stack).or_default().insert(expert, tensor.clone());
            }
            None => {
                stacks.insert(tensor.name().to_owned(), vec![tensor.clone()]);
            }
        }
    }
    stacks.extend(numbered.into_iter().map(|(name, items)| (name, items.into_values().collect())));
    stacks
}

/// `layers.0.moe.up.3.weight` -> `layers.0.moe.up.weight` and 3.
fn split_expert(name: &str) -> Option<(String, u32)> {
    let (head, last) = name.rsplit_once('.')?;
    let (stack, expert) = head.rsplit_once('.')?;
    let expert = expert.parse().ok().filter(|_| stack.contains(".moe."))?;
    Some((format!("{stack}.{last}"), expert))
}

type RulesByPart = HashMap<&'static str, &'static TensorRule>;

/// The first rule for every canonical name.
fn rules_by_part(arch: &'static ArchSpec, naming: Naming) -> RulesByPart {
    let mut rules = RulesByPart::new();
    for rule in arch.rules(naming) {
        for part in rule.parts {
            rules.entry(part).or_insert(rule);
        }
    }
    rules
}

struct Writer<'a> {
    ckpt: &'a Checkpoint,
    naming: Naming,
    rules: RulesByPart,
}

impl Writer<'_> {
    fn write(&self, name: &str, stacks: &Stacks) -> Result<Vec<Output>, CheckpointError> {
        let pattern = Pattern::of(name);
        let part = pattern.text.as_str();
        let per_expert = match part.rsplit_once('.') {
            Some((head, last)) => format!("{head}.{{e}}.{last}"),
            None => String::new(),
        };
        let candidates = [self.rules.get(part), self.rules.get(per_expert.as_str())];
        // The table that comes first in the family's list speaks for the format.
        let preferred = self
            .ckpt
            .arch
            .rules(self.naming)
            .find(|rule| candidates.iter().flatten().any(|c| c.file == rule.file));
        let Some(rule) = preferred else { return Err(self.refuse(name)) };
        match rule.layout {
            Layout::Whole if rule.file.contains("{e}") => {
                self.per_expert(rule, name, &pattern.numbers, stacks)
            }
            Layout::Whole | Layout::Qkv | Layout::Halves => {
                let parts = self.parts(rule, &pattern.numbers, stacks)?;
                self.finish(Pattern::fill(rule.file, &pattern.numbers), parts, rule)
                    .map(|output| vec![output])
            }
            Layout::Transposed | Layout::TransposedInterleaved | Layout::InterleavedColumns => {
                let parts = self.parts(rule, &pattern.numbers, stacks)?;
                let plain: Vec<HostTensor> =
                    parts.into_iter().map(|p| self.plain(p)).collect::<Result<_, _>>()?;
                let joined = match rule.layout {
                    Layout::InterleavedColumns => layout::join_columns(&plain),
                    _ => layout::join_transposed(&plain),
                };
                let joined = joined.ok_or_else(|| self.refuse(name))?;
                let file = Pattern::fill(rule.file, &pattern.numbers);
                Ok(vec![Output { name: file, shape: joined.shape().to_vec(), parts: vec![joined] }])
            }
            Layout::Interleaved => Err(self.refuse(name)),
        }
    }

    /// The canonical tensors a rule's file tensor is made of.
    fn parts(
        &self,
        rule: &TensorRule,
        numbers: &[u32],
        stacks: &Stacks,
    ) -> Result<Vec<HostTensor>, CheckpointError> {
        let mut parts = Vec::new();
        for part in rule.parts {
            let part_name = Pattern::fill(part, numbers);
            let found = stacks.get(&part_name).ok_or_else(|| self.refuse(&part_name))?;
            parts.extend(found.iter().cloned());
        }
        Ok(parts)
    }

    /// Elements that can be moved one by one: blocks become BF16, which holds all values of the 4-bit float formats.
    fn plain(&self, tensor: HostTensor) -> Result<HostTensor, CheckpointError> {
        if matches!(tensor.format(), Format::Plain(dtype) if !dtype.is_quantised()) {
            return Ok(tensor);
        }
        transcode::encode(&tensor, DType::BF16, None, super::default_threads())
            .and_then(|bytes| HostTensor::new(tensor.name(), tensor.shape(), DType::BF16, bytes.into()))
            .map_err(CheckpointError::tensor(&self.ckpt.path))
    }

    fn refuse(&self, name: &str) -> CheckpointError {
        let what = format!("writing {name} of {} in this format", self.ckpt.arch.model_type);
        CheckpointError::unsupported(&self.ckpt.path, what, "convert to another format")
    }

    /// One output per expert, from a stack or from single experts.
    fn per_expert(
        &self,
        rule: &TensorRule,
        name: &str,
        numbers: &[u32],
        stacks: &Stacks,
    ) -> Result<Vec<Output>, CheckpointError> {
        let found = stacks.get(name).ok_or_else(|| self.refuse(name))?;
        let experts: Vec<HostTensor> = match &found[..] {
            [stack] if stack.shape().len() == 3 => {
                (0..stack.shape()[0]).map(|e| stack.stack_item(e)).collect()
            }
            single => single.to_vec(),
        };
        let file = |e: usize| Pattern::fill(rule.file, &[numbers, &[e as u32]].concat());
        experts.into_iter().enumerate().map(|(e, expert)| self.finish(file(e), vec![expert], rule)).collect()
    }

    fn finish(
        &self,
        name: String,
        parts: Vec<HostTensor>,
        rule: &TensorRule,
    ) -> Result<Output, CheckpointError> {
        let parts: Vec<HostTensor> =
            parts.into_iter().map(|p| self.in_target_form(p)).collect::<Result<_, _>>()?;
        let first = parts[0].shape().to_vec();
        let shape = if parts.len() == 1 {
            first
        } else if rule.layout == Layout::Whole {
            [&[parts.len()][..], &first].concat()
        } else {
            let rows: usize = parts.iter().map(|p| p.shape()[0]).sum();
            [&[rows][..], &first[1..]].concat()
        };
        let alike = parts.iter().all(|p| p.cols() == parts[0].cols())
            && (rule.layout != Layout::Whole || parts.iter().all(|p| p.shape() == parts[0].shape()));
        if !alike {
            let what = format!(
                "the parts of {name}: shapes {:?}",
                parts.iter().map(HostTensor::shape).collect::<Vec<_>>()
            );
            return Err(CheckpointError::unsupported(&self.ckpt.path, what, "the parts must be alike"));
        }
        Ok(Output { name, shape, parts })
    }

    /// Row order of q and k, and what norm weights mean, as the target has them.
    fn in_target_form(&self, tensor: HostTensor) -> Result<HostTensor, CheckpointError> {
        let to_gguf = self.naming == Naming::Gguf;
        let wanted = if to_gguf && self.ckpt.arch.gguf_permutes_qk {
            RopePairing::Interleaved
        } else {
            RopePairing::Half
        };
        if wanted != self.ckpt.rope_pairing
            && let Some(key) = head_count_key(tensor.name())
        {
            let n_heads =
                self.ckpt.config.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
            return n_heads.and_then(|n| layout::reorder_heads(&tensor, n, wanted)).ok_or_else(|| {
                CheckpointError::unsupported(
                    &self.ckpt.path,
                    format!("{}: {:?} rows with {key} {n_heads:?}", tensor.name(), tensor.shape()),
                    "the config must match the tensors",
                )
            });
        }
        if !to_gguf && self.ckpt.arch.hf_norm_plus_one && tensor.name().ends_with("norm.weight") {
            let values = tensor.to_f32().map_err(CheckpointError::tensor(&self.ckpt.path))?;
            let values: Vec<f32> = values.into_iter().map(|w| w - 1.0).collect();
            return HostTensor::from_f32(tensor.name(), tensor.shape(), &values)
                .map_err(CheckpointError::tensor(&self.ckpt.path));
        }
        Ok(tensor)
    }
}

fn head_count_key(canonical: &str) -> Option<&'static str> {
    match canonical.split('.').collect::<Vec<_>>()[..] {
        ["layers", _, "attn", "q", _] => Some("num_attention_heads"),
        ["layers", _, "attn", "k", _] => Some("num_key_value_heads"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_told_from_layers() {
        assert_eq!(split_expert("layers.3.moe.up.7.weight"), Some(("layers.3.moe.up.weight".to_owned(), 7)));
        assert_eq!(split_expert("layers.3.moe.up.weight"), None);
        assert_eq!(split_expert("layers.3.mlp.up.weight"), None);
    }
}
