// Rotates pairs of each head by the row's angles: one lane per row, head and pair.

struct Params {
    n: u32,
    n_heads: u32,
    head_dim: u32,
    n_pairs: u32,
}
var<immediate> p: Params;

// Cosine and sine, [rows, n_pairs].
@group(0) @binding(0) var<storage, read> angles: array<vec2<f32>>;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;

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
    let pair = i % p.n_pairs;
    let head = i / p.n_pairs;
    let angle = angles[head / p.n_heads * p.n_pairs + pair];
    //# if is_interleaved
    let first = head * p.head_dim + 2u * pair;
    let second = first + 1u;
    //# else
    let first = head * p.head_dim + pair;
    let second = first + p.n_pairs;
    //# endif
    let a = x[first];
    let b = x[second];
    x[first] = fma(a, angle.x, -(b * angle.y));
    x[second] = fma(b, angle.x, a * angle.y);
}
