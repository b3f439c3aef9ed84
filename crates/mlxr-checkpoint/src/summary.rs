//! What a checkpoint amounts to, in numbers.

use std::collections::HashMap;

use mlxr_tensor::{Format, HostTensor};

use crate::Checkpoint;

/// Sizes of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    pub n_tensors: usize,
    /// Weights, embedding and head included; a tied head counts once.
    pub n_parameters: u64,
    pub n_bytes: u64,
    /// Bits per weight over all tensors, scales included.
    pub bits_per_weight: f64,
    /// What is stored how, the largest share first.
    pub formats: Vec<FormatShare>,
}

/// All tensors of one format.
#[derive(Clone, Debug, PartialEq)]
pub struct FormatShare {
    pub format: Format,
    pub n_tensors: usize,
    pub n_parameters: u64,
    pub n_bytes: u64,
}

impl Checkpoint {
    /// Parameter and byte counts, by format.
    pub fn summary(&self) -> Summary {
        Summary::of(self.tensors())
    }
}

impl Summary {
    fn of<'a>(tensors: impl Iterator<Item = &'a HostTensor>) -> Summary {
        let mut shares: HashMap<Format, FormatShare> = HashMap::new();
        for tensor in tensors {
            let format = tensor.format();
            let share = shares.entry(format).or_insert(FormatShare {
                format,
                n_tensors: 0,
                n_parameters: 0,
                n_bytes: 0,
            });
            share.n_tensors += 1;
            share.n_parameters += tensor.n_elements() as u64;
            share.n_bytes += tensor.n_bytes() as u64;
        }
        let mut formats: Vec<FormatShare> = shares.into_values().collect();
        formats.sort_by(|a, b| (b.n_bytes, a.format.name()).cmp(&(a.n_bytes, b.format.name())));
        let n_parameters = formats.iter().map(|s| s.n_parameters).sum();
        let n_bytes: u64 = formats.iter().map(|s| s.n_bytes).sum();
        Summary {
            n_tensors: formats.iter().map(|s| s.n_tensors).sum(),
            n_parameters,
            n_bytes,
            bits_per_weight: if n_parameters == 0 { 0.0 } else { n_bytes as f64 * 8.0 / n_parameters as f64 },
            formats,
        }
    }
}

#[cfg(test)]
mod tests {
    use mlxr_tensor::DType;

    use super::*;

    #[test]
    fn parameters_and_bytes_add_up_by_format() {
        let of = |dtype: DType, n: usize| {
            let bytes = vec![0; dtype.bytes_for(n).unwrap()];
            HostTensor::new("t", &[n], dtype, bytes.into()).unwrap()
        };
        let tensors = [of(DType::F32, 64), of(DType::Q8_0, 64), of(DType::Q8_0, 64)];
        let summary = Summary::of(tensors.iter());
        assert_eq!((summary.n_tensors, summary.n_parameters, summary.n_bytes), (3, 192, 256 + 136));
        assert_eq!(summary.formats[0].format, Format::Plain(DType::F32));
        assert_eq!(summary.formats[1].n_tensors, 2);
        assert!((summary.bits_per_weight - 392.0 * 8.0 / 192.0).abs() < 1e-9);
    }
}
