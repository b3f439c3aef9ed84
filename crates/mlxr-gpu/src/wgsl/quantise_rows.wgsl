// Activations as 8-bit integers in chunks of 32 columns that share a scale. Eight lanes make a chunk, four columns each.

struct Params {
    n_quads: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
// Four codes a word.
@group(0) @binding(1) var<storage, read_write> codes: array<u32>;
// Per chunk: the scale, and the scale times the sum of codes 0..16, 16..32 and all.
@group(0) @binding(2) var<storage, read_write> scales: array<vec4<f32>>;

//# include "grid.wgsl"

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = workgroup_index(wg, n_wg) * 256u + lane;
    // Lanes past the end keep their neighbours company; chunks are whole.
    let v = x[min(i, p.n_quads - 1u)];
    let m = abs(v);
    var largest = max(max(m.x, m.y), max(m.z, m.w));
    largest = max(largest, subgroupShuffleXor(largest, 1u));
    largest = max(largest, subgroupShuffleXor(largest, 2u));
    largest = max(largest, subgroupShuffleXor(largest, 4u));
    let scale = largest / 127.0;
    let inverse = select(0.0, 127.0 / largest, largest > 0.0);
    let q = vec4<i32>(round(v * inverse));
    var sum = q.x + q.y + q.z + q.w;
    sum += subgroupShuffleXor(sum, 1u);
    sum += subgroupShuffleXor(sum, 2u);
    let other = subgroupShuffleXor(sum, 4u);
    if (i >= p.n_quads) {
        return;
    }
    codes[i] = pack4xI8(q);
    if ((i & 7u) == 0u) {
        scales[i >> 3u] = scale * vec4<f32>(1.0, f32(sum), f32(other), f32(sum + other));
    }
}
