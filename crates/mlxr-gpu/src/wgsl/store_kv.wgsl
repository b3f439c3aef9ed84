// Stores the batch's keys and values at their slots: one lane per run of {{ 8 * octets }} elements of a head.

struct Params {
    n: u32,
    n_kv_heads: u32,
}
var<immediate> p: Params;

//# include "kv_types.wgsl"

// (position, end of the span, start of the block table, slot), see batch.rs.
@group(0) @binding(0) var<storage, read> rows: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> k_cache: array<Octet>;
@group(0) @binding(4) var<storage, read_write> v_cache: array<Octet>;
//# set has_scales = dtype in ["q8_0", "q4_0"]
//# if has_scales
@group(0) @binding(5) var<storage, read_write> k_scales: array<f32>;
@group(0) @binding(6) var<storage, read_write> v_scales: array<f32>;
//# endif

//# set k_runs = k_dim // (8 * octets)
//# set v_runs = v_dim // (8 * octets)

//# include "grid.wgsl"

//# if has_scales
// The first of the largest magnitude so far, with its sign.
fn extreme(before: f32, q: vec4<f32>) -> f32 {
    var found = before;
    for (var i = 0u; i < 4u; i++) {
        found = select(found, q[i], abs(q[i]) > abs(found));
    }
    return found;
}

// The scale as the type stores it, and what to multiply by before rounding.
fn scale_of(found: f32) -> vec2<f32> {
    //# if dtype == "q8_0"
    let codes_end = 127.0;
    let end = abs(found);
    //# else
    let codes_end = -8.0;
    let end = found;
    //# endif
    return vec2(unpack2x16float(pack2x16float(vec2(end / codes_end, 0.0))).x, select(0.0, codes_end / end, found != 0.0));
}
//# endif

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = workgroup_index(wg, n_wg) * 64u + lane;
    if (i >= p.n) {
        return;
    }
    let run = i % {{ k_runs + v_runs }}u;
    let head = i / {{ k_runs + v_runs }}u;
    let row = head / p.n_kv_heads;
    let slot = rows[row].w;
    let place = slot / {{ block_tokens }}u * p.n_kv_heads + head % p.n_kv_heads;
    let t = slot % {{ block_tokens }}u;
    //# if has_scales
    if (run < {{ k_runs }}u) {
        let source = head * {{ k_dim // 4 }}u + run * 8u;
        var found = 0.0;
        for (var j = 0u; j < 8u; j++) {
            found = extreme(found, k[source + j]);
        }
        let scale = scale_of(found);
        for (var j = 0u; j < 4u; j++) {
            let at = (place * {{ k_dim // 8 }}u + run * 4u + j) * {{ block_tokens }}u + t;
            k_cache[at] = encode(k[source + 2u * j], k[source + 2u * j + 1u], scale.y);
        }
        k_scales[(place * {{ k_dim // 32 }}u + run) * {{ block_tokens }}u + t] = scale.x;
    } else {
        let v_run = run - {{ k_runs }}u;
        let source = head * {{ v_dim // 4 }}u + v_run * 8u;
        var found = 0.0;
        for (var j = 0u; j < 8u; j++) {
            found = extreme(found, v[source + j]);
        }
        let scale = scale_of(found);
        for (var j = 0u; j < 4u; j++) {
            let at = (place * {{ block_tokens }}u + t) * {{ v_dim // 8 }}u + v_run * 4u + j;
            v_cache[at] = encode(v[source + 2u * j], v[source + 2u * j + 1u], scale.y);
        }
        v_scales[(place * {{ block_tokens }}u + t) * {{ v_dim // 32 }}u + v_run] = scale.x;
    }
    //# else
    if (run < {{ k_runs }}u) {
        let source = head * {{ k_dim // 4 }}u + 2u * run;
        k_cache[(place * {{ k_dim // 8 }}u + run) * {{ block_tokens }}u + t] = encode(k[source], k[source + 1u]);
    } else {
        let v_run = run - {{ k_runs }}u;
        let source = head * {{ v_dim // 4 }}u + 2u * v_run;
        v_cache[(place * {{ block_tokens }}u + t) * {{ v_dim // 8 }}u + v_run] = encode(v[source], v[source + 1u]);
    }
    //# endif
}
