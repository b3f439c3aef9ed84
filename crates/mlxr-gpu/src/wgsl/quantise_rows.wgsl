// Activations as 8-bit codes.

struct Params {
    n_quads: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;

//# set first_of_codes = 1
//# include "quantise.wgsl"
//# include "grid.wgsl"

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = workgroup_index(wg, n_wg) * 256u + lane;
    quantise(i, x[min(i, p.n_quads - 1u)], i < p.n_quads);
}
