// Joins the splits of each row and head: one workgroup per row and head, a lane per column.

struct Params {
    first_row: u32,
    n_rows: u32,
    n_heads: u32,
    max_splits: u32,
    window: u32,
    sees_both: u32,
    has_sinks: u32,
    first_split: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> rows: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> parts: array<f32>;
@group(0) @binding(2) var<storage, read> sinks: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

//# include "grid.wgsl"
//# include "reach.wgsl"

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = workgroup_index(wg, n_wg);
    if (place >= p.n_rows * p.n_heads) {
        return;
    }
    let seen = reach(rows[p.first_row + place / p.n_heads]);
    let first = seen.x / {{ split }}u - p.first_split;
    let last = seen.y / {{ split }}u - p.first_split;
    let start = place * p.max_splits * {{ v_dim + 2 }}u;
    var largest = -3.0e38;
    if (p.has_sinks != 0u) {
        largest = sinks[place % p.n_heads];
    }
    for (var s = first; s <= last; s++) {
        largest = max(largest, parts[start + s * {{ v_dim + 2 }}u + {{ v_dim }}u]);
    }
    var total = 0.0;
    if (p.has_sinks != 0u) {
        total = exp(sinks[place % p.n_heads] - largest);
    }
    for (var s = first; s <= last; s++) {
        let part = start + s * {{ v_dim + 2 }}u + {{ v_dim }}u;
        total = fma(exp(parts[part] - largest), parts[part + 1u], total);
    }
    for (var c = lane; c < {{ v_dim }}u; c += 64u) {
        var sum = 0.0;
        for (var s = first; s <= last; s++) {
            let part = start + s * {{ v_dim + 2 }}u;
            sum = fma(exp(parts[part + {{ v_dim }}u] - largest), parts[part + c], sum);
        }
        y[(p.first_row * p.n_heads + place) * {{ v_dim }}u + c] = sum / total;
    }
}
