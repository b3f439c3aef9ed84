//! The common form of quantised matrices: 8-bit codes with a scale (and an offset) per group of columns.
//!
//! An element is `scale * code + offset`. Nearly every stored format can be unpacked into this form without loss, so
//! one integer dot kernel per instruction set serves them all. Activations are quantised to the same shape with one
//! scale per 32 columns, and keep the sums that offsets multiply.

use std::ops::Range;

use crate::aligned::{AlignedBytes, as_floats, as_floats_mut, as_words_mut};

/// Columns that share an activation scale.
pub(crate) const ACT_GROUP: usize = 32;

/// Codes are padded with zeros to a multiple of this many columns.
pub(crate) const CODE_PAD: usize = 128;

/// Scales, offsets and sums are padded with zeros to a multiple of this many values.
pub(crate) const SCALE_PAD: usize = 16;

/// What the codes of a format look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CodeKind {
    /// Codes may be negative; otherwise they are 0..=31, so that eight products with activations fit sixteen bits.
    pub(crate) signed: bool,
    /// Columns per scale: 16 or 32.
    pub(crate) group: usize,
    /// Whether offsets are other than zero.
    pub(crate) offsets: bool,
}

/// A weight row as stored.
#[derive(Clone, Copy)]
pub(crate) struct StoredRow<'a> {
    pub(crate) data: &'a [u8],
    pub(crate) scales: &'a [u8],
    pub(crate) biases: &'a [u8],
    /// Columns per stored scale (formats with separate scales).
    pub(crate) group_size: usize,
}

/// Where a row is unpacked to. The slices cover the columns of the row exactly, padding excluded.
pub(crate) struct UnpackedRow<'a> {
    pub(crate) codes: &'a mut [i8],
    pub(crate) scales: &'a mut [f32],
    pub(crate) offsets: &'a mut [f32],
}

/// An unpacked weight row, padded.
#[derive(Clone, Copy)]
pub(crate) struct CodeRow<'a> {
    pub(crate) codes: &'a [i8],
    pub(crate) scales: &'a [f32],
    pub(crate) offsets: &'a [f32],
}

/// Where the parts of a quantised activation row are: one run of bytes, padded with zeros, so that a kernel reaches
/// everything of a row through one pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ActLayout {
    /// Columns, of which the last group may lack some.
    unpadded: usize,
    /// Padded columns: bytes of codes.
    padded: usize,
    groups32: usize,
    groups16: usize,
}

impl ActLayout {
    pub(crate) fn new(cols: usize) -> Self {
        Self {
            unpadded: cols,
            padded: cols.next_multiple_of(CODE_PAD),
            groups32: cols.div_ceil(32).next_multiple_of(SCALE_PAD),
            groups16: cols.div_ceil(16).next_multiple_of(SCALE_PAD),
        }
    }

    fn scales(&self) -> Range<usize> {
        self.padded..self.padded + 4 * self.groups32
    }

    fn sums(&self, group: usize) -> Range<usize> {
        let start = self.scales().end;
        let middle = start + 4 * self.groups32;
        if group == 32 { start..middle } else { middle..middle + 4 * self.groups16 }
    }

    fn negated(&self, group: usize) -> Range<usize> {
        let start = self.sums(16).end;
        let middle = start + 4 * self.groups32;
        if group == 32 { start..middle } else { middle..middle + 4 * self.groups16 }
    }

    /// Byte offset of the scales, one `f32` per 32 columns.
    pub(crate) fn scales_at(&self) -> usize {
        self.scales().start
    }

    /// Byte offset of the sums, one `f32` per `group` columns, 16 or 32.
    pub(crate) fn sums_at(&self, group: usize) -> usize {
        self.sums(group).start
    }

    /// Byte offset of the negated sums of codes, one `i32` per `group` columns, 16 or 32.
    pub(crate) fn negated_at(&self, group: usize) -> usize {
        self.negated(group).start
    }

    pub(crate) fn row_bytes(&self) -> usize {
        self.negated(16).end
    }
}

/// A quantised activation row, padded.
#[derive(Clone, Copy)]
pub(crate) struct QuantRow<'a> {
    bytes: &'a [u8],
    layout: ActLayout,
}

impl<'a> QuantRow<'a> {
    /// All parts, at the offsets of [`Self::layout`].
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub(crate) fn layout(&self) -> ActLayout {
        self.layout
    }

    /// Padded columns.
    pub(crate) fn cols(&self) -> usize {
        self.layout.padded
    }

    /// Codes in -127..=127.
    pub(crate) fn codes(&self) -> &'a [i8] {
        as_signed(&self.bytes[..self.layout.padded])
    }

    /// One per 32 columns.
    pub(crate) fn scales(&self) -> &'a [f32] {
        as_floats(&self.bytes[self.layout.scales()])
    }

    /// Sums of the quantised values, one per `group` columns, 16 or 32.
    pub(crate) fn sums(&self, group: usize) -> &'a [f32] {
        as_floats(&self.bytes[self.layout.sums(group)])
    }
}

/// The parts of a quantised activation row to fill, padding zeroed; see [`QuantRow`].
pub(crate) struct QuantRowMut<'a> {
    pub(crate) codes: &'a mut [i8],
    pub(crate) scales: &'a mut [f32],
    pub(crate) sums32: &'a mut [f32],
    pub(crate) sums16: &'a mut [f32],
    /// The negated sums of codes, one per 32 columns: times a zero point they take it off.
    pub(crate) negated32: &'a mut [i32],
    pub(crate) negated16: &'a mut [i32],
}

impl<'a> QuantRowMut<'a> {
    /// Cuts `layout.row_bytes()` bytes, aligned to 64, into parts.
    pub(crate) fn new(layout: ActLayout, bytes: &'a mut [u8]) -> Self {
        let (codes, rest) = bytes.split_at_mut(layout.padded);
        let (floats, words) = rest.split_at_mut(4 * (2 * layout.groups32 + layout.groups16));
        let (scales, sums) = as_floats_mut(floats).split_at_mut(layout.groups32);
        let (sums32, sums16) = sums.split_at_mut(layout.groups32);
        let (negated32, negated16) = as_words_mut(words).split_at_mut(layout.groups32);
        let n_groups = layout.unpadded.div_ceil(ACT_GROUP);
        codes[n_groups * ACT_GROUP..].fill(0);
        scales[n_groups..].fill(0.0);
        sums32[n_groups..].fill(0.0);
        sums16[2 * n_groups..].fill(0.0);
        negated32[n_groups..].fill(0);
        negated16[2 * n_groups..].fill(0);
        Self { codes: as_signed_mut(codes), scales, sums32, sums16, negated32, negated16 }
    }
}

/// Quantised activation rows.
pub(crate) struct QuantActs {
    layout: ActLayout,
    memory: AlignedBytes,
}

impl QuantActs {
    /// Rows in memory that has room for them; what it holds has no meaning yet.
    pub(crate) fn new(layout: ActLayout, memory: AlignedBytes) -> Self {
        Self { layout, memory }
    }

    pub(crate) fn into_memory(self) -> AlignedBytes {
        self.memory
    }

    pub(crate) fn layout(&self) -> ActLayout {
        self.layout
    }

    /// The first `n` rows, `layout().row_bytes()` each.
    pub(crate) fn rows_mut(&mut self, n: usize) -> &mut [u8] {
        &mut self.memory.bytes_mut()[..n * self.layout.row_bytes()]
    }

    pub(crate) fn row(&self, row: usize) -> QuantRow<'_> {
        let n = self.layout.row_bytes();
        QuantRow { bytes: &self.memory.bytes()[row * n..(row + 1) * n], layout: self.layout }
    }
}

/// A few unpacked weight rows: one thread's scratch.
pub(crate) struct Panel {
    rows: usize,
    cols: usize,
    kind: Option<CodeKind>,
    code_stride: usize,
    scale_stride: usize,
    codes: AlignedBytes,
    scales: AlignedBytes,
    offsets: AlignedBytes,
}

impl Panel {
    pub(crate) fn empty() -> Self {
        Self {
            rows: 0,
            cols: 0,
            kind: None,
            code_stride: 0,
            scale_stride: 0,
            codes: zeroed(0),
            scales: zeroed(0),
            offsets: zeroed(0),
        }
    }

    /// Makes room for `rows` rows of another shape or kind; padding, and offsets where the kind has none, are zero
    /// afterwards.
    pub(crate) fn reshape(&mut self, rows: usize, cols: usize, kind: CodeKind) {
        if (self.rows, self.cols, self.kind) == (rows, cols, Some(kind)) {
            return;
        }
        let group = kind.group;
        let (code_stride, scale_stride) =
            (cols.next_multiple_of(CODE_PAD), cols.div_ceil(group).next_multiple_of(SCALE_PAD));
        self.codes = zeroed(rows * code_stride);
        self.scales = zeroed(rows * scale_stride * 4);
        self.offsets = zeroed(rows * scale_stride * 4);
        (self.rows, self.cols, self.kind) = (rows, cols, Some(kind));
        (self.code_stride, self.scale_stride) = (code_stride, scale_stride);
    }

    pub(crate) fn row_mut(&mut self, row: usize) -> UnpackedRow<'_> {
        let n_groups = self.kind.map_or(0, |kind| self.cols / kind.group);
        let (c, s) = (row * self.code_stride, row * self.scale_stride);
        UnpackedRow {
            codes: as_signed_mut(&mut self.codes.bytes_mut()[c..c + self.cols]),
            scales: &mut self.scales.floats_mut()[s..s + n_groups],
            offsets: &mut self.offsets.floats_mut()[s..s + n_groups],
        }
    }

    /// The codes, scales and offsets of `n` rows, padded, one row after the other.
    pub(crate) fn rows_from(&self, first: usize, n: usize) -> (&[i8], &[f32], &[f32]) {
        let codes = first * self.code_stride..(first + n) * self.code_stride;
        let scales = first * self.scale_stride..(first + n) * self.scale_stride;
        (
            as_signed(&self.codes.bytes()[codes]),
            &self.scales.floats()[scales.clone()],
            &self.offsets.floats()[scales],
        )
    }

    pub(crate) fn row(&self, row: usize) -> CodeRow<'_> {
        let (c, s) = (row * self.code_stride, row * self.scale_stride);
        CodeRow {
            codes: as_signed(&self.codes.bytes()[c..c + self.code_stride]),
            scales: &self.scales.floats()[s..s + self.scale_stride],
            offsets: &self.offsets.floats()[s..s + self.scale_stride],
        }
    }
}

pub(crate) fn zeroed(n_bytes: usize) -> AlignedBytes {
    AlignedBytes::zeroed(n_bytes).unwrap_or_else(|| panic!("out of memory: {n_bytes} bytes of scratch"))
}

fn as_signed(bytes: &[u8]) -> &[i8] {
    // SAFETY: `u8` and `i8` have the same layout and all bit patterns are valid.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len()) }
}

fn as_signed_mut(bytes: &mut [u8]) -> &mut [i8] {
    // SAFETY: as in `as_signed`; the borrow stays exclusive.
    unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len()) }
}
