// Activations as f16 for matmul_few.wgsl: sixteen rows by sixteen columns lie together. What is too large for f16 becomes
// its largest. What lies beside the last row is not written, and only results that nobody reads come from it.

struct Params {
    n_quads: u32,
    // Fours of a row.
    n_across: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec2<u32>>;

//# include "grid.wgsl"

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = workgroup_index(wg, n_wg) * 256u + lane;
    if (i < p.n_quads) {
        let v = clamp(x[i], vec4(-65504.0), vec4(65504.0));
        let row = i / p.n_across;
        let col = i % p.n_across;
        let tile = row / 16u * (p.n_across / 4u) + col / 4u;
        y[(tile * 16u + row % 16u) * 4u + col % 4u] = vec2(pack2x16float(v.xy), pack2x16float(v.zw));
    }
}
