// y = (x - mean) / sqrt(variance + eps) * weight + bias, one workgroup per row.

struct Params {
    n_rows: u32,
    cols: u32,
    eps: f32,
    has_bias: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

//# include "grid.wgsl"
//# include "lanes.wgsl"
//# include "workgroup_sum.wgsl"

@compute @workgroup_size({{ lanes }})
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let subgroup = lane / {{ subgroup }}u;
    let sublane = lane % {{ subgroup }}u;
    let row = workgroup_index(wg, n_wg);
    if (row >= p.n_rows) {
        return;
    }
    let start = row * p.cols;
    var sum = 0.0;
    for (var c = lane; c < p.cols; c += {{ lanes }}u) {
        sum += x[start + c];
    }
    let mean = workgroup_sum(sum, subgroup, sublane) / f32(p.cols);
    var squares = 0.0;
    for (var c = lane; c < p.cols; c += {{ lanes }}u) {
        let d = x[start + c] - mean;
        squares = fma(d, d, squares);
    }
    let factor = 1.0 / sqrt(workgroup_sum(squares, subgroup, sublane) / f32(p.cols) + p.eps);
    for (var c = lane; c < p.cols; c += {{ lanes }}u) {
        let v = (x[start + c] - mean) * factor * weight[c];
        if (p.has_bias != 0u) {
            y[start + c] = v + bias[c];
        } else {
            y[start + c] = v;
        }
    }
}
