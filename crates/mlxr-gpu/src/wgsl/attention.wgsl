// Attention of a row's query heads over one split of its sequence: largest score, sum of exponentials, weighted values.
//
// A workgroup serves {{ n_heads }} query heads that share a key head, of one row, over {{ split }} tokens at a fixed multiple of the
// position, so that the same numbers meet in the same order in every batch. Of a row's splits the last workgroup to be
// done joins all, or attention_merge.wgsl does. Rows that end in the first `p.single` tokens have one split.
//
// Each subgroup goes from scores to sums by itself, and meets the others in the end.
//
// Where every sequence has one row, queries may come as they are before rotation: then the workgroup that sees the row's
// own position rotates its key as well, stores key and value, and meets them in workgroup memory.

//# include "attention_params.wgsl"
//# include "kv_types.wgsl"
//# include "functions.wgsl"
//# include "grid.wgsl"
//# include "lanes.wgsl"
//# include "reach.wgsl"

//# set has_scales = dtype in ["q8_0", "q4_0"]
//# set kv_access = "read_write" if n_pairs else "read"
//# set seen_by_all = "@coherent " if is_joining else ""
@group(0) @binding(0) var<storage, read> rows: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> block_tables: array<u32>;
@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(3) var<storage, {{ kv_access }}> k_cache: array<Octet>;
@group(0) @binding(4) var<storage, {{ kv_access }}> v_cache: array<Octet>;
//# if is_single
@group(0) @binding(5) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> sinks: array<f32>;
//# else
// Per row, head and split: the weighted values; the largest score and the sum of exponentials.
@group(0) @binding(5) {{ seen_by_all }}var<storage, read_write> parts: array<vec4<f32>>;
@group(0) @binding(6) {{ seen_by_all }}var<storage, read_write> stats: array<vec2<f32>>;
//# endif
//# if has_scales
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
// Where it can go in rounds at all, see below.
//# set max_rounds = n_rounds
//# set at = 9 if has_scales else 10 if n_pairs else 7
//# if is_joining
// By row and workgroup of heads: workgroups that are done, zero before and after.
@group(0) @binding({{ at }}) var<storage, read_write> arrivals: array<atomic<u32>>;
@group(0) @binding({{ at + 1 }}) var<storage, read> sinks: array<f32>;
@group(0) @binding({{ at + 2 }}) var<storage, read_write> y: array<vec4<f32>>;
//# endif
//# if is_quantising
//# set first_of_codes = at + (3 if is_joining else 0)
//# include "quantise.wgsl"
//# endif

//# set k_octets = k_dim // 8
//# set v_octets = v_dim // 8
//# set v_quads = v_dim // 4
//# set n_q = (n_heads * k_dim // 4 + split - 1) // split
// Groups that join splits, each four columns a lane.
//# set n_joiners = split // v_quads
//# set own_octets = k_octets + v_octets if n_pairs else 0
var<workgroup> queries: array<vec4<f32>, {{ n_heads * k_dim // 4 }}>;
// A subgroup is a unit that needs no other until the end, and has a token for each of its lanes.
//# set unit = subgroup
//# set n_units = split // subgroup
// Lanes that share the keys of as many tokens, so that a query that is read serves all of these; octets of each share, and
// tokens that lie between those of a lane.
//# set n_shares = 4 if k_octets % 4 == 0 else 2 if k_octets % 2 == 0 else 1
//# set share_octets = k_octets // n_shares
//# set n_slots = unit // n_shares
// Loads that are on their way at a time: octets of each key, and tokens of values. On an H200 two workgroups of 256 lanes
// find room at once with these, where one does with more.
//# set k_ahead = [16 // n_shares // (2 if dtype == "f32" else 1), share_octets] | min
//# set v_ahead = 2 if dtype == "f32" else 4
// Blocks of a unit.
//# set n_blocks = [unit // block_tokens, 1] | max
//# set blocks = ["block0", "block1", "block2", "block3", "block4", "block5", "block6", "block7"][:n_blocks]
// Octets of values of a lane, groups of lanes that have different tokens, and tokens of each.
//# set n_cols = (v_octets + unit - 1) // unit
//# set n_groups = unit // v_octets if v_octets <= unit else 1
//# set n_tokens = (unit + n_groups - 1) // n_groups
// Whether no lane's token is beyond the unit.
//# set is_even = unit % n_groups == 0 and (unit % v_octets == 0 or n_cols > 1)
// Rounds over keys and values, which are all on their way before the first; `p.n_rounds` where there are several.
//# set is_short = (is_joining and split == 128 or is_single) and not has_scales and is_even and k_ahead == share_octets
//# set n_rounds = max_rounds if is_short and share_octets % max_rounds == 0 and n_tokens % max_rounds == 0 else 1
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
//# set room = 32256 - 4 * (n_heads * k_dim + n_heads * split + 2 * n_units * n_heads + 8 * own_octets + 2 * n_joiners + 1)
//# set n_summed = [[n_slices, room // (16 * n_sums * slice_quads)] | min, 1] | max
//# set n_quads = [n_summed * n_sums * slice_quads, split] | max
var<workgroup> sums: array<vec4<f32>, {{ n_quads }}>;
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

// The block that a token of a unit lies in.
fn block_of(token: u32, {{ blocks | join(": u32, ") }}: u32) -> u32 {
    var block = block0;
    //# for b in range(1, n_blocks)
    block = select(block, block{{ b }}, token / {{ block_tokens }}u % {{ n_blocks }}u == {{ b }}u);
    //# endfor
    return block;
}

@compute @workgroup_size({{ split }})
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let subgroup = lane / {{ unit }}u;
    let sublane = lane % {{ unit }}u;
    let place = workgroup_index(wg, n_wg);
    if (place >= p.n_rows * {{ n_tiles }}u) {
        return;
    }
    let local_row = place / {{ n_tiles }}u;
    let tile = place % {{ n_tiles }}u;
    let first_head = tile * {{ n_heads }}u;
    let info = rows[p.first_row + local_row];
    let kv_head = tile / {{ tiles_per_kv }}u;
    let seen = reach(info);
    let split = p.first_split + wg.z;
    let start = split * {{ split }}u;
    let n_seen = select(seen.y + 1u - seen.x, 0u, seen.y < p.single);
    if (start > seen.y || start + {{ split }}u <= seen.x || n_seen < p.least_seen || n_seen > p.most_seen) {
        return;
    }
    // The tokens that are seen, counted from the start of the split.
    let low = max(seen.x, start) - start;
    let high = min(seen.y - start, {{ split - 1 }}u);
    // Blocks of a unit's tokens; those that nobody sees may not be there, and the nearest stand for them.
    let unit_start = subgroup * {{ unit }}u;
    //# for b in range(n_blocks)
    let block{{ b }} = block_tables[info.z + (start + clamp(unit_start + {{ b * block_tokens }}u, low, high)) / {{ block_tokens }}u] * p.n_kv_heads + kv_head;
    //# endfor
    // The first keys and values are on their way while queries are made ready.
    let share = sublane / {{ n_slots }}u;
    let slot = sublane % {{ n_slots }}u;
    //# for i in range(n_shares)
    //# if block_tokens % n_slots == 0
    let k_start{{ i }} = (block{{ i * n_slots // block_tokens }} * {{ k_octets }}u + share * {{ share_octets }}u) * {{ block_tokens }}u + unit_start % {{ block_tokens }}u + slot + {{ i * n_slots % block_tokens }}u;
    //# else
    let k_token{{ i }} = unit_start + slot + {{ i * n_slots }}u;
    let k_start{{ i }} = (block_of(k_token{{ i }}, {{ blocks | join(", ") }}) * {{ k_octets }}u + share * {{ share_octets }}u) * {{ block_tokens }}u + k_token{{ i }} % {{ block_tokens }}u;
    //# endif
    //# endfor
    //# set first_d = 0
    //# include "attention_unit_keys.wgsl"
    let group = sublane / {{ v_octets }}u;
    //# for c in range(n_cols)
    //# if v_octets <= unit
    let column{{ c }} = sublane % {{ v_octets }}u;
    //# else
    let column{{ c }} = min(sublane + {{ c * unit }}u, {{ v_octets - 1 }}u);
    //# endif
    //# endfor
    //# set first_v = 0
    //# include "attention_unit_values.wgsl"
    let q_start = ((p.first_row + local_row) * p.n_heads + first_head) * {{ k_dim // 4 }}u;
    //# for i in range(n_q)
    let q_idx{{ i }} = min(lane + {{ i * split }}u, {{ n_heads * k_dim // 4 - 1 }}u);
    //# if n_pairs
    let q{{ i }} = turned_q(q_start + q_idx{{ i }} / {{ k_dim // 4 }}u * {{ k_dim // 4 }}u, q_idx{{ i }} % {{ k_dim // 4 }}u, p.first_row + local_row);
    //# else
    let q{{ i }} = q[q_start + q_idx{{ i }}];
    //# endif
    //# endfor
    //# for i in range(n_q)
    if (lane + {{ i * split }}u < {{ n_heads * k_dim // 4 }}u) {
        queries[lane + {{ i * split }}u] = q{{ i }};
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
        let is_first = tile % {{ tiles_per_kv }}u == 0u;
        for (var i = lane; i < {{ k_octets }}u; i += {{ split }}u) {
            let key = encode(turned_k(kv_row * {{ 2 * k_octets }}u, 2u * i, row), turned_k(kv_row * {{ 2 * k_octets }}u, 2u * i + 1u, row));
            own_key[i] = key;
            if (is_first) {
                k_cache[(block * {{ k_octets }}u + i) * {{ block_tokens }}u + place] = key;
            }
        }
        for (var i = lane; i < {{ v_octets }}u; i += {{ split }}u) {
            let value = encode(v[kv_row * {{ v_quads }}u + 2u * i], v[kv_row * {{ v_quads }}u + 2u * i + 1u]);
            own_value[i] = value;
            if (is_first) {
                v_cache[(block * {{ block_tokens }}u + place) * {{ v_octets }}u + i] = value;
            }
        }
    }
    //# endif
    workgroupBarrier();

    //# include "attention_units.wgsl"
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
