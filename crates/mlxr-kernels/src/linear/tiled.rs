//! Matrices in tile order: sixteen rows side by side, a vector loading the same four bytes of each.
//!
//! Blocks of a row are cut in words of four bytes, and a line holds one word of all sixteen rows. What blocks have beside
//! their words, a number of one or two bytes or scales and biases that are stored apart, is kept behind the lines of the
//! tile, which so begin on cache lines. Bits of some words change places, so that formats unpack alike. Nothing is added or
//! lost, and any row can be read back as it was stored.

use std::ops::Range;

use bytes::Bytes;
use mlxr_tensor::{DType, Format, HostTensor, MlxFloat, codec};

use crate::aligned::AlignedBytes;
use crate::disjoint::{Disjoint, row_grain};
use crate::linear::codes::zeroed;
use crate::pool::ThreadPool;
use crate::room::Room;

/// Rows of a tile.
pub(crate) const N_ROWS: usize = 16;

/// Bytes of a line: a word of each row.
pub(crate) const LINE_BYTES: usize = 4 * N_ROWS;

/// Bytes of a two-byte number of each row.
pub(crate) const HALVES_BYTES: usize = 2 * N_ROWS;

/// Bytes of what counts as a block of plain floats: what is put in order at once.
const FLOAT_BLOCK_BYTES: usize = 16;

/// What is kept behind the lines.
#[derive(Clone, Copy, Debug)]
enum Beside {
    Nothing,
    /// A number of a block, by its offset and its bytes.
    InBlock {
        at: usize,
        n_bytes: usize,
    },
    /// Scales, and biases if there are some, that are stored apart: numbers of so many bytes, of which one belongs to a
    /// power of two of blocks.
    Apart {
        n_bytes: usize,
        n_kinds: usize,
        log2_blocks: u32,
    },
}

/// Bits of a block's words that change places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    Nothing,
    /// Of each four words the nibbles, of which neighbours share a byte: the first half of them become the low ones, the
    /// others the high ones.
    Nibbles,
    /// Of the word with this number: bit `4 * i + j` becomes bit `8 * j + i`, in the byte of its code.
    FifthBits(usize),
}

/// How a format's blocks are cut in words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockCut {
    format: Format,
    block_cols: usize,
    block_bytes: usize,
    words_at: usize,
    n_words: usize,
    beside: Beside,
    moved: Moved,
}

impl BlockCut {
    /// The cut of a format that has a tile order, if rows of `n_cols` columns are whole blocks.
    pub(crate) fn of(format: Format, n_cols: usize) -> Option<Self> {
        let cut = match format {
            Format::Plain(dtype) => Self::of_blocks(dtype)?,
            Format::MlxAffine { bits, group_size, scale } => {
                let n_blocks = group_size / 32;
                if group_size % 32 != 0
                    || !n_blocks.is_power_of_two()
                    || !n_cols.is_multiple_of(group_size.into())
                {
                    return None;
                }
                let beside =
                    Beside::Apart { n_bytes: scale.block_bytes(), n_kinds: 2, log2_blocks: n_blocks.ilog2() };
                Self::of_words(format, bits, beside)?
            }
            Format::MlxFloat(MlxFloat::Mxfp4) => {
                Self::of_words(format, 4, Beside::Apart { n_bytes: 1, n_kinds: 1, log2_blocks: 0 })?
            }
            _ => return None,
        };
        n_cols.is_multiple_of(cut.block_cols).then_some(cut)
    }

    /// Of a format with blocks of its own.
    fn of_blocks(dtype: DType) -> Option<Self> {
        let half = |at: usize| Beside::InBlock { at, n_bytes: 2 };
        let (words_at, beside, moved) = match dtype {
            DType::Q4_0 | DType::Q8_0 | DType::IQ4_NL => (2, half(0), Moved::Nothing),
            DType::Q5_0 => (2, half(0), Moved::FifthBits(0)),
            DType::Q5_1 => (0, Beside::Nothing, Moved::FifthBits(1)),
            DType::MXFP4 => (1, Beside::InBlock { at: 0, n_bytes: 1 }, Moved::Nothing),
            DType::Q6_K => (0, half(208), Moved::Nothing),
            DType::Q3_K => (0, half(108), Moved::Nothing),
            DType::Q4_1 | DType::Q2_K | DType::Q4_K | DType::Q5_K | DType::IQ4_XS => {
                (0, Beside::Nothing, Moved::Nothing)
            }
            DType::F32 | DType::F16 | DType::BF16 => (0, Beside::Nothing, Moved::Nothing),
            _ => return None,
        };
        let (block_cols, block_bytes) = match dtype.block_len() {
            1 => (FLOAT_BLOCK_BYTES / dtype.block_bytes(), FLOAT_BLOCK_BYTES),
            n => (n, dtype.block_bytes()),
        };
        let format = Format::Plain(dtype);
        Some(Self { format, block_cols, block_bytes, words_at, n_words: block_bytes / 4, beside, moved })
    }

    /// Of a format whose codes are words of their own: 32 columns are a block.
    fn of_words(format: Format, bits: u8, beside: Beside) -> Option<Self> {
        let moved = match bits {
            4 => Moved::Nibbles,
            8 => Moved::Nothing,
            _ => return None,
        };
        let n_words = usize::from(bits);
        Some(Self { format, block_cols: 32, block_bytes: 4 * n_words, words_at: 0, n_words, beside, moved })
    }

    /// Rows of so many bytes of numbers, if they are whole words, as many as are transposed at once or more.
    fn of_numbers(row_bytes: usize) -> Option<Self> {
        let n_words = row_bytes / 4;
        (4 <= n_words && row_bytes.is_multiple_of(4)).then_some(Self {
            format: Format::Plain(DType::I8),
            block_cols: row_bytes,
            block_bytes: row_bytes,
            words_at: 0,
            n_words,
            beside: Beside::Nothing,
            moved: Moved::Nothing,
        })
    }

    pub(crate) fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Byte offset of the number that a block has beside its words, and its bytes.
    pub(crate) fn number(&self) -> Option<(usize, usize)> {
        match self.beside {
            Beside::InBlock { at, n_bytes } => Some((at, n_bytes)),
            Beside::Nothing | Beside::Apart { .. } => None,
        }
    }

    /// Byte offset of the first word.
    pub(crate) fn words_at(&self) -> usize {
        self.words_at
    }

    /// Words, and lines, of a block: four at least.
    pub(crate) fn n_words(&self) -> usize {
        self.n_words
    }

    /// Where runs of four words begin that together are all words of a block; the last two may have some in common.
    #[inline(always)]
    pub(crate) fn runs(&self) -> impl Iterator<Item = usize> + use<> {
        let n = self.n_words;
        (0..n).step_by(4).map(move |word| word.min(n - 4))
    }

    /// Bytes of the lines of a tile, and of a tile.
    fn tile_bytes(&self, n_blocks: usize) -> (usize, usize) {
        let lines = n_blocks * self.n_words() * LINE_BYTES;
        let beside = match self.beside {
            Beside::Nothing => 0,
            Beside::InBlock { n_bytes, .. } => n_blocks * n_bytes * N_ROWS,
            Beside::Apart { n_bytes, n_kinds, log2_blocks } => {
                (n_blocks >> log2_blocks) * n_kinds * n_bytes * N_ROWS
            }
        };
        (lines, (lines + beside).next_multiple_of(LINE_BYTES))
    }

    /// Puts tile `tile` of a tensor in tile order; rows that it lacks are zero.
    fn put_tile(&self, put: PutInOrder, tensor: &HostTensor, tile: usize, out: &mut [u8]) {
        let n_blocks = tensor.cols() / self.block_cols;
        let n_bytes = N_ROWS * n_blocks * self.block_bytes();
        let (lines, halves) = out.split_at_mut(self.tile_bytes(n_blocks).0);
        let stored = &tensor.data()[tile * n_bytes..];
        let stored = &stored[..stored.len().min(n_bytes)];
        let mut filled_up = Vec::new();
        let rows = if stored.len() < n_bytes {
            filled_up.extend_from_slice(stored);
            filled_up.resize(n_bytes, 0);
            &filled_up
        } else {
            stored
        };
        // SAFETY: a table is only handed out where the CPU has its features (`Kernels::available`).
        unsafe { put(*self, rows, lines, halves) };
        self.put_apart(put, tensor, tile, halves);
    }

    /// Puts what tile `tile` of a tensor has stored apart side by side, scales and biases in turn; rows that are not there
    /// have zeros.
    fn put_apart(&self, put: PutInOrder, tensor: &HostTensor, tile: usize, out: &mut [u8]) {
        let Beside::Apart { n_bytes, n_kinds, .. } = self.beside else { return };
        let row_bytes = self.format.row_scale_bytes(tensor.cols());
        let tile_bytes = N_ROWS * row_bytes;
        for (kind, stored) in [tensor.scales(), tensor.biases()].into_iter().take(n_kinds).enumerate() {
            let stored = &stored[tile * tile_bytes..];
            let stored = &stored[..stored.len().min(tile_bytes)];
            if stored.len() < tile_bytes && kind == 0 {
                out.fill(0);
            }
            let (stride, out) = (n_kinds * n_bytes * N_ROWS, &mut out[kind * n_bytes * N_ROWS..]);
            let put_apart = match n_bytes {
                1 => put_apart::<1>,
                2 => put_apart::<2>,
                4 => put_apart::<4>,
                _ => unreachable!("numbers of {n_bytes} bytes"),
            };
            put_apart(put, stored, row_bytes, stride, out);
        }
    }

    /// Moves the bits of a block's lines.
    #[inline(always)]
    pub(crate) fn move_bits(&self, lines: &mut [u8]) {
        match self.moved {
            Moved::Nothing => {}
            Moved::Nibbles => {
                // A loop is compiled for what the caller is, `for_each` may not be.
                for lines in lines.as_chunks_mut().0 {
                    halve_nibbles(lines);
                }
            }
            Moved::FifthBits(word) => {
                let line = lines.as_chunks_mut::<LINE_BYTES>().0.get_mut(word).expect("a line of a block");
                for word in line.as_chunks_mut::<4>().0 {
                    *word = spread_bits(u32::from_le_bytes(*word)).to_le_bytes();
                }
            }
        }
    }

    /// Takes back what [`Self::move_bits`] did to the words of a row.
    fn move_back(&self, words: &mut [[u8; 4]]) {
        match self.moved {
            Moved::Nothing => {}
            Moved::Nibbles => words.as_chunks_mut().0.iter_mut().for_each(|words| {
                *words = neighbours(words.map(u32::from_le_bytes)).map(u32::to_le_bytes);
            }),
            Moved::FifthBits(word) => {
                words[word] = gathered_bits(u32::from_le_bytes(words[word])).to_le_bytes();
            }
        }
    }
}

/// [`Moved::Nibbles`] of four lines.
#[inline(always)]
fn halve_nibbles(lines: &mut [u8; 4 * LINE_BYTES]) {
    // Four nibbles, one to a byte.
    fn spread(nibbles: u32) -> u32 {
        let bytes = (nibbles | nibbles << 8) & 0x00ff_00ff;
        (bytes | bytes << 4) & 0x0f0f_0f0f
    }
    let mut words = [[0u32; N_ROWS]; 4];
    for (words, line) in words.iter_mut().zip(lines.as_chunks::<LINE_BYTES>().0) {
        for (word, bytes) in words.iter_mut().zip(line.as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
    }
    for (i, line) in lines.as_chunks_mut::<LINE_BYTES>().0.iter_mut().enumerate() {
        let (first, second, shift) = (&words[i / 2], &words[2 + i / 2], 16 * (i % 2));
        for (bytes, (first, second)) in line.as_chunks_mut().0.iter_mut().zip(first.iter().zip(second)) {
            let [low, high] = [first, second].map(|word| spread(word >> shift & 0xffff));
            *bytes = (low | high << 4).to_le_bytes();
        }
    }
}

/// What [`halve_nibbles`] made of a row's words, as they were.
fn neighbours(words: [u32; 4]) -> [u32; 4] {
    let gathered = |nibbles: u32| {
        let bytes = (nibbles | nibbles >> 4) & 0x00ff_00ff;
        (bytes | bytes >> 8) & 0xffff
    };
    let word = |i: usize, shift: usize| {
        let [first, second] = [words[i], words[i + 1]].map(|word| gathered(word >> shift & 0x0f0f_0f0f));
        first | second << 16
    };
    [word(0, 0), word(2, 0), word(0, 4), word(2, 4)]
}

/// Pairs of bits that are exchanged one after the other, by their distance and the lower ones: even bits become the low
/// half, odd ones the high half.
const EXCHANGES: [(u32, u32); 4] = [(1, 0x2222_2222), (2, 0x0c0c_0c0c), (4, 0x00f0_00f0), (8, 0x0000_ff00)];

#[inline(always)]
fn exchanged(bits: u32, (distance, lower): (u32, u32)) -> u32 {
    let other = (bits ^ bits >> distance) & lower;
    bits ^ other ^ other << distance
}

/// [`Moved::FifthBits`]: bits by their place in runs of four.
#[inline(always)]
fn spread_bits(mut bits: u32) -> u32 {
    for _ in 0..2 {
        for pairs in EXCHANGES {
            bits = exchanged(bits, pairs);
        }
    }
    bits
}

/// What [`spread_bits`] was given.
fn gathered_bits(mut bits: u32) -> u32 {
    for _ in 0..2 {
        for pairs in EXCHANGES.into_iter().rev() {
            bits = exchanged(bits, pairs);
        }
    }
    bits
}

/// Puts sixteen rows, one after the other, in tile order: lines, then the numbers of blocks.
pub(crate) type PutInOrder = unsafe fn(BlockCut, rows: &[u8], lines: &mut [u8], halves: &mut [u8]);

/// [`PutInOrder`] by `transpose`, which makes of four words of each of four rows a word of each, four times.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(crate) fn put_in_order(
    cut: BlockCut,
    rows: &[u8],
    lines: &mut [u8],
    halves: &mut [u8],
    transpose: impl Fn([&[u8; 16]; 4]) -> [[u8; 16]; 4],
) {
    let (stride, block_bytes) = (rows.len() / N_ROWS, cut.block_bytes());
    let n_blocks = stride / block_bytes;
    assert!(rows.len() == N_ROWS * n_blocks * block_bytes && cut.n_words() >= 4, "whole blocks");
    let blocks = lines.chunks_exact_mut(cut.n_words() * LINE_BYTES).enumerate();
    for (block, lines) in blocks.take(n_blocks) {
        for word in cut.runs() {
            let at = block * block_bytes + cut.words_at() + 4 * word;
            let lines = &mut lines[word * LINE_BYTES..][..4 * LINE_BYTES];
            for four in 0..N_ROWS / 4 {
                let words = transpose(std::array::from_fn(|row| {
                    rows[(4 * four + row) * stride + at..].first_chunk().expect("four words")
                }));
                for (line, words) in lines.chunks_exact_mut(LINE_BYTES).zip(words) {
                    line[16 * four..16 * four + 16].copy_from_slice(&words);
                }
            }
        }
        cut.move_bits(lines);
    }
    put_numbers(cut, rows, halves);
}

/// Puts the numbers that blocks of sixteen rows have beside their words side by side.
#[inline(always)]
pub(crate) fn put_numbers(cut: BlockCut, rows: &[u8], out: &mut [u8]) {
    let Some((number_at, n_bytes)) = cut.number() else { return };
    let (stride, block_bytes) = (rows.len() / N_ROWS, cut.block_bytes());
    for (block, numbers) in out.chunks_exact_mut(n_bytes * N_ROWS).take(stride / block_bytes).enumerate() {
        for (number, row) in numbers.chunks_exact_mut(n_bytes).zip(rows.chunks_exact(stride)) {
            number.copy_from_slice(&row[block * block_bytes + number_at..][..n_bytes]);
        }
    }
}

/// Puts numbers of `N` bytes of up to sixteen rows side by side, those of all rows `stride` bytes after the ones before.
fn put_apart<const N: usize>(
    put: PutInOrder,
    stored: &[u8],
    row_bytes: usize,
    stride: usize,
    out: &mut [u8],
) {
    if stored.len() == N_ROWS * row_bytes
        && let Some(cut) = BlockCut::of_numbers(row_bytes)
    {
        // Words of all rows side by side, and then numbers of a word one after the other.
        let mut lines = vec![0; cut.n_words * LINE_BYTES];
        // SAFETY: a table is only handed out where the CPU has its features (`Kernels::available`).
        unsafe { put(cut, stored, &mut lines, &mut []) };
        let numbers =
            lines.as_chunks::<LINE_BYTES>().0.iter().flat_map(|line| (0..4 / N).map(move |i| (line, i)));
        for ((line, i), out) in numbers.zip(out.chunks_mut(stride)) {
            for (number, word) in out.as_chunks_mut::<N>().0[..N_ROWS].iter_mut().zip(line.as_chunks::<4>().0)
            {
                number.copy_from_slice(&word[N * i..][..N]);
            }
        }
        return;
    }
    for (lane, row) in stored.chunks_exact(row_bytes.max(1)).enumerate() {
        for (number, out) in row.as_chunks::<N>().0.iter().zip(out.chunks_mut(stride)) {
            out[lane * N..lane * N + N].copy_from_slice(number);
        }
    }
}

/// A matrix whose products are those of tile order.
pub(crate) struct TiledMatrix {
    cut: BlockCut,
    n_rows: usize,
    n_cols: usize,
    n_blocks: usize,
    rows: Rows,
}

/// Where the rows are.
enum Rows {
    /// All tiles, one after the other.
    Tiles(AlignedBytes),
    /// In the file's order: each product puts those that it is about to meet in tile order.
    Stored(HostTensor, PutInOrder),
}

/// Memory that tiles of rows in the file's order are made in.
pub(crate) struct TileRoom(AlignedBytes);

impl TileRoom {
    pub(crate) fn empty() -> Self {
        Self(zeroed(0))
    }

    fn bytes(&mut self, n: usize) -> &mut [u8] {
        if self.0.bytes().len() < n {
            self.0 = zeroed(n);
        }
        &mut self.0.bytes_mut()[..n]
    }
}

/// Whole tiles.
#[derive(Clone, Copy)]
pub(crate) struct Tiles<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) n_blocks: usize,
    /// Bytes of a tile, and of its lines.
    pub(crate) tile_bytes: usize,
    pub(crate) line_bytes: usize,
    /// Blocks that share what is stored apart, as a power of two.
    #[cfg_attr(
        not(any(target_arch = "x86_64", target_arch = "aarch64")),
        expect(dead_code, reason = "plain Rust has no tile kernels")
    )]
    pub(crate) log2_shared: u32,
}

impl TiledMatrix {
    /// A copy of `tensor`, made by all threads, if there is memory for it; otherwise rows stay where they are.
    pub(crate) fn new(
        tensor: &HostTensor,
        cut: BlockCut,
        put: PutInOrder,
        pool: &ThreadPool,
        memory: &Room,
    ) -> Self {
        let (n_rows, n_cols) = (tensor.rows(), tensor.cols());
        let n_blocks = n_cols / cut.block_cols;
        let (_, tile_bytes) = cut.tile_bytes(n_blocks);
        let n_tiles = n_rows.div_ceil(N_ROWS);
        let rows = match memory.copy(n_tiles * tile_bytes) {
            None => Rows::Stored(tensor.clone(), put),
            Some(mut copy) => {
                let tiles = Disjoint::new(copy.bytes_mut());
                pool.share(n_tiles, row_grain(n_tiles, pool), |claimed| {
                    for tile in claimed {
                        // SAFETY: each tile is claimed once.
                        cut.put_tile(put, tensor, tile, unsafe { tiles.row(tile, tile_bytes) });
                    }
                });
                Rows::Tiles(copy)
            }
        };
        Self { cut, n_rows, n_cols, n_blocks, rows }
    }

    /// Whether there is a copy in tile order.
    #[cfg(test)]
    pub(crate) fn is_copy(&self) -> bool {
        matches!(self.rows, Rows::Tiles(_))
    }

    pub(crate) fn format(&self) -> Format {
        self.cut.format
    }

    pub(crate) fn rows(&self) -> usize {
        self.n_rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.n_cols
    }

    /// The tiles that hold rows `rows`, which begin with a tile; they are made in `room` where there is no copy.
    pub(crate) fn tiles<'a>(&'a self, rows: Range<usize>, room: &'a mut TileRoom) -> Tiles<'a> {
        assert!(rows.start.is_multiple_of(N_ROWS) && rows.end <= self.n_rows, "tiles of {rows:?}");
        let (line_bytes, tile_bytes) = self.cut.tile_bytes(self.n_blocks);
        let tiles = rows.start / N_ROWS..rows.end.div_ceil(N_ROWS);
        let bytes = match &self.rows {
            Rows::Tiles(copy) => &copy.bytes()[tiles.start * tile_bytes..tiles.end * tile_bytes],
            Rows::Stored(tensor, put) => {
                let made = room.bytes(tiles.len() * tile_bytes);
                for (tile, out) in tiles.zip(made.chunks_exact_mut(tile_bytes.max(1))) {
                    self.cut.put_tile(*put, tensor, tile, out);
                }
                &*made
            }
        };
        let log2_shared = match self.cut.beside {
            Beside::Apart { log2_blocks, .. } => log2_blocks,
            Beside::Nothing | Beside::InBlock { .. } => 0,
        };
        Tiles { bytes, n_blocks: self.n_blocks, tile_bytes, line_bytes, log2_shared }
    }

    /// Row `row` as it was stored: its blocks, scales and biases.
    fn stored_row(&self, row: usize) -> [Vec<u8>; 3] {
        let first = row / N_ROWS * N_ROWS;
        let mut room = TileRoom::empty();
        let tile = self.tiles(first..(first + N_ROWS).min(self.n_rows), &mut room);
        let (lines, beside) = tile.bytes.split_at(tile.line_bytes);
        let (cut, lane) = (self.cut, row - first);
        let mut data = vec![0; self.n_blocks * cut.block_bytes()];
        let blocks =
            lines.chunks_exact(cut.n_words() * LINE_BYTES).zip(data.chunks_exact_mut(cut.block_bytes()));
        for (i, (lines, block)) in blocks.enumerate() {
            let words = &mut block[cut.words_at()..].as_chunks_mut::<4>().0[..cut.n_words()];
            for (word, line) in words.iter_mut().zip(lines.chunks_exact(LINE_BYTES)) {
                word.copy_from_slice(&line[4 * lane..4 * lane + 4]);
            }
            cut.move_back(words);
            if let Some((at, n)) = cut.number() {
                block[at..at + n].copy_from_slice(&beside[(i * N_ROWS + lane) * n..][..n]);
            }
        }
        let [mut scales, mut biases] = [Vec::new(), Vec::new()];
        if let Beside::Apart { n_bytes, n_kinds, log2_blocks } = cut.beside {
            let kinds = [&mut scales, &mut biases];
            for numbers in beside
                .chunks_exact(n_bytes * N_ROWS)
                .take((self.n_blocks >> log2_blocks) * n_kinds)
                .enumerate()
            {
                let (i, numbers) = numbers;
                kinds[i % n_kinds].extend_from_slice(&numbers[lane * n_bytes..][..n_bytes]);
            }
        }
        [data, scales, biases]
    }

    /// Row `row` as numbers.
    pub(crate) fn dequantise_row(&self, row: usize, out: &mut [f32]) {
        if let Rows::Stored(tensor, _) = &self.rows {
            codec::dequantise_rows(tensor, row..row + 1, out).expect("the format was checked at upload");
            return;
        }
        let [data, scales, biases] = self.stored_row(row);
        let decoded = match self.cut.format {
            Format::Plain(dtype) => codec::dequantise_row(dtype, &data, out),
            format => {
                let parts = [data, scales, biases].map(Bytes::from);
                let [data, scales, biases] = parts;
                HostTensor::with_scales("row", &[1, self.n_cols], format, data, scales, biases)
                    .and_then(|row| codec::dequantise_rows(&row, 0..1, out))
            }
        };
        decoded.expect("the row is whole blocks");
    }
}
