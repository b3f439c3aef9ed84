// Activations in f16 as operands of matrices.

struct Params {
    n: u32,
    n_quads: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec2<u32>>;

//# include "grid.wgsl"
//# include "half_bits.wgsl"
//# include "fragments.wgsl"

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = workgroup_index(wg, n_wg) * 256u + lane;
    if (i < p.n) {
        y[fragment_place(i / p.n_quads, i % p.n_quads, p.n_quads)] = half_bits(x[i].xzyw);
    }
}
