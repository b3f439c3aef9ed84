//! From the bytes of a file to the planes of [`crate::layout`].

use std::sync::atomic::{AtomicUsize, Ordering};

use half::f16;
use mlxr_tensor::{DType, Format, HostTensor, MlxFloat, codec};

use crate::layout::{CODES_CHUNK, Codes, Element, FLOATS_CHUNK, Floats, Layout};

/// The buffers of a weight.
#[derive(Debug, Default)]
pub(crate) struct Planes {
    pub(crate) codes: Vec<u8>,
    pub(crate) high: Vec<u8>,
    pub(crate) scales: Vec<u8>,
}

impl Planes {
    /// In the order of a weight's buffers.
    pub(crate) fn each(&self) -> [&[u8]; 3] {
        [&self.codes, &self.high, &self.scales]
    }
}

/// Rows of a tensor that a thread repacks at a time.
pub(crate) fn piece_rows(tensor: &HostTensor) -> usize {
    /// Small enough to stay in a cache.
    const PIECE_BYTES: usize = 1 << 20;
    let row_bytes = (tensor.data().len() / tensor.rows().max(1)).max(1);
    // By fours, so that a piece starts at a whole word of every buffer.
    (PIECE_BYTES / row_bytes).next_multiple_of(4).max(4)
}

/// Repacks a tensor on all cores and hands out some rows at a time, each with the number of the first: in any order, from
/// any thread.
pub(crate) fn repack(tensor: &HostTensor, layout: &Layout, put: impl Fn(usize, &Planes) + Sync) {
    let (rows, n_rows) = (tensor.rows(), piece_rows(tensor));
    let n_pieces = rows.div_ceil(n_rows);
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from).min(n_pieces);
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let first = next.fetch_add(n_rows, Ordering::Relaxed);
            if first >= rows {
                return;
            }
            put(first, &repack_rows(&tensor.row_slice(first..(first + n_rows).min(rows)), layout));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..n_threads {
            scope.spawn(work);
        }
        work();
    });
}

/// Rows as the device has them.
pub(crate) fn repack_rows(tensor: &HostTensor, layout: &Layout) -> Planes {
    match layout {
        Layout::Codes(codes) => Coder { codes, planes: Planes::default() }.run(tensor),
        Layout::Floats(floats) => floats_of(tensor, floats),
    }
}

/// Rows as floats that their format does not have.
fn dequantised(tensor: &HostTensor, element: Element) -> Vec<u8> {
    let values = codec::dequantise(tensor).expect("a format with numbers has been checked for");
    match element {
        Element::F32 => bytemuck::cast_slice(&values).to_vec(),
        _ => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
    }
}

/// Rows of floats, filled up to whole chunks.
fn floats_of(tensor: &HostTensor, floats: &Floats) -> Planes {
    let is_stored = Layout::of(tensor.format()) == Some(Layout::Floats(*floats));
    let decoded = if is_stored { Vec::new() } else { dequantised(tensor, floats.element) };
    let data = if is_stored { tensor.data() } else { &*decoded };
    let row_bytes = data.len() / tensor.rows().max(1);
    let per_chunk = match floats.element {
        Element::F32 => 32,
        Element::F16 | Element::Bf16 => 16,
        Element::F8E4m3 | Element::F8E5m2 => 8,
        Element::Table => 4,
    };
    let padded = tensor.cols().div_ceil(FLOATS_CHUNK) * per_chunk;
    let mut planes = Planes::default();
    planes.codes.reserve(tensor.rows() * padded);
    for row in data.chunks_exact(row_bytes.max(1)) {
        if floats.element == Element::Table {
            // The file has the first column in the high half.
            planes.codes.extend(row.iter().map(|byte| byte.rotate_left(4)));
        } else {
            planes.codes.extend_from_slice(row);
        }
        let filled = planes.codes.len().next_multiple_of(padded.max(1));
        planes.codes.resize(filled, 0);
    }
    planes.scales = match tensor.format() {
        _ if !floats.has_scales => Vec::new(),
        Format::MlxFloat(_) => {
            tensor.scales().iter().flat_map(|&code| codec::e8m0_to_f32(code).to_le_bytes()).collect()
        }
        _ => tensor.scales().to_vec(),
    };
    planes
}

/// Writes chunks of codes.
struct Coder<'a> {
    codes: &'a Codes,
    planes: Planes,
}

impl Coder<'_> {
    fn run(mut self, tensor: &HostTensor) -> Planes {
        match tensor.format() {
            Format::Plain(dtype) => {
                for block in tensor.data().chunks_exact(dtype.block_bytes()) {
                    self.block(dtype, block);
                }
            }
            Format::MlxAffine { bits, .. } => self.mlx_affine(tensor, bits),
            Format::MlxFloat(mode) => self.mlx_float(tensor, mode),
            Format::Scaled { .. } | Format::Codebook { .. } => unreachable!("these are floats"),
        }
        self.planes
    }

    fn scale(&mut self, bytes: &[u8]) {
        self.planes.scales.extend_from_slice(bytes);
    }

    /// One block of a GGML type.
    fn block(&mut self, dtype: DType, block: &[u8]) {
        match dtype {
            DType::Q4_0 => {
                self.scale(&block[..2]);
                // A code less 8, as a signed nibble, is the code with its highest bit the other way round.
                let signed: [u8; CODES_CHUNK / 2] = std::array::from_fn(|i| block[2 + i] ^ 0x88);
                self.nibbles::<16>(&signed);
            }
            DType::IQ4_NL => {
                self.scale(&block[..2]);
                self.nibbles::<16>(&block[2..]);
            }
            DType::Q4_1 => {
                self.scale(&block[..4]);
                self.nibbles::<16>(&block[4..]);
            }
            DType::Q5_0 => {
                self.scale(&block[..2]);
                self.chunk(&codec::five_bit_codes(&block[2..]));
            }
            DType::Q5_1 => {
                self.scale(&block[..4]);
                self.chunk(&codec::five_bit_codes(&block[4..]));
            }
            DType::Q8_0 => {
                self.scale(&block[..2]);
                self.chunks(&block[2..]);
            }
            DType::MXFP4 => {
                self.scale(&block[..1]);
                self.nibbles::<16>(&block[1..]);
            }
            DType::NVFP4 => {
                for code in &block[..4] {
                    self.scale(&codec::half_ue4m3(*code).to_le_bytes());
                }
                self.nibbles::<8>(&block[4..]);
            }
            DType::IQ4_XS => self.iq4_xs(block),
            _ => self.k_quant(dtype, block),
        }
    }

    fn iq4_xs(&mut self, block: &[u8]) {
        let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
        let high = u16::from_le_bytes([block[2], block[3]]);
        for j in 0..8 {
            let low = block[4 + j / 2] >> (j % 2 * 4) & 15;
            let code = i32::from(low) + 16 * i32::from(high >> (2 * j) & 3) - 32;
            self.scale(&(d * code as f32).to_le_bytes());
        }
        self.nibbles::<16>(&block[8..]);
    }

    /// See the decoders of `mlxr_tensor::codec` for the offsets.
    fn k_quant(&mut self, dtype: DType, block: &[u8]) {
        let (mut low, mut high) = ([0u8; 256], [0u8; 256]);
        match dtype {
            DType::Q2_K => {
                self.scale(&block[80..84]);
                self.scale(&block[..16]);
                codec::unpack_codes::<2, 32>(&block[16..80], &mut low);
            }
            DType::Q3_K => {
                self.scale(&[block[108], block[109], 0, 0]);
                self.scale(&codec::q3_k_scales(&block[96..108]).map(i8::cast_unsigned));
                codec::unpack_codes::<2, 32>(&block[32..96], &mut low);
                codec::unpack_codes::<1, 32>(&block[..32], &mut high);
                join(&mut low, &high, 2);
            }
            DType::Q4_K => {
                self.affine_scales(block);
                codec::unpack_codes::<4, 32>(&block[16..], &mut low);
            }
            DType::Q5_K => {
                self.affine_scales(block);
                codec::unpack_codes::<4, 32>(&block[48..], &mut low);
                codec::unpack_codes::<1, 32>(&block[16..48], &mut high);
                join(&mut low, &high, 4);
            }
            DType::Q6_K => {
                self.scale(&[block[208], block[209], 0, 0]);
                self.scale(&block[192..208]);
                codec::unpack_codes::<4, 64>(&block[..128], &mut low);
                codec::unpack_codes::<2, 32>(&block[128..192], &mut high);
                join(&mut low, &high, 4);
            }
            _ => unreachable!("{dtype} has no layout of codes"),
        }
        self.chunks(&low);
    }

    fn affine_scales(&mut self, block: &[u8]) {
        self.scale(&block[..4]);
        let (scales, mins) = codec::scales_and_mins(&block[4..16]);
        for pair in scales.iter().zip(&mins) {
            self.scale(&[*pair.0, *pair.1]);
        }
    }

    fn nibbles<const STRIDE: usize>(&mut self, packed: &[u8]) {
        let mut codes = [0u8; 256];
        let codes = &mut codes[..2 * packed.len()];
        codec::unpack_codes::<4, STRIDE>(packed, codes);
        self.chunks(codes);
    }

    fn mlx_affine(&mut self, tensor: &HostTensor, bits: u8) {
        let (bits, mask) = (usize::from(bits), (1u64 << bits) - 1);
        // As signed bytes, codes of 8 bits are 128 less.
        let flip = if bits == 8 { 0x80 } else { 0 };
        for bytes in tensor.data().chunks_exact(CODES_CHUNK / 8 * bits) {
            let mut codes = [0u8; CODES_CHUNK];
            for (codes, bytes) in codes.as_chunks_mut::<8>().0.iter_mut().zip(bytes.chunks_exact(bits)) {
                let mut word = bytes.iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
                for code in codes {
                    *code = (word & mask) as u8 ^ flip;
                    word >>= bits;
                }
            }
            self.chunk(&codes);
        }
        let width = tensor.format().row_scale_bytes(tensor.cols()) / self.groups(tensor.cols());
        let pairs = tensor.scales().chunks_exact(width).zip(tensor.biases().chunks_exact(width));
        for (scale, bias) in pairs {
            self.planes.scales.extend_from_slice(scale);
            self.planes.scales.extend_from_slice(bias);
        }
    }

    fn groups(&self, cols: usize) -> usize {
        cols.div_ceil(self.codes.group as usize).max(1)
    }

    fn mlx_float(&mut self, tensor: &HostTensor, mode: MlxFloat) {
        for bytes in tensor.data().chunks_exact(CODES_CHUNK / 2) {
            let mut codes = [0u8; CODES_CHUNK];
            for (pair, byte) in codes.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
                *pair = [byte & 15, byte >> 4];
            }
            self.chunk(&codes);
        }
        match mode {
            // The table is doubled.
            MlxFloat::Nvfp4 => {
                for &code in tensor.scales() {
                    self.planes.scales.extend_from_slice(&(0.5 * codec::e4m3_to_f32(code)).to_le_bytes());
                }
            }
            _ => self.planes.scales.extend_from_slice(tensor.scales()),
        }
    }

    fn chunks(&mut self, codes: &[u8]) {
        for chunk in codes.as_chunks::<CODES_CHUNK>().0 {
            self.chunk(chunk);
        }
    }

    /// Writes 32 codes to the planes.
    fn chunk(&mut self, codes: &[u8; CODES_CHUNK]) {
        let Codes { bits, high_bits, .. } = *self.codes;
        let (first, second) = codes.split_at(CODES_CHUNK / 2);
        let planes = &mut self.planes;
        match bits {
            8 => planes.codes.extend_from_slice(codes),
            4..=6 => planes.codes.extend(first.iter().zip(second).map(|(a, b)| a & 15 | (b & 15) << 4)),
            _ => {
                planes.codes.extend_from_slice(&crumbs(first, 0));
                planes.codes.extend_from_slice(&crumbs(second, 0));
            }
        }
        match high_bits {
            1 => {
                let mut word = [0u8; 4];
                for (i, code) in codes.iter().enumerate() {
                    word[i % 4] |= (code >> (bits - 1) & 1) << (i / 4);
                }
                planes.high.extend_from_slice(&word);
            }
            2 => {
                planes.high.extend_from_slice(&crumbs(first, bits - 2));
                planes.high.extend_from_slice(&crumbs(second, bits - 2));
            }
            _ => {}
        }
    }
}

/// Two bits of each of 16 codes, from bit `shift`, in one word.
fn crumbs(codes: &[u8], shift: u32) -> [u8; 4] {
    let mut word = [0u8; 4];
    for (i, code) in codes.iter().enumerate() {
        word[i % 4] |= (code >> shift & 3) << (i / 4 * 2);
    }
    word
}

fn join(low: &mut [u8; 256], high: &[u8; 256], shift: u32) {
    for (low, high) in low.iter_mut().zip(high) {
        *low |= high << shift;
    }
}
