//! Deterministic test data: noise, and tensors in every format.

use std::num::NonZeroU32;

use bytes::Bytes;

use crate::{Codebook, DType, Format, HostTensor, MlxFloat, codec};

/// A small generator of test values (xorshift64*).
#[derive(Clone, Debug)]
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next_u64() >> 11) as usize % n
    }

    /// Roughly normal, standard deviation about 1: the sum of four uniform values.
    pub fn value(&mut self) -> f32 {
        let uniform = |bits: u64| (bits >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
        (0..4).map(|_| uniform(self.next_u64())).sum::<f32>() * 1.732
    }

    pub fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }

    /// `0..n` in random order.
    pub fn permutation(&mut self, n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

/// Every weight format there are numbers behind, with columns that fit all of them.
pub fn formats() -> Vec<Format> {
    let wide_integers = [DType::I16, DType::I32, DType::I64];
    let plain = DType::ALL
        .iter()
        .filter(|d| codec::row_decoder(**d).is_some() && !wide_integers.contains(d))
        .map(|&d| Format::Plain(d));
    let mut formats: Vec<Format> = plain.collect();
    for bits in [2, 3, 4, 5, 6, 8] {
        for group_size in [32, 64, 128] {
            for scale in [DType::F16, DType::BF16, DType::F32] {
                formats.push(Format::MlxAffine { bits, group_size, scale });
            }
        }
    }
    formats.extend([MlxFloat::Mxfp4, MlxFloat::Nvfp4, MlxFloat::Mxfp8].map(Format::MlxFloat));
    for element in [DType::F8E4M3, DType::F8E5M2, DType::I8] {
        for group_size in [None, NonZeroU32::new(128)] {
            formats.push(Format::Scaled { element, group_size });
        }
    }
    formats.extend([Codebook::Nf4, Codebook::Fp4].map(|table| Format::Codebook { table, group_size: 64 }));
    formats
}

/// A tensor `shape` of noise in `format`.
///
/// # Panics
/// When the columns do not fit the format.
pub fn tensor(format: Format, shape: &[usize], noise: &mut Noise) -> HostTensor {
    let n: usize = shape.iter().product();
    let cols = *shape.last().expect("a shape");
    let (data, scales, biases) = match format {
        Format::Plain(dtype) if codec::can_quantise(dtype) => {
            let data = codec::quantise(dtype, &noise.values(n), cols, None).expect("finite values");
            (data, Vec::new(), Vec::new())
        }
        Format::Plain(dtype) => (blocks(dtype, n, noise), Vec::new(), Vec::new()),
        Format::MlxAffine { bits, group_size, scale } => {
            codec::quantise_mlx(&noise.values(n), cols, bits, group_size, scale).expect("finite values")
        }
        Format::MlxFloat(mode) => {
            let (data, scales) =
                codec::quantise_mlx_float(mode, &noise.values(n), cols).expect("finite values");
            (data, scales, Vec::new())
        }
        Format::Scaled { element, .. } => {
            (blocks(element, n, noise), scales(format, n / cols, cols, noise), Vec::new())
        }
        Format::Codebook { .. } => {
            let data = (0..n / 2).map(|_| (noise.next_u64() >> 32) as u8).collect();
            (data, scales(format, n / cols, cols, noise), Vec::new())
        }
    };
    HostTensor::with_scales("test", shape, format, data.into(), scales.into(), biases.into())
        .expect("the encoder's sizes")
}

/// f32 scales that bring codes to about 1.
fn scales(format: Format, rows: usize, cols: usize, noise: &mut Noise) -> Vec<u8> {
    let size = match format {
        Format::Scaled { .. } => 0.01,
        _ => 1.0,
    };
    let n = rows * format.row_scale_bytes(cols) / 4;
    (0..n).flat_map(|_| (size * (1.5 + 0.5 * noise.value())).to_le_bytes()).collect()
}

/// The same tensor with its bytes at an odd address.
pub fn unaligned(tensor: &HostTensor) -> HostTensor {
    let shift = |bytes: &Bytes| {
        let mut moved = vec![0u8; bytes.len() + 16];
        let start = (0..16).find(|i| (moved.as_ptr() as usize + i) % 16 == 1).unwrap_or(1);
        moved[start..start + bytes.len()].copy_from_slice(bytes);
        Bytes::from(moved).slice(start..start + bytes.len())
    };
    let (data, scales, biases) = (shift(tensor.data()), shift(tensor.scales()), shift(tensor.biases()));
    HostTensor::with_scales(tensor.name(), tensor.shape(), tensor.format(), data, scales, biases)
        .expect("the same sizes")
}

/// Random blocks of a type without an encoder, those with wild values drawn again.
fn blocks(dtype: DType, n: usize, noise: &mut Noise) -> Vec<u8> {
    let mut out = Vec::new();
    let mut values = vec![0f32; dtype.block_len()];
    for _ in 0..n / dtype.block_len() {
        loop {
            let block: Vec<u8> = (0..dtype.block_bytes()).map(|_| (noise.next_u64() >> 32) as u8).collect();
            codec::dequantise_row(dtype, &block, &mut values).expect("a type with numbers");
            // Also true for the widest plain integers drawn here, 8 bits.
            if values.iter().all(|v| v.abs() < 200.0) {
                out.extend(block);
                break;
            }
        }
    }
    out
}
