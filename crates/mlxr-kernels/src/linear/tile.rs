//! What tile kernels work on beside tiles: unpacked weight rows, activation rows, memory.

use crate::aligned::AlignedBytes;
use crate::linear::codes::{Panel, QuantRow};
use crate::linear::packed::PackedRows;

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
}

impl TileScratch {
    pub(crate) fn empty() -> Self {
        Self { panel: AlignedBytes::zeroed(0).expect("one cache line") }
    }
}
