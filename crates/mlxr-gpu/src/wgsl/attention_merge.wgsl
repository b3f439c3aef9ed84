// Joins the splits of each row's heads where attention.wgsl leaves that, in the same order: one workgroup per row and {{ n_heads }}
// query heads.

//# include "attention_params.wgsl"

@group(0) @binding(0) var<storage, read> rows: array<vec4<u32>>;
// See attention.wgsl.
@group(0) @binding(1) var<storage, read> parts: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> stats: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read> sinks: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;

//# set v_quads = v_dim // 4
//# set n_joiners = split // v_quads
var<workgroup> sums: array<vec4<f32>, {{ split }}>;
var<workgroup> joined: array<vec2<f32>, {{ n_joiners }}>;

//# if is_quantising
//# set first_of_codes = 5
//# include "quantise.wgsl"
//# endif
//# include "grid.wgsl"
//# include "reach.wgsl"

@compute @workgroup_size({{ split }})
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tiles = p.n_heads / {{ n_heads }}u;
    let place = workgroup_index(wg, n_wg);
    if (place >= p.n_rows * tiles) {
        return;
    }
    let local_row = place / tiles;
    let first_head = place % tiles * {{ n_heads }}u;
    let seen = reach(rows[p.first_row + local_row]);
    let n_seen = select(seen.y + 1u - seen.x, 0u, seen.y < p.single);
    if (n_seen < p.least_seen || n_seen > p.most_seen) {
        return;
    }
    //# include "attention_join.wgsl"
}
