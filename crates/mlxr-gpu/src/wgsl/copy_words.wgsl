// Copies words inside one buffer, between places that do not overlap.

struct Params {
    n: u32,
    from_word: u32,
    to_word: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read_write> words: array<u32>;

//# include "grid.wgsl"

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = workgroup_index(wg, n_wg) * 256u + lane;
    if (i < p.n) {
        words[p.to_word + i] = words[p.from_word + i];
    }
}
