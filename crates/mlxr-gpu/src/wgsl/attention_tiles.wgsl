// Attention of many rows of a sequence on the device's matrix units: keys, values and weights in f16, sums in f32.
//
// A workgroup serves {{ n_queries }} rows and the {{ n_heads }} query heads of a key head: {{ n_queries }} x {{ n_heads }} = 64 lines. It goes through the tokens
// they see twice, 64 at a time: for the largest score of each line, then for the weights and what they sum up to.

enable f16;
enable wgpu_cooperative_matrix;

struct Params {
    n_tiles: u32,
    n_heads: u32,
    n_kv_heads: u32,
    // 0: none.
    window: u32,
    scale: f32,
    // 0: none.
    softcap: f32,
    sees_both: u32,
    has_sinks: u32,
}
var<immediate> p: Params;

// Eight keys or values, see kv.rs.
struct Eight {
    @align(16) low: vec4<f16>,
    high: vec4<f16>,
}

@group(0) @binding(0) var<storage, read> rows: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> block_tables: array<u32>;
// First row and number of rows.
@group(0) @binding(2) var<storage, read> tiles: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read> q: array<vec4<f32>>;
// Declared as written for the reason that matmul.wgsl gives.
@group(0) @binding(4) var<storage, read_write> k_cache: array<Eight>;
@group(0) @binding(5) var<storage, read_write> v_cache: array<Eight>;
@group(0) @binding(6) var<storage, read> sinks: array<f32>;
@group(0) @binding(7) var<storage, read_write> y: array<vec4<f32>>;

//# include "functions.wgsl"
//# include "reach.wgsl"

//# set lanes = 256
//# set k_octets = k_dim // 8
//# set v_octets = v_dim // 8
//# set n_k = 64 * k_octets // lanes
//# set n_v = 64 * v_octets // lanes
// Lines lie apart by a little more than their length, so that they begin in different banks; in fours.
//# set k_stride = k_dim // 4 + 2
//# set v_stride = v_dim // 4 + 2
//# set s_stride = 20
//# set w_stride = 18
// Matrices of values that a subgroup sums.
//# set n_sums = v_dim // 32
// Queries, keys or values.
var<workgroup> tile: array<vec4<f16>, {{ 64 * ([k_stride, v_stride] | max) }}>;
var<workgroup> scores: array<vec4<f32>, {{ 64 * s_stride }}>;
var<workgroup> weights: array<vec4<f16>, {{ 64 * w_stride }}>;

// Where the first octet of a token's keys that a lane loads lies.
fn key_place(token: u32, table: u32, kv_head: u32, octet: u32) -> u32 {
    let block = block_tables[table + token / {{ block_tokens }}u] * p.n_kv_heads + kv_head;
    return (block * {{ k_octets }}u + octet) * {{ block_tokens }}u + token % {{ block_tokens }}u;
}

fn score(dot: f32) -> f32 {
    let scaled = p.scale * dot;
    if (p.softcap != 0.0) {
        return p.softcap * tanh_stable(scaled / p.softcap);
    }
    return scaled;
}

@compute @workgroup_size({{ lanes }})
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    // The last rows of a sequence see most: they begin.
    let rows_here = tiles[p.n_tiles - 1u - wg.x];
    let kv_head = wg.y;
    let group = p.n_heads / p.n_kv_heads;
    let first_head = kv_head * group + wg.z * {{ n_heads }}u;
    let last_row = rows_here.x + rows_here.y - 1u;

    // A line's lanes: four, each with four neighbouring columns of sixteen.
    let line = lane / 4u;
    let quarter = lane % 4u;
    let query = line / {{ n_heads }}u;
    let head = first_head + line % {{ n_heads }}u;
    let row = min(rows_here.x + query, last_row);
    let info = rows[row];
    let seen = reach(info);
    // What any line sees.
    let first_seen = reach(rows[rows_here.x]).x;
    let first_token = first_seen / 64u * 64u;
    let last_token = reach(rows[last_row]).y;

    for (var i = quarter; i < {{ k_dim // 4 }}u; i += 4u) {
        let v = clamp(q[(row * p.n_heads + head) * {{ k_dim // 4 }}u + i], vec4(-65504.0), vec4(65504.0));
        tile[line * {{ k_stride }}u + i] = vec4<f16>(v);
    }
    workgroupBarrier();
    let down = subgroup / 2u * 16u;
    let right = subgroup % 2u;
    //# for i in range(k_dim // 16)
    let q{{ i }} = coopLoadT<coop_mat16x16<f16, A>>(&tile[down * {{ k_stride }}u + {{ 4 * i }}u], {{ k_stride }}u);
    //# endfor
    workgroupBarrier();

    // Where a lane's keys and values lie in the tile.
    let k_token = lane % 64u;
    let k_octet = lane / 64u;
    let v_octet = lane % {{ v_octets }}u;
    let v_token = lane / {{ v_octets }}u;
    //# set v_step = lanes // v_octets

    var largest = -3.0e38;
    if (p.has_sinks != 0u) {
        largest = sinks[head];
    }
    var total = 0.0;
    //# for i in range(n_sums)
    var sum{{ i }} = coop_mat16x16<f32, C>();
    //# endfor
    let k_to = k_token * {{ k_stride }}u + 2u * k_octet;
    let k_from = key_place(min(first_token + k_token, last_token), info.z, kv_head, k_octet);
    //# for i in range(n_k)
    var k{{ i }} = k_cache[k_from + {{ i * 4 * block_tokens }}u];
    //# endfor
    //# for is_second in [false, true]
    //# if is_second
    //# for i in range(n_k)
    k{{ i }} = k_cache[k_from + {{ i * 4 * block_tokens }}u];
    //# endfor
    //# endif
    for (var start = first_token; start <= last_token; start += 64u) {
        //# for i in range(n_k)
        tile[k_to + {{ i * 8 }}u] = k{{ i }}.low;
        tile[k_to + {{ i * 8 + 1 }}u] = k{{ i }}.high;
        //# endfor
        //# if is_second
        //# for i in range(n_v)
        let token{{ i }} = start + v_token + {{ i * v_step }}u;
        let stored{{ i }} = min(token{{ i }}, last_token);
        let block{{ i }} = block_tables[info.z + stored{{ i }} / {{ block_tokens }}u] * p.n_kv_heads + kv_head;
        let v{{ i }} = v_cache[(block{{ i }} * {{ block_tokens }}u + stored{{ i }} % {{ block_tokens }}u) * {{ v_octets }}u + v_octet];
        //# endfor
        //# endif
        let next_from = key_place(min(start + 64u + k_token, last_token), info.z, kv_head, k_octet);
        //# for i in range(n_k)
        k{{ i }} = k_cache[next_from + {{ i * 4 * block_tokens }}u];
        //# endfor
        workgroupBarrier();
        //# for j in range(2)
        var s{{ j }} = coop_mat16x16<f32, C>();
        //# for i in range(k_dim // 16)
        let b{{ j }}_{{ i }} = coopLoad<coop_mat16x16<f16, B>>(&tile[(32u * right + {{ 16 * j }}u) * {{ k_stride }}u + {{ 4 * i }}u], {{ k_stride }}u);
        s{{ j }} = coopMultiplyAdd(q{{ i }}, b{{ j }}_{{ i }}, s{{ j }});
        //# endfor
        coopStoreT(s{{ j }}, &scores[down * {{ s_stride }}u + 8u * right + {{ 4 * j }}u], {{ s_stride }}u);
        //# endfor
        workgroupBarrier();
        //# for j in range(4)
        {
            let dots = scores[line * {{ s_stride }}u + quarter + {{ 4 * j }}u];
            //# if is_second
            var weight = vec4(0.0);
            //# endif
            for (var e = 0u; e < 4u; e++) {
                let token = start + 4u * quarter + {{ 16 * j }}u + e;
                if (token >= seen.x && token <= seen.y) {
                    //# if is_second
                    weight[e] = exp(score(dots[e]) - largest);
                    //# else
                    largest = max(largest, score(dots[e]));
                    //# endif
                }
            }
            //# if is_second
            total += (weight.x + weight.y) + (weight.z + weight.w);
            weights[line * {{ w_stride }}u + quarter + {{ 4 * j }}u] = vec4<f16>(weight);
            //# endif
        }
        //# endfor
        //# if is_second
        //# for i in range(n_v)
        {
            // What nobody sees may be nobody's, and no number.
            let is_stored = token{{ i }} >= first_seen && token{{ i }} <= last_token;
            let to_place = (v_token + {{ i * v_step }}u) * {{ v_stride }}u + 2u * v_octet;
            tile[to_place] = select(vec4<f16>(), v{{ i }}.low, is_stored);
            tile[to_place + 1u] = select(vec4<f16>(), v{{ i }}.high, is_stored);
        }
        //# endfor
        workgroupBarrier();
        //# for i in range(4)
        let w{{ i }} = coopLoadT<coop_mat16x16<f16, A>>(&weights[down * {{ w_stride }}u + {{ 4 * i }}u], {{ w_stride }}u);
        //# for j in range(n_sums)
        let v{{ i }}_{{ j }} = coopLoadT<coop_mat16x16<f16, B>>(&tile[{{ 16 * i }}u * {{ v_stride }}u + ({{ n_sums }}u * right + {{ j }}u) * 4u], {{ v_stride }}u);
        sum{{ j }} = coopMultiplyAdd(w{{ i }}, v{{ i }}_{{ j }}, sum{{ j }});
        //# endfor
        //# endfor
        workgroupBarrier();
        //# endif
    }
    //# if not is_second
    largest = max(largest, subgroupShuffleXor(largest, 1u));
    largest = max(largest, subgroupShuffleXor(largest, 2u));
    //# endif
    //# endfor
    total += subgroupShuffleXor(total, 1u);
    total += subgroupShuffleXor(total, 2u);
    if (p.has_sinks != 0u) {
        total += exp(sinks[head] - largest);
    }
    //# set n_halves = (v_dim + 63) // 64
    //# for half in range(n_halves)
    workgroupBarrier();
    //# for j in range(n_sums)
    if (({{ n_sums }}u * right + {{ j }}u) / 4u == {{ half }}u) {
        coopStoreT(sum{{ j }}, &scores[down * {{ s_stride }}u + ({{ n_sums }}u * right + {{ j }}u) % 4u * 4u], {{ s_stride }}u);
    }
    //# endfor
    workgroupBarrier();
    if (query < rows_here.y) {
        for (var i = quarter; i < {{ [16, (v_dim - 64 * half) // 4] | min }}u; i += 4u) {
            y[(row * p.n_heads + head) * {{ v_dim // 4 }}u + {{ 16 * half }}u + i] = scores[line * {{ s_stride }}u + i] / total;
        }
    }
    //# endfor
}
