//! Products with the experts that rows were routed to.

use std::sync::OnceLock;

use mlxr_tensor::TensorError;

use crate::backend::GpuBackend;
use crate::bindings::Bound;
use crate::buffers::Pooled;
use crate::kernels::Group;
use crate::recorder::Grid;

/// More than these are not grouped: their counts are in workgroup memory.
const MAX_EXPERTS: usize = 1024;

/// What stands behind a routing.
pub(crate) struct GpuRouting {
    pub(crate) experts: Pooled,
    pub(crate) weights: Pooled,
    pub(crate) n_choices: usize,
    pub(crate) n_experts: usize,
    /// The same choices by expert, once a product has asked for them.
    groups: OnceLock<Pooled>,
}

/// Which rows a workgroup of a routed product computes.
#[derive(Clone, Copy)]
pub(crate) enum Choices<'a> {
    /// One that is the index of an expert for each choice.
    Each(Bound<'a>),
    /// Tiles of choices with the same expert, see `group.wgsl`.
    Tiles { tiles: Bound<'a>, tile: u32, n_tiles: usize },
}

impl GpuRouting {
    pub(crate) fn new(experts: Pooled, weights: Pooled, n_choices: usize, n_experts: usize) -> Self {
        Self { experts, weights, n_choices, n_experts, groups: OnceLock::new() }
    }

    /// Choices of a tile: a weight is read once for all of them, but places left over are computed as well, so there are
    /// not many more than an expert has on average. One: they are not grouped, as few experts have a second; with one each
    /// on average that is faster for codes, by measurements on an H200.
    fn tile(&self) -> usize {
        let average = self.n_choices / self.n_experts.max(1);
        if self.n_experts > MAX_EXPERTS {
            return 1;
        }
        match average {
            0..=1 => 1,
            2..=3 => 4,
            4..=7 => 8,
            _ => 16,
        }
    }

    /// Tiles that there may be, however the choices fall.
    fn max_tiles(&self, tile: usize) -> usize {
        // Each expert that is chosen may leave all but one place of a tile empty.
        let n_chosen = self.n_experts.min(self.n_choices);
        (self.n_choices + n_chosen * (tile - 1)) / tile
    }
}

impl GpuBackend {
    /// How a product with experts goes about a routing: grouped where experts have several rows each.
    pub(crate) fn choices<'a>(&self, routing: &'a GpuRouting) -> Result<Choices<'a>, TensorError> {
        let tile = routing.tile();
        if tile == 1 {
            return Ok(Choices::Each(routing.experts.bound()));
        }
        let n_tiles = routing.max_tiles(tile);
        if routing.groups.get().is_none() {
            let tiles = self.take(n_tiles * (tile + 1) * 4)?;
            let kernel = Group { n_experts: routing.n_experts as u32, tile: tile as u32 };
            let params = [routing.n_choices as u32, n_tiles as u32];
            let bound = [routing.experts.bound(), tiles.bound()];
            self.run(&kernel, &bound, &params, Grid::flat(routing.n_experts))?;
            // When another thread was faster its tiles serve as well.
            let _ = routing.groups.set(tiles);
        }
        let tiles = routing.groups.get().expect("just set").bound();
        Ok(Choices::Tiles { tiles, tile: tile as u32, n_tiles })
    }
}
