//! The common form of quantised matrices: 8-bit codes with a scale (and an offset) per group of columns.
//!
//! An element is `scale * code + offset`. Nearly every stored format can be unpacked into this form without loss, so
//! one integer dot kernel per instruction set serves them all. Activations are quantised to the same shape with one
//! scale per 32 columns, and keep the sums that offsets multiply.

use crate::aligned::AlignedBytes;

/// Columns that share an activation scale.
pub(crate) const ACT_GROUP: usize = 32;

/// Codes are padded with zeros to a multiple of this many columns.
pub(crate) const CODE_PAD: usize = 64;

/// Scales, offsets and sums are padded with zeros to a multiple of this many values.
pub(crate) const SCALE_PAD: usize = 16;

/// What the codes of a format look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CodeKind {
    /// Codes may be negative; otherwise they are 0..=127.
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

/// A quantised activation row, padded: `codes` in -127..=127.
#[derive(Clone, Copy)]
pub(crate) struct QuantRow<'a> {
    pub(crate) codes: &'a [i8],
    /// One per 32 columns.
    pub(crate) scales: &'a [f32],
    /// Sums of the quantised values, one per 16 columns.
    pub(crate) sums16: &'a [f32],
    /// Sums of the quantised values, one per 32 columns.
    pub(crate) sums32: &'a [f32],
}

/// A quantised activation row to fill: the padded slices of a [`QuantRow`], padding zero.
pub(crate) struct QuantRowMut<'a> {
    pub(crate) codes: &'a mut [i8],
    pub(crate) scales: &'a mut [f32],
    pub(crate) sums16: &'a mut [f32],
    pub(crate) sums32: &'a mut [f32],
}

/// Cuts memory into the parts of padded rows of `cols` columns.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Strides {
    codes: usize,
    groups16: usize,
    groups32: usize,
}

impl Strides {
    fn new(cols: usize) -> Self {
        Self {
            codes: cols.next_multiple_of(CODE_PAD),
            groups16: cols.div_ceil(16).next_multiple_of(SCALE_PAD),
            groups32: cols.div_ceil(32).next_multiple_of(SCALE_PAD),
        }
    }
}

/// Quantised activation rows.
pub(crate) struct QuantActs {
    strides: Strides,
    codes: AlignedBytes,
    floats: AlignedBytes,
}

impl QuantActs {
    pub(crate) fn zeroed(rows: usize, cols: usize) -> Self {
        let strides = Strides::new(cols);
        let floats = strides.groups16 + 2 * strides.groups32;
        Self { strides, codes: zeroed(rows * strides.codes), floats: zeroed(rows * floats * 4) }
    }

    /// Bytes of codes and number of floats of one row.
    pub(crate) fn row_lens(&self) -> (usize, usize) {
        (self.strides.codes, self.strides.groups16 + 2 * self.strides.groups32)
    }

    /// All codes and all floats, to be cut by [`Self::row_lens`] and [`Self::row_mut`].
    pub(crate) fn parts_mut(&mut self) -> (&mut [u8], &mut [f32]) {
        (self.codes.bytes_mut(), self.floats.floats_mut())
    }

    /// The fields of one row's parts.
    pub(crate) fn row_mut<'a>(
        (codes_len, floats_len): (usize, usize),
        codes: &'a mut [u8],
        floats: &'a mut [f32],
    ) -> QuantRowMut<'a> {
        let groups32 = Self::groups32(codes_len);
        debug_assert_eq!(codes.len(), codes_len);
        let (scales, sums) = floats[..floats_len].split_at_mut(groups32);
        let (sums32, sums16) = sums.split_at_mut(groups32);
        QuantRowMut { codes: as_signed_mut(codes), scales, sums16, sums32 }
    }

    pub(crate) fn row(&self, row: usize) -> QuantRow<'_> {
        let (codes_len, floats_len) = self.row_lens();
        let groups32 = self.strides.groups32;
        let floats = &self.floats.floats()[row * floats_len..(row + 1) * floats_len];
        let (scales, sums) = floats.split_at(groups32);
        let (sums32, sums16) = sums.split_at(groups32);
        let codes = as_signed(&self.codes.bytes()[row * codes_len..(row + 1) * codes_len]);
        QuantRow { codes, scales, sums16, sums32 }
    }

    fn groups32(codes_len: usize) -> usize {
        (codes_len / 32).next_multiple_of(SCALE_PAD)
    }
}

/// A few unpacked weight rows: one thread's scratch.
pub(crate) struct Panel {
    cols: usize,
    group: usize,
    code_stride: usize,
    scale_stride: usize,
    codes: AlignedBytes,
    scales: AlignedBytes,
    offsets: AlignedBytes,
}

impl Panel {
    pub(crate) fn empty() -> Self {
        Self {
            cols: 0,
            group: 0,
            code_stride: 0,
            scale_stride: 0,
            codes: zeroed(0),
            scales: zeroed(0),
            offsets: zeroed(0),
        }
    }

    /// Makes room for `rows` rows of another shape; the padding is zero afterwards.
    pub(crate) fn reshape(&mut self, rows: usize, cols: usize, group: usize) {
        if (self.cols, self.group) == (cols, group) {
            return;
        }
        let (code_stride, scale_stride) =
            (cols.next_multiple_of(CODE_PAD), cols.div_ceil(group).next_multiple_of(SCALE_PAD));
        self.codes = zeroed(rows * code_stride);
        self.scales = zeroed(rows * scale_stride * 4);
        self.offsets = zeroed(rows * scale_stride * 4);
        (self.cols, self.group) = (cols, group);
        (self.code_stride, self.scale_stride) = (code_stride, scale_stride);
    }

    pub(crate) fn row_mut(&mut self, row: usize) -> UnpackedRow<'_> {
        let n_groups = self.cols / self.group;
        let (c, s) = (row * self.code_stride, row * self.scale_stride);
        UnpackedRow {
            codes: as_signed_mut(&mut self.codes.bytes_mut()[c..c + self.cols]),
            scales: &mut self.scales.floats_mut()[s..s + n_groups],
            offsets: &mut self.offsets.floats_mut()[s..s + n_groups],
        }
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

fn zeroed(n_bytes: usize) -> AlignedBytes {
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
