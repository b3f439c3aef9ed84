// Tokens the device has chosen, to their places among those of a batch: one lane per pair of rows.

struct Params {
    n: u32,
}
var<immediate> p: Params;

// The row of the batch, and that of what was chosen.
@group(0) @binding(0) var<storage, read> pairs: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read> chosen: array<u32>;
@group(0) @binding(2) var<storage, read_write> tokens: array<u32>;

//# include "grid.wgsl"

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = workgroup_index(wg, n_wg) * 64u + lane;
    if (i < p.n) {
        tokens[pairs[i].x] = chosen[pairs[i].y];
    }
}
