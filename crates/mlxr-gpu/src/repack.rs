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

    /// Puts rows in the place of those that were there, whose memory is used again.
    pub(crate) fn fill(&mut self, tensor: &HostTensor, layout: &Layout) {
        for plane in [&mut self.codes, &mut self.high, &mut self.scales] {
            plane.clear();
        }
        match layout {
            Layout::Codes(codes) => Coder { codes, planes: self }.run(tensor),
            Layout::Floats(floats) => self.fill_floats(tensor, floats),
        }
    }

    /// Rows of floats, filled up to whole chunks.
    fn fill_floats(&mut self, tensor: &HostTensor, floats: &Floats) {
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
        self.codes.reserve(tensor.rows() * padded);
        for row in data.chunks_exact(row_bytes.max(1)) {
            if floats.element == Element::Table {
                // The file has the first column in the high half.
                self.codes.extend(row.iter().map(|byte| byte.rotate_left(4)));
            } else {
                self.codes.extend_from_slice(row);
            }
            let filled = self.codes.len().next_multiple_of(padded.max(1));
            self.codes.resize(filled, 0);
        }
        match tensor.format() {
            _ if !floats.has_scales => {}
            Format::MlxFloat(_) => {
                let scales = tensor.scales().iter().flat_map(|&code| codec::e8m0_to_f32(code).to_le_bytes());
                self.scales.extend(scales);
            }
            _ => self.scales.extend_from_slice(tensor.scales()),
        }
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
        let mut planes = Planes::default();
        loop {
            let first = next.fetch_add(n_rows, Ordering::Relaxed);
            if first >= rows {
                return;
            }
            planes.fill(&tensor.row_slice(first..(first + n_rows).min(rows)), layout);
            put(first, &planes);
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
    let mut planes = Planes::default();
    planes.fill(tensor, layout);
    planes
}

/// Rows as floats that their format does not have.
fn dequantised(tensor: &HostTensor, element: Element) -> Vec<u8> {
    let values = codec::dequantise(tensor).expect("a format with numbers has been checked for");
    match element {
        Element::F32 => bytemuck::cast_slice(&values).to_vec(),
        _ => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
    }
}

/// Writes chunks of codes.
struct Coder<'a> {
    codes: &'a Codes,
    planes: &'a mut Planes,
}

impl Coder<'_> {
    fn run(mut self, tensor: &HostTensor) {
        match tensor.format() {
            Format::Plain(dtype) => self.blocks(dtype, tensor.data()),
            Format::MlxAffine { bits, .. } => self.mlx_affine(tensor, bits),
            Format::MlxFloat(mode) => self.mlx_float(tensor, mode),
            Format::Scaled { .. } | Format::Codebook { .. } => unreachable!("these are floats"),
        }
    }

    fn scale(&mut self, bytes: &[u8]) {
        self.planes.scales.extend_from_slice(bytes);
    }

    /// Blocks of a GGML type.
    fn blocks(&mut self, dtype: DType, blocks: &[u8]) {
        match dtype {
            // A code less 8, as a signed nibble, is the code with its highest bit the other way round.
            DType::Q4_0 => self.split::<2, 16>(blocks, |codes| codes.map(|pair| pair ^ 0x88)),
            DType::IQ4_NL => self.split::<2, 16>(blocks, |codes| codes),
            DType::Q4_1 => self.split::<4, 16>(blocks, |codes| codes),
            DType::Q8_0 => self.split::<2, CODES_CHUNK>(blocks, |codes| codes),
            DType::MXFP4 => self.split::<1, 16>(blocks, |codes| codes),
            _ => blocks.chunks_exact(dtype.block_bytes()).for_each(|block| self.block(dtype, block)),
        }
    }

    /// Blocks of 32 codes behind their scale, the codes in a chunk's order: where there are two to a byte, the first half
    /// in the low nibbles.
    fn split<const SCALE: usize, const CODES: usize>(
        &mut self,
        blocks: &[u8],
        change: impl Fn([u8; CODES]) -> [u8; CODES],
    ) {
        let n = blocks.len() / (SCALE + CODES);
        let Planes { codes, scales, .. } = &mut *self.planes;
        codes.resize(n * CODES, 0);
        scales.resize(n * SCALE, 0);
        let planes = codes.as_chunks_mut::<CODES>().0.iter_mut().zip(scales.as_chunks_mut::<SCALE>().0);
        for (block, (codes, scale)) in blocks.chunks_exact(SCALE + CODES).zip(planes) {
            if let Some((stored, rest)) = block.split_first_chunk()
                && let Some(stored_codes) = rest.first_chunk()
            {
                (*codes, *scale) = (change(*stored_codes), *stored);
            }
        }
    }

    /// One block of a GGML type.
    fn block(&mut self, dtype: DType, block: &[u8]) {
        match dtype {
            DType::Q5_0 => {
                self.scale(&block[..2]);
                self.chunk(&codec::five_bit_codes(&block[2..]));
            }
            DType::Q5_1 => {
                self.scale(&block[..4]);
                self.chunk(&codec::five_bit_codes(&block[4..]));
            }
            DType::NVFP4 => {
                for code in &block[..4] {
                    self.scale(&codec::half_ue4m3(*code).to_le_bytes());
                }
                let mut codes = [0; 64];
                codec::unpack_codes::<4, 8>(&block[4..], &mut codes);
                self.chunks(&codes);
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
        self.planes.codes.extend_from_slice(&block[8..]);
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
        let pairs: [u8; 16] = std::array::from_fn(|i| if i % 2 == 0 { scales[i / 2] } else { mins[i / 2] });
        self.scale(&pairs);
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
        let planes = &mut *self.planes;
        match bits {
            8 => planes.codes.extend_from_slice(codes),
            4..=6 => {
                let packed: [u8; CODES_CHUNK / 2] =
                    std::array::from_fn(|i| codes[i] & 15 | codes[CODES_CHUNK / 2 + i] << 4);
                planes.codes.extend_from_slice(&packed);
            }
            _ => planes.codes.extend_from_slice(&crumbs(codes, 0)),
        }
        match high_bits {
            1 => {
                let words = words(codes);
                let bit = |j: usize| (words[j] >> (bits - 1) & 0x0101_0101) << j;
                let word = (0..words.len()).map(bit).fold(0, |word, bits| word | bits);
                planes.high.extend_from_slice(&word.to_le_bytes());
            }
            2 => planes.high.extend_from_slice(&crumbs(codes, bits - 2)),
            _ => {}
        }
    }
}

/// Four codes in each word, the first in its lowest byte.
fn words(codes: &[u8; CODES_CHUNK]) -> [u32; CODES_CHUNK / 4] {
    let bytes = codes.as_chunks::<4>().0;
    std::array::from_fn(|j| u32::from_le_bytes(bytes[j]))
}

/// Two bits of each code, from bit `shift`: those of the first 16 codes in one word, of the others in the next.
fn crumbs(codes: &[u8; CODES_CHUNK], shift: u32) -> [u8; 8] {
    let words = words(codes);
    let pair = |j: usize| (words[j] >> shift & 0x0303_0303) << (j % 4 * 2);
    let [first, second] = [0..4, 4..8].map(|half| half.map(pair).fold(0, |word, bits| word | bits));
    let word = u64::from(first) | u64::from(second) << 32;
    word.to_le_bytes()
}

fn join(low: &mut [u8; 256], high: &[u8; 256], shift: u32) {
    for (low, high) in low.iter_mut().zip(high) {
        *low |= high << shift;
    }
}
