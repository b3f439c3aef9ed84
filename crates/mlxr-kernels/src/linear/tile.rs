//! What tile kernels work on: weight rows as the file has them, many at a time.

use crate::aligned::AlignedBytes;
use crate::linear::codes::{Panel, QuantRow};
use crate::linear::packed::PackedRows;

/// Weight rows of a stored format.
pub(crate) struct Tile<'a> {
    /// The rows, one after the other.
    pub(crate) data: &'a [u8],
    pub(crate) row_bytes: usize,
}

/// The first rows of a panel.
pub(crate) struct UnpackedTile<'a> {
    pub(crate) panel: &'a Panel,
    pub(crate) n_rows: usize,
}

/// Activation rows.
pub(crate) struct ActRows<'a> {
    pub(crate) rows: &'a [QuantRow<'a>],
    /// The same rows once more, if there are as many as a table packs them from.
    pub(crate) packed: Option<&'a PackedRows>,
}

/// One thread's memory for tile kernels.
pub(crate) struct TileScratch {
    /// Unpacked codes in the kernel's order.
    pub(crate) panel: AlignedBytes,
    /// Rows that do not fill a tile.
    pub(crate) tail: Vec<u8>,
}

impl TileScratch {
    pub(crate) fn empty() -> Self {
        Self { panel: AlignedBytes::zeroed(0).expect("one cache line"), tail: Vec::new() }
    }
}
