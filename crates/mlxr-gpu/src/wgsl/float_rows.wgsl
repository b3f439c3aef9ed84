// Activations in f16 as f32.

struct Params {
    n_quads: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;

//# include "grid.wgsl"

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = workgroup_index(wg, n_wg) * 256u + lane;
    if (i < p.n_quads) {
        y[i] = vec4(unpack2x16float(x[i].x), unpack2x16float(x[i].y));
    }
}
