// Attention of a row's query heads over one split of its sequence: largest score, sum of exponentials, weighted values.
//
// A workgroup serves {{ n_heads }} query heads that share a key head, of one row, over {{ split }} tokens at a fixed multiple of the
// position, so that the same numbers meet in the same order in every batch. attention_merge.wgsl joins the splits.

struct Params {
    first_row: u32,
    n_rows: u32,
    n_heads: u32,
    n_kv_heads: u32,
    max_splits: u32,
    // 0: none.
    window: u32,
    scale: f32,
    // 0: none.
    softcap: f32,
    sees_both: u32,
    first_split: u32,
}
var<immediate> p: Params;

//# include "kv_types.wgsl"
//# include "functions.wgsl"
//# include "grid.wgsl"
//# include "reach.wgsl"

@group(0) @binding(0) var<storage, read> rows: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> block_tables: array<u32>;
@group(0) @binding(2) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> k_cache: array<Octet>;
@group(0) @binding(4) var<storage, read> v_cache: array<Octet>;
// Per row, head and split: the weighted values; the largest score and the sum of exponentials.
@group(0) @binding(5) var<storage, read_write> parts: array<mat2x4<f32>>;
@group(0) @binding(6) var<storage, read_write> stats: array<vec2<f32>>;
//# if dtype == "q8_0"
@group(0) @binding(7) var<storage, read> k_scales: array<f32>;
@group(0) @binding(8) var<storage, read> v_scales: array<f32>;
//# endif

//# set k_octets = k_dim // 8
//# set v_octets = v_dim // 8
//# set n_groups = lanes // v_octets
// Loads in flight at a time.
//# set k_ahead = 8 if k_octets % 8 == 0 and dtype != "q8_0" else 4 if k_octets % 4 == 0 else 1
//# set v_ahead = 8
//# set n_blocks = split // block_tokens
var<workgroup> blocks: array<u32, {{ n_blocks }}>;
var<workgroup> queries: array<vec4<f32>, {{ n_heads * k_dim // 4 }}>;
var<workgroup> weights: array<f32, {{ n_heads * split }}>;
var<workgroup> partial: array<f32, {{ n_heads * n_subgroups }}>;
// Heads whose values are summed at a time.
//# set n_summed = 2 if n_heads in [2, 4] and 2 * v_octets <= lanes else 1
var<workgroup> sums: array<mat2x4<f32>, {{ n_summed * lanes }}>;

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
    let info = rows[p.first_row + local_row];
    let first_head = place % tiles * {{ n_heads }}u;
    let kv_head = first_head / (p.n_heads / p.n_kv_heads);
    let seen = reach(info);
    let split = p.first_split + wg.z;
    let start = split * {{ split }}u;
    if (start > seen.y || start + {{ split }}u <= seen.x) {
        return;
    }
    for (var i = lane; i < {{ n_blocks }}u; i += {{ lanes }}u) {
        if (start + i * {{ block_tokens }}u <= seen.y) {
            blocks[i] = block_tables[info.z + start / {{ block_tokens }}u + i] * p.n_kv_heads + kv_head;
        }
    }
    for (var i = lane; i < {{ n_heads * k_dim // 4 }}u; i += {{ lanes }}u) {
        queries[i] = q[((p.first_row + local_row) * p.n_heads + first_head) * {{ k_dim // 4 }}u + i];
    }
    workgroupBarrier();

    // Scores: a lane has whole tokens.
    //# for h in range(n_heads)
    var largest{{ h }} = -3.0e38;
    //# endfor
    for (var t = lane; t < {{ split }}u; t += {{ lanes }}u) {
        let position = start + t;
        let is_seen = position >= seen.x && position <= seen.y;
        //# for h in range(n_heads)
        var score{{ h }} = -3.0e38;
        //# endfor
        if (is_seen) {
            let block = blocks[t / {{ block_tokens }}u];
            let token = position % {{ block_tokens }}u;
            //# for h in range(n_heads)
            var dot{{ h }} = vec4(0.0);
            //# endfor
            for (var d = 0u; d < {{ k_octets }}u; d += {{ k_ahead }}u) {
                //# for i in range(k_ahead)
                let octet{{ i }} = k_cache[(block * {{ k_octets }}u + d + {{ i }}u) * {{ block_tokens }}u + token];
                //# endfor
                //# if dtype == "q8_0"
                // Four octets share a scale.
                let scale = k_scales[(block * {{ k_dim // 32 }}u + d / 4u) * {{ block_tokens }}u + token];
                //# endif
                //# for i in range(k_ahead)
                {
                    let key = decode(octet{{ i }}){{ " * scale" if dtype == "q8_0" else "" }};
                    //# for h in range(n_heads)
                    dot{{ h }} = fma(key[0], queries[{{ h * k_dim // 4 }}u + 2u * (d + {{ i }}u)], dot{{ h }});
                    dot{{ h }} = fma(key[1], queries[{{ h * k_dim // 4 }}u + 2u * (d + {{ i }}u) + 1u], dot{{ h }});
                    //# endfor
                }
                //# endfor
            }
            //# for h in range(n_heads)
            score{{ h }} = p.scale * ((dot{{ h }}.x + dot{{ h }}.y) + (dot{{ h }}.z + dot{{ h }}.w));
            if (p.softcap != 0.0) {
                score{{ h }} = p.softcap * tanh_stable(score{{ h }} / p.softcap);
            }
            //# endfor
        }
        //# for h in range(n_heads)
        weights[{{ h * split }}u + t] = score{{ h }};
        largest{{ h }} = max(largest{{ h }}, score{{ h }});
        //# endfor
    }
    //# for h in range(n_heads)
    let subgroup_largest{{ h }} = subgroupMax(largest{{ h }});
    //# endfor
    if (sublane == 0u) {
        //# for h in range(n_heads)
        partial[{{ h * n_subgroups }}u + subgroup] = subgroup_largest{{ h }};
        //# endfor
    }
    workgroupBarrier();
    //# for h in range(n_heads)
    largest{{ h }} = -3.0e38;
    for (var i = 0u; i < {{ n_subgroups }}u; i++) {
        largest{{ h }} = max(largest{{ h }}, partial[{{ h * n_subgroups }}u + i]);
    }
    //# endfor
    workgroupBarrier();

    //# for h in range(n_heads)
    var sum{{ h }} = 0.0;
    //# endfor
    for (var t = lane; t < {{ split }}u; t += {{ lanes }}u) {
        let is_seen = start + t >= seen.x && start + t <= seen.y;
        //# for h in range(n_heads)
        let weight{{ h }} = select(0.0, exp(weights[{{ h * split }}u + t] - largest{{ h }}), is_seen);
        weights[{{ h * split }}u + t] = weight{{ h }};
        sum{{ h }} += weight{{ h }};
        //# endfor
    }
    //# for h in range(n_heads)
    let subgroup_sum{{ h }} = subgroupAdd(sum{{ h }});
    //# endfor
    if (sublane == 0u) {
        //# for h in range(n_heads)
        partial[{{ h * n_subgroups }}u + subgroup] = subgroup_sum{{ h }};
        //# endfor
    }
    workgroupBarrier();

    // Values: a lane has eight columns, and every {{ n_groups }}th token.
    let column = lane % {{ v_octets }}u;
    let group = lane / {{ v_octets }}u;
    let low = max(seen.x, start);
    let high = min(seen.y, start + {{ split - 1 }}u);
    //# for h in range(n_heads)
    var value{{ h }} = mat2x4<f32>();
    //# endfor
    if (group < {{ n_groups }}u) {
        for (var first = low + group; first <= high; first += {{ v_ahead * n_groups }}u) {
            //# for i in range(v_ahead)
            // Past the end the last token counts for nothing.
            let at{{ i }} = min(first + {{ i * n_groups }}u, high) - start;
            let token{{ i }} = blocks[at{{ i }} / {{ block_tokens }}u] * {{ block_tokens }}u + at{{ i }} % {{ block_tokens }}u;
            let octet{{ i }} = v_cache[token{{ i }} * {{ v_octets }}u + column];
            //# if dtype == "q8_0"
            let scale{{ i }} = v_scales[token{{ i }} * {{ v_dim // 32 }}u + column / 4u];
            //# endif
            //# endfor
            //# for i in range(v_ahead)
            {
                let values = decode(octet{{ i }}){{ " * scale" ~ i if dtype == "q8_0" else "" }};
                let is_there = first + {{ i * n_groups }}u <= high;
                //# for h in range(n_heads)
                let weight{{ h }} = vec4(select(0.0, weights[{{ h * split }}u + at{{ i }}], is_there));
                value{{ h }}[0] = fma(weight{{ h }}, values[0], value{{ h }}[0]);
                value{{ h }}[1] = fma(weight{{ h }}, values[1], value{{ h }}[1]);
                //# endfor
            }
            //# endfor
        }
    }
    //# for first in range(0, n_heads, n_summed)
    //# for h in range(first, [first + n_summed, n_heads] | min)
    sums[{{ (h - first) * lanes }}u + lane] = value{{ h }};
    //# endfor
    workgroupBarrier();
    if (lane < {{ ([n_summed, n_heads - first] | min) * v_octets }}u) {
        let h = lane / {{ v_octets }}u;
        var total = sums[h * {{ lanes }}u + column];
        for (var g = 1u; g < {{ n_groups }}u; g++) {
            total += sums[h * {{ lanes }}u + g * {{ v_octets }}u + column];
        }
        let part = (local_row * p.n_heads + first_head + {{ first }}u + h) * p.max_splits + wg.z;
        parts[part * {{ v_octets }}u + column] = total;
    }
    workgroupBarrier();
    //# endfor
    if (lane == 0u) {
        //# for h in range(n_heads)
        {
            var total = 0.0;
            for (var i = 0u; i < {{ n_subgroups }}u; i++) {
                total += partial[{{ h * n_subgroups }}u + i];
            }
            stats[(local_row * p.n_heads + first_head + {{ h }}u) * p.max_splits + wg.z] = vec2(largest{{ h }}, total);
        }
        //# endfor
    }
}
