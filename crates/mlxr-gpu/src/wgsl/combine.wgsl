// Row r of y is the sum over j of weights[r][j] * x[r * top_k + j], j ascending.

struct Params {
    n: u32,
    cols: u32,
    top_k: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

//# include "grid.wgsl"

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = workgroup_index(wg, n_wg) * 256u + lane;
    if (i >= p.n) {
        return;
    }
    let row = i / p.cols;
    var sum = 0.0;
    for (var j = 0u; j < p.top_k; j++) {
        let choice = row * p.top_k + j;
        sum = fma(weights[choice], x[choice * p.cols + i % p.cols], sum);
    }
    y[i] = sum;
}
