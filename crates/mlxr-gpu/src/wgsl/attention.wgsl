// Attention of a row's query heads over one split of its sequence: largest score, sum of exponentials, weighted values.
//
// A workgroup serves {{ n_heads }} query heads that share a key head, of one row, over {{ split }} tokens at a fixed multiple of the
// position, so that the same numbers meet in the same order in every batch. Of a row's splits the last workgroup to be
// done joins all, or attention_merge.wgsl does.
//
// Of rows that see many tokens each subgroup goes from scores to sums by itself, of others all lanes together.
//
// Where every sequence has one row, queries may come as they are before rotation: then the workgroup that sees the row's
// own position rotates its key as well, stores key and value, and meets them in workgroup memory.

//# include "attention_params.wgsl"
//# include "kv_types.wgsl"
//# include "functions.wgsl"
//# include "grid.wgsl"
//# include "reach.wgsl"

//# set is_q8 = dtype in ["q8_0", "q4_0"]
//# set kv_access = "read_write" if n_pairs else "read"
//# set seen_by_all = "@coherent " if is_joining else ""
@group(0) @binding(0) var<storage, read> rows: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> block_tables: array<u32>;
@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(3) var<storage, {{ kv_access }}> k_cache: array<Octet>;
@group(0) @binding(4) var<storage, {{ kv_access }}> v_cache: array<Octet>;
// Per row, head and split: the weighted values; the largest score and the sum of exponentials.
@group(0) @binding(5) {{ seen_by_all }}var<storage, read_write> parts: array<vec4<f32>>;
@group(0) @binding(6) {{ seen_by_all }}var<storage, read_write> stats: array<vec2<f32>>;
//# if is_q8
@group(0) @binding(7) var<storage, read> k_scales: array<f32>;
@group(0) @binding(8) var<storage, read> v_scales: array<f32>;
//# endif
//# if n_pairs
// Cosine and sine, [rows, n_pairs].
@group(0) @binding(7) var<storage, read> angles: array<vec2<f32>>;
@group(0) @binding(8) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(9) var<storage, read> v: array<vec4<f32>>;
//# include "turn.wgsl"
//# endif
//# if is_joining
//# set at = 9 if is_q8 else 10 if n_pairs else 7
// By row and workgroup of heads: workgroups that are done, zero before and after.
@group(0) @binding({{ at }}) var<storage, read_write> arrivals: array<atomic<u32>>;
@group(0) @binding({{ at + 1 }}) var<storage, read> sinks: array<f32>;
@group(0) @binding({{ at + 2 }}) var<storage, read_write> y: array<vec4<f32>>;
//# if is_quantising
//# set first_of_codes = at + 3
//# include "quantise.wgsl"
//# endif
//# endif

//# set k_octets = k_dim // 8
//# set v_octets = v_dim // 8
//# set v_quads = v_dim // 4
//# set n_blocks = split // block_tokens
//# set n_q = (n_heads * k_dim // 4 + lanes - 1) // lanes
// Groups that join splits, each four columns a lane.
//# set n_joiners = lanes // v_quads
//# set own_octets = k_octets + v_octets if n_pairs else 0
var<workgroup> blocks: array<u32, {{ n_blocks }}>;
var<workgroup> queries: array<vec4<f32>, {{ n_heads * k_dim // 4 }}>;
//# if in_units
// A subgroup is a unit that needs no other until the end: a lane has the scores of one token, then columns of values.
//# set unit = lanes // n_subgroups
//# set n_units = n_subgroups
// Octets of a key, and tokens of values, that are on their way at a time.
//# set k_ahead = 4 if dtype == "f32" else 8
//# set v_ahead = 4 if dtype == "f32" else 8
// Octets of values of a lane, groups of lanes that have different tokens, and tokens of each.
//# set n_cols = (v_octets + unit - 1) // unit
//# set n_groups = unit // v_octets if v_octets <= unit else 1
//# set n_tokens = (unit + n_groups - 1) // n_groups
// Groups of a unit that join before they meet the others.
//# set n_joined = n_groups if v_octets in [1, 2, 4, 8, 16, 32] and n_groups in [1, 2, 4, 8, 16, 32] else 1
//# set n_sums = n_units * n_groups // n_joined
// Weights of a token that lie together.
//# set w_vec = 4 if n_heads % 4 == 0 else 2 if n_heads % 2 == 0 else 1
//# set w_type = "f32" if w_vec == 1 else "vec" ~ w_vec ~ "<f32>"
//# set w_lane = [".x", ".y", ".z", ".w"]
// By token and head.
var<workgroup> weights: array<{{ w_type }}, {{ n_heads * split // w_vec }}>;
// By unit and head: the largest score and the sum of exponentials.
var<workgroup> unit_stats: array<vec2<f32>, {{ n_units * n_heads }}>;
// Heads, or columns of one, whose values are summed at a time, in the memory that is left of what every device has.
//# set slice_quads = 2 * ([unit, v_octets] | min)
//# set n_slices = n_heads * n_cols
//# set room = 32256 - 4 * (n_blocks + n_heads * k_dim + n_heads * split + 2 * n_units * n_heads + 8 * own_octets + 2 * n_joiners + 1)
//# set n_summed = [[n_slices, room // (16 * n_sums * slice_quads)] | min, 1] | max
//# set n_quads = [n_summed * n_sums * slice_quads, lanes] | max
var<workgroup> sums: array<vec4<f32>, {{ n_quads }}>;
//# else
// Lanes that share a token's scores, and octets of each.
//# set n_shares = lanes // split if k_octets % (lanes // split * (4 if is_q8 else 1)) == 0 else 1
//# set share_octets = k_octets // n_shares
// Loads in flight at a time.
//# set k_ahead = 8 if share_octets % 8 == 0 and not is_q8 else 4 if share_octets % 4 == 0 else 1
//# set v_ahead = 8
// Lanes that have a token's values, and tokens of each.
//# set n_groups = lanes // v_octets
//# set n_tokens = (split + n_groups - 1) // n_groups
//# set subgroup = lanes // n_subgroups
// Scores of a lane once shares are joined.
//# set n_scores = (n_heads * split + lanes - 1) // lanes
//# set per_head = split // subgroup
// Groups of a subgroup, which join before they meet the others.
//# set n_joined = subgroup // v_octets if v_octets in [1, 2, 4, 8, 16, 32] and subgroup > v_octets else 1
//# set n_sums = n_groups // n_joined
// Scores by share, head and token; then weights by head and token.
var<workgroup> weights: array<f32, {{ n_shares * n_heads * split }}>;
var<workgroup> partial: array<f32, {{ n_scores * n_subgroups }}>;
// Heads whose values are summed at a time, in the memory that is left of what every device has.
//# set room = 32256 - 4 * (n_blocks + n_heads * k_dim + n_shares * n_heads * split + n_scores * n_subgroups + 8 * own_octets + 2 * n_joiners + 1)
//# set n_summed = [[n_heads, lanes // v_octets, room // (32 * n_sums * v_octets)] | min, 1] | max
//# set n_quads = [2 * n_summed * n_sums * v_octets, lanes] | max
var<workgroup> sums: array<vec4<f32>, {{ n_quads }}>;
//# endif
//# if is_joining
var<workgroup> joined: array<vec2<f32>, {{ n_joiners }}>;
var<workgroup> is_last: u32;
//# endif
//# if n_pairs
// The row's own key and value.
var<workgroup> own_key: array<Octet, {{ k_octets }}>;
var<workgroup> own_value: array<Octet, {{ v_octets }}>;

//# for x in ["q", "k"]
// Four columns of a head that starts at a number of fours, rotated.
fn turned_{{ x }}(start: u32, quad: u32, row: u32) -> vec4<f32> {
    let own = {{ x }}[start + quad];
    //# if is_interleaved
    if (quad >= {{ n_pairs // 2 }}u) {
        return own;
    }
    return turn(own, row * {{ n_pairs }}u + 2u * quad);
    //# else
    if (quad >= {{ n_pairs // 2 }}u) {
        return own;
    }
    let is_second = quad >= {{ n_pairs // 4 }}u;
    let first = quad % {{ n_pairs // 4 }}u;
    let other = {{ x }}[start + select(first + {{ n_pairs // 4 }}u, first, is_second)];
    return turn(own, other, row * {{ n_pairs }}u + 4u * first, is_second);
    //# endif
}
//# endfor
//# endif

@compute @workgroup_size({{ lanes }})
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) sublane: u32,
) {
    let tiles = p.n_heads / {{ n_heads }}u;
    let place = workgroup_index(wg, n_wg);
    if (place >= p.n_rows * tiles) {
        return;
    }
    let local_row = place / tiles;
    let first_head = place % tiles * {{ n_heads }}u;
    let q_start = ((p.first_row + local_row) * p.n_heads + first_head) * {{ k_dim // 4 }}u;
    //# for i in range(n_q)
    let q_idx{{ i }} = min(lane + {{ i * lanes }}u, {{ n_heads * k_dim // 4 - 1 }}u);
    //# if n_pairs
    let q{{ i }} = turned_q(q_start + q_idx{{ i }} / {{ k_dim // 4 }}u * {{ k_dim // 4 }}u, q_idx{{ i }} % {{ k_dim // 4 }}u, p.first_row + local_row);
    //# else
    let q{{ i }} = q[q_start + q_idx{{ i }}];
    //# endif
    //# endfor
    let info = rows[p.first_row + local_row];
    let kv_head = first_head / (p.n_heads / p.n_kv_heads);
    let seen = reach(info);
    let split = p.first_split + wg.z;
    let start = split * {{ split }}u;
    let n_seen = seen.y + 1u - seen.x;
    if (start > seen.y || start + {{ split }}u <= seen.x || n_seen < p.least_seen || n_seen > p.most_seen) {
        return;
    }
    // The tokens that are seen, counted from the start of the split.
    let low = max(seen.x, start) - start;
    let high = min(seen.y - start, {{ split - 1 }}u);
    for (var i = lane; i < {{ n_blocks }}u; i += {{ lanes }}u) {
        if (i * {{ block_tokens }}u <= high) {
            blocks[i] = block_tables[info.z + start / {{ block_tokens }}u + i] * p.n_kv_heads + kv_head;
        }
    }
    //# for i in range(n_q)
    if (lane + {{ i * lanes }}u < {{ n_heads * k_dim // 4 }}u) {
        queries[lane + {{ i * lanes }}u] = q{{ i }};
    }
    //# endfor
    //# if n_pairs
    // The row's own position, counted as well; beyond the split where others see it.
    let own = select(0xffffffffu, info.x - start, info.x - start < {{ split }}u);
    if (own < {{ split }}u) {
        let row = p.first_row + local_row;
        let kv_row = row * p.n_kv_heads + kv_head;
        let block = info.w / {{ block_tokens }}u * p.n_kv_heads + kv_head;
        let place = info.w % {{ block_tokens }}u;
        let is_first = first_head % (p.n_heads / p.n_kv_heads) == 0u;
        for (var i = lane; i < {{ k_octets }}u; i += {{ lanes }}u) {
            let key = encode(turned_k(kv_row * {{ 2 * k_octets }}u, 2u * i, row), turned_k(kv_row * {{ 2 * k_octets }}u, 2u * i + 1u, row));
            own_key[i] = key;
            if (is_first) {
                k_cache[(block * {{ k_octets }}u + i) * {{ block_tokens }}u + place] = key;
            }
        }
        for (var i = lane; i < {{ v_octets }}u; i += {{ lanes }}u) {
            let value = encode(v[kv_row * {{ v_quads }}u + 2u * i], v[kv_row * {{ v_quads }}u + 2u * i + 1u]);
            own_value[i] = value;
            if (is_first) {
                v_cache[(block * {{ block_tokens }}u + place) * {{ v_octets }}u + i] = value;
            }
        }
    }
    //# endif
    workgroupBarrier();

    //# if in_units
    //# include "attention_units.wgsl"
    //# else
    //# include "attention_across.wgsl"
    //# endif
    //# if is_joining
    // What all lanes have written is there for everybody before this is counted.
    storageBarrier();
    if (lane == 0u) {
        let n_before = atomicAdd(&arrivals[place], 1u);
        is_last = u32(n_before == seen.y / {{ split }}u - seen.x / {{ split }}u);
        if (is_last == 1u) {
            atomicStore(&arrivals[place], 0u);
        }
    }
    if (workgroupUniformLoad(&is_last) == 0u) {
        return;
    }
    storageBarrier();
    //# include "attention_join.wgsl"
    //# endif
}
