//! What the simpler kernels are told.

use bytemuck::{Pod, Zeroable};

use crate::kernels::NormShape;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct NormParams {
    pub(crate) n_groups: u32,
    pub(crate) n_items: u32,
    pub(crate) cols: f32,
    pub(crate) eps: f32,
    pub(crate) scale: f32,
}

impl NormParams {
    pub(crate) fn new(shape: NormShape, n_groups: usize, cols: usize, eps: f32, scale: f32) -> Self {
        let n_items = if shape.has_quads { cols / 4 } else { cols } as u32;
        Self { n_groups: n_groups as u32, n_items, cols: cols as f32, eps, scale }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct LayerNormParams {
    pub(crate) n_rows: u32,
    pub(crate) cols: u32,
    pub(crate) eps: f32,
    pub(crate) has_bias: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct ScaleParams {
    pub(crate) n: u32,
    pub(crate) factor: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct ScaleRowsParams {
    pub(crate) n_quads: u32,
    pub(crate) cols: f32,
    pub(crate) eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct GatedParams {
    pub(crate) n: u32,
    pub(crate) alpha: f32,
    pub(crate) limit: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct EmbedParams {
    pub(crate) n: u32,
    pub(crate) n_chunks: u32,
    pub(crate) n_groups: u32,
    pub(crate) group: u32,
    pub(crate) cols: u32,
    pub(crate) scale: f32,
    pub(crate) first_out: u32,
    pub(crate) n_out: u32,
}
