// Rows of `cols` become rows of `stride`, filled up with zeros.

struct Params {
    n: u32,
    cols: u32,
    stride: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

//# include "grid.wgsl"

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = workgroup_index(wg, n_wg) * 256u + lane;
    if (i < p.n) {
        let col = i % p.stride;
        y[i] = select(0.0, x[i / p.stride * p.cols + min(col, p.cols - 1u)], col < p.cols);
    }
}
