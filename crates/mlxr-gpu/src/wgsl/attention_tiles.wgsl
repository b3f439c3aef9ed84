// Attention of many rows of a sequence on the device's matrix units: keys, values and weights in f16, sums in f32.
//
// A workgroup serves {{ n_queries }} rows and the {{ n_heads }} query heads of a key head, a subgroup 16 of these lines. It goes through the
// tokens they see once, {{ tile }} at a time. Weights are relative to a score that was a line's largest when its sums were last
// scaled, which is seldom: only where weights would come out much larger than one.
//
// Lanes of a subgroup wait for each other alone where they exchange scores and weights. SPIR-V as naga writes it orders no
// workgroup memory there, and drivers do all the same; it is compared with the plain kernel when a device is opened.

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
//# if is_half
@group(0) @binding(7) var<storage, read_write> y: array<vec2<u32>>;
//# else
@group(0) @binding(7) var<storage, read_write> y: array<vec4<f32>>;
//# endif

//# include "functions.wgsl"
//# include "reach.wgsl"
//# if is_half
//# include "half_bits.wgsl"
//# endif

//# set lanes = 32 * n_subgroups
//# set k_octets = k_dim // 8
//# set v_octets = v_dim // 8
//# set k_step = lanes // tile
//# set v_step = lanes // v_octets
//# set n_k = k_octets // k_step
//# set n_v = tile // v_step
// Lines lie apart by a little more than their length, so that they begin in different banks; in fours.
//# set k_stride = k_dim // 4 + 2
//# set v_stride = v_dim // 4 + 2
//# set s_stride = tile // 4 + 2
//# set w_stride = tile // 4 + 2
//# set n_sums = v_dim // 16
// Of a line's scores of a tile, those of a lane in fours, and matrices.
//# set n_quads = tile // 8
//# set m = tile // 16
var<workgroup> k_tile: array<vec4<f16>, {{ tile * k_stride }}>;
var<workgroup> v_tile: array<vec4<f16>, {{ tile * v_stride }}>;
// By subgroup.
var<workgroup> scores: array<vec4<f32>, {{ 16 * n_subgroups * s_stride }}>;
var<workgroup> weights: array<vec4<f16>, {{ 16 * n_subgroups * w_stride }}>;

const LOWEST: f32 = -3.0e38;
const LOG2_E: f32 = 1.4426950408889634;

// Where the first octet of a token's keys that a lane loads lies.
fn key_place(token: u32, table: u32, kv_head: u32, octet: u32) -> u32 {
    let block = block_tables[table + token / {{ block_tokens }}u] * p.n_kv_heads + kv_head;
    return (block * {{ k_octets }}u + octet) * {{ block_tokens }}u + token % {{ block_tokens }}u;
}

fn value_place(token: u32, table: u32, kv_head: u32, octet: u32) -> u32 {
    let block = block_tables[table + token / {{ block_tokens }}u] * p.n_kv_heads + kv_head;
    return (block * {{ block_tokens }}u + token % {{ block_tokens }}u) * {{ v_octets }}u + octet;
}

fn tanh_each(v: vec4<f32>) -> vec4<f32> {
    return vec4(tanh_stable(v.x), tanh_stable(v.y), tanh_stable(v.z), tanh_stable(v.w));
}

@compute @workgroup_size({{ lanes }})
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) sublane: u32,
) {
    // The last rows of a sequence see most: they begin.
    let rows_here = tiles[p.n_tiles - 1u - wg.x];
    let kv_head = wg.y;
    let group = p.n_heads / p.n_kv_heads;
    let first_head = kv_head * group + wg.z * {{ n_heads }}u;
    let last_row = rows_here.x + rows_here.y - 1u;

    // A line's lanes: two, with every other four of its columns.
    let line = 16u * subgroup + sublane / 2u;
    let half = sublane % 2u;
    let query = line / {{ n_heads }}u;
    let head = first_head + line % {{ n_heads }}u;
    let row = min(rows_here.x + query, last_row);
    let info = rows[row];
    let seen = reach(info);
    // What any line sees, and what all do.
    let first_reach = reach(rows[rows_here.x]);
    let last_reach = reach(rows[last_row]);
    let first_seen = first_reach.x;
    let first_token = first_seen / {{ tile }}u * {{ tile }}u;
    let last_token = last_reach.y;

    let s_from = line * {{ s_stride }}u + half;
    let s_slice = 16u * subgroup * {{ s_stride }}u;
    let w_to = line * {{ w_stride }}u + half;
    let w_slice = 16u * subgroup * {{ w_stride }}u;
    // Scores come as exponents of two, or as the arguments of a softcap.
    let factor = select(p.scale * LOG2_E, p.scale / p.softcap, p.softcap != 0.0);
    //# for c in range(k_dim // 32)
    subgroupBarrier();
    //# for j in range(4)
    {
        let v = factor * q[(row * p.n_heads + head) * {{ k_dim // 4 }}u + {{ 8 * c + 2 * j }}u + half];
        weights[w_to + {{ 2 * j }}u] = vec4<f16>(clamp(v, vec4(-65504.0), vec4(65504.0)));
    }
    //# endfor
    subgroupBarrier();
    //# for i in range(2)
    let q{{ 2 * c + i }} = coopLoadT<coop_mat16x16<f16, A>>(&weights[w_slice + {{ 4 * i }}u], {{ w_stride }}u);
    //# endfor
    //# endfor

    // Where a lane's keys and values lie in the tile.
    let k_token = lane % {{ tile }}u;
    let k_octet = lane / {{ tile }}u;
    let v_octet = lane % {{ v_octets }}u;
    let v_token = lane / {{ v_octets }}u;
    let k_to = k_token * {{ k_stride }}u + 2u * k_octet;
    let v_to = v_token * {{ v_stride }}u + 2u * v_octet;

    var largest = -1.0e38;
    if (p.has_sinks != 0u) {
        largest = LOG2_E * sinks[head];
    }
    var total = 0.0;
    //# for j in range(n_sums)
    var sum{{ j }} = coop_mat16x16<f32, C>();
    //# endfor
    let k_from = key_place(min(first_token + k_token, last_token), info.z, kv_head, k_octet);
    //# for i in range(n_k)
    var k{{ i }} = k_cache[k_from + {{ i * k_step * block_tokens }}u];
    //# endfor
    //# for i in range(n_v)
    var v{{ i }} = v_cache[value_place(min(first_token + v_token + {{ i * v_step }}u, last_token), info.z, kv_head, v_octet)];
    //# endfor
    for (var start = first_token; start <= last_token; start += {{ tile }}u) {
        //# for i in range(n_k)
        k_tile[k_to + {{ 2 * i * k_step }}u] = k{{ i }}.low;
        k_tile[k_to + {{ 2 * i * k_step + 1 }}u] = k{{ i }}.high;
        //# endfor
        //# for i in range(n_v)
        {
            // What nobody sees may be nobody's, and no number.
            let token = start + v_token + {{ i * v_step }}u;
            let is_stored = token >= first_seen && token <= last_token;
            v_tile[v_to + {{ i * v_step * v_stride }}u] = select(vec4<f16>(), v{{ i }}.low, is_stored);
            v_tile[v_to + {{ i * v_step * v_stride + 1 }}u] = select(vec4<f16>(), v{{ i }}.high, is_stored);
        }
        //# endfor
        let next_from = key_place(min(start + {{ tile }}u + k_token, last_token), info.z, kv_head, k_octet);
        //# for i in range(n_k)
        k{{ i }} = k_cache[next_from + {{ i * k_step * block_tokens }}u];
        //# endfor
        //# for i in range(n_v)
        v{{ i }} = v_cache[value_place(min(start + {{ tile }}u + v_token + {{ i * v_step }}u, last_token), info.z, kv_head, v_octet)];
        //# endfor
        workgroupBarrier();
        let is_inside = start >= last_reach.x && start + {{ tile - 1 }}u <= first_reach.y;
        //# for j in range(m)
        var s{{ j }} = coop_mat16x16<f32, C>();
        //# endfor
        //# for i in range(k_dim // 16)
        //# for j in range(m)
        let b{{ i }}_{{ j }} = coopLoad<coop_mat16x16<f16, B>>(&k_tile[{{ 16 * j * k_stride + 4 * i }}u], {{ k_stride }}u);
        s{{ j }} = coopMultiplyAdd(q{{ i }}, b{{ i }}_{{ j }}, s{{ j }});
        //# endfor
        //# endfor
        //# for j in range(m)
        coopStoreT(s{{ j }}, &scores[s_slice + {{ 4 * j }}u], {{ s_stride }}u);
        //# endfor
        subgroupBarrier();
        //# for j in range(n_quads)
        var t{{ j }} = scores[s_from + {{ 2 * j }}u];
        //# endfor
        if (p.softcap != 0.0) {
            //# for j in range(n_quads)
            t{{ j }} = p.softcap * LOG2_E * tanh_each(t{{ j }});
            //# endfor
        }
        if (!is_inside) {
            //# for j in range(n_quads)
            {
                let tokens = vec4(start + {{ 8 * j }}u + 4u * half) + vec4(0u, 1u, 2u, 3u);
                t{{ j }} = select(vec4(LOWEST), t{{ j }}, (tokens >= vec4(seen.x)) & (tokens <= vec4(seen.y)));
            }
            //# endfor
        }
        var most = t0;
        //# for j in range(1, n_quads)
        most = max(most, t{{ j }});
        //# endfor
        var highest = max(max(most.x, most.y), max(most.z, most.w));
        highest = max(highest, subgroupShuffleXor(highest, 1u));
        // Sums are scaled when weights would be much more than one.
        let is_high = highest > largest + 8.0;
        var is_pending = subgroupAny(is_high);
        // Once. A loop, as matrices are not allowed behind a condition that is not known to be the same for all lanes.
        while (is_pending) {
            is_pending = false;
            let now = select(largest, highest, is_high);
            let scaling = exp2(largest - now);
            largest = now;
            total *= scaling;
            //# for j0 in range(0, n_sums, m)
            subgroupBarrier();
            //# for j in range(m)
            coopStoreT(sum{{ j0 + j }}, &scores[s_slice + {{ 4 * j }}u], {{ s_stride }}u);
            //# endfor
            subgroupBarrier();
            //# for j in range(n_quads)
            scores[s_from + {{ 2 * j }}u] *= scaling;
            //# endfor
            subgroupBarrier();
            //# for j in range(m)
            sum{{ j0 + j }} = coopLoadT<coop_mat16x16<f32, C>>(&scores[s_slice + {{ 4 * j }}u], {{ s_stride }}u);
            //# endfor
            //# endfor
            subgroupBarrier();
        }
        //# for j in range(n_quads)
        {
            let weight = exp2(t{{ j }} - largest);
            total += (weight.x + weight.y) + (weight.z + weight.w);
            weights[w_to + {{ 2 * j }}u] = vec4<f16>(weight);
        }
        //# endfor
        subgroupBarrier();
        //# for i in range(m)
        let w{{ i }} = coopLoadT<coop_mat16x16<f16, A>>(&weights[w_slice + {{ 4 * i }}u], {{ w_stride }}u);
        //# for j in range(n_sums)
        let v{{ i }}_{{ j }} = coopLoadT<coop_mat16x16<f16, B>>(&v_tile[{{ 16 * i * v_stride + 4 * j }}u], {{ v_stride }}u);
        sum{{ j }} = coopMultiplyAdd(w{{ i }}, v{{ i }}_{{ j }}, sum{{ j }});
        //# endfor
        //# endfor
        workgroupBarrier();
    }
    total += subgroupShuffleXor(total, 1u);
    if (p.has_sinks != 0u) {
        total += exp2(LOG2_E * sinks[head] - largest);
    }
    let inverse = 1.0 / total;
    let y_to = (row * p.n_heads + head) * {{ v_dim // 4 }}u + half;
    //# for j0 in range(0, n_sums, m)
    subgroupBarrier();
    //# for j in range(m)
    coopStoreT(sum{{ j0 + j }}, &scores[s_slice + {{ 4 * j }}u], {{ s_stride }}u);
    //# endfor
    subgroupBarrier();
    if (query < rows_here.y) {
        //# for j in range(n_quads)
        //# set item = "inverse * scores[s_from + %du]"|format(2 * j)
        y[y_to + {{ 4 * j0 + 2 * j }}u] = {{ "half_bits(%s)"|format(item) if is_half else item }};
        //# endfor
    }
    //# endfor
}
