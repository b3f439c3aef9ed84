// y = activation(gate) * up

struct Params {
    n: u32,
    alpha: f32,
    limit: f32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> gate: array<f32>;
@group(0) @binding(1) var<storage, read> up: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

//# include "grid.wgsl"
//# include "functions.wgsl"

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
    //# if kind == "clamped_swiglu"
    let g = min(gate[i], p.limit);
    let u = clamp(up[i], -p.limit, p.limit);
    y[i] = g * sigmoid(p.alpha * g) * (u + 1.0);
    //# else
    y[i] = {{ kind }}(gate[i]) * up[i];
    //# endif
}
