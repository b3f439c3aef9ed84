// Rotates queries and keys by the row's angles, and stores keys and values at their slots; see rope.wgsl and
// store_kv.wgsl. A lane turns what turns together: {{ "an octet" if is_interleaved else "two octets" }}; or it stores an octet as it is.

struct Params {
    n: u32,
    n_heads: u32,
    n_kv_heads: u32,
}
var<immediate> p: Params;

//# include "kv_types.wgsl"
//# include "grid.wgsl"

// (position, end of the span, start of the block table, slot), see batch.rs.
@group(0) @binding(0) var<storage, read> rows: array<vec4<u32>>;
// Cosine and sine, [rows, n_pairs].
@group(0) @binding(1) var<storage, read> angles: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> q: array<mat2x4<f32>>;
@group(0) @binding(3) var<storage, read> k: array<mat2x4<f32>>;
@group(0) @binding(4) var<storage, read> v: array<mat2x4<f32>>;
@group(0) @binding(5) var<storage, read_write> k_cache: array<Octet>;
@group(0) @binding(6) var<storage, read_write> v_cache: array<Octet>;

//# set k_octets = k_dim // 8
//# set v_octets = v_dim // 8
//# set n_units = n_pairs // (4 if is_interleaved else 8)
//# set n_rest = k_octets - n_pairs // 4

//# include "turn.wgsl"

//# if is_interleaved
alias Unit = mat2x4<f32>;

fn turn_unit(x: Unit, at: u32) -> Unit {
    return Unit(turn(x[0], at), turn(x[1], at + 2u));
}
//# else
alias Unit = mat4x4<f32>;

fn turn_unit(x: Unit, at: u32) -> Unit {
    let low = mat2x4<f32>(turn(x[0], x[2], at, false), turn(x[1], x[3], at + 4u, false));
    let high = mat2x4<f32>(turn(x[2], x[0], at, true), turn(x[3], x[1], at + 4u, true));
    return Unit(low[0], low[1], high[0], high[1]);
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
    let n_q = p.n_heads * {{ n_units }}u;
    let n_k = p.n_kv_heads * {{ n_units }}u;
    let n_rest = p.n_kv_heads * {{ n_rest }}u;
    let per_row = n_q + n_k + n_rest + p.n_kv_heads * {{ v_octets }}u;
    let row = i / per_row;
    var j = i % per_row;
    if (j < n_q) {
        let unit = j % {{ n_units }}u;
        let at = (row * p.n_heads + j / {{ n_units }}u) * {{ k_octets }}u + unit;
        //# if is_interleaved
        q[at] = turn_unit(q[at], row * {{ n_pairs }}u + 4u * unit);
        //# else
        let low = q[at];
        let high = q[at + {{ n_units }}u];
        let y = turn_unit(Unit(low[0], low[1], high[0], high[1]), row * {{ n_pairs }}u + 8u * unit);
        q[at] = mat2x4<f32>(y[0], y[1]);
        q[at + {{ n_units }}u] = mat2x4<f32>(y[2], y[3]);
        //# endif
        return;
    }
    let slot = rows[row].w;
    let block = slot / {{ block_tokens }}u * p.n_kv_heads;
    let t = slot % {{ block_tokens }}u;
    j -= n_q;
    if (j < n_k) {
        let unit = j % {{ n_units }}u;
        let head = j / {{ n_units }}u;
        let at = (row * p.n_kv_heads + head) * {{ k_octets }}u + unit;
        let to = ((block + head) * {{ k_octets }}u + unit) * {{ block_tokens }}u + t;
        //# if is_interleaved
        let y = turn_unit(k[at], row * {{ n_pairs }}u + 4u * unit);
        k_cache[to] = encode(y[0], y[1]);
        //# else
        let low = k[at];
        let high = k[at + {{ n_units }}u];
        let y = turn_unit(Unit(low[0], low[1], high[0], high[1]), row * {{ n_pairs }}u + 8u * unit);
        k_cache[to] = encode(y[0], y[1]);
        k_cache[to + {{ n_units * block_tokens }}u] = encode(y[2], y[3]);
        //# endif
        return;
    }
    j -= n_k;
    //# if n_rest > 0
    if (j < n_rest) {
        let octet = {{ n_pairs // 4 }}u + j % {{ n_rest }}u;
        let head = j / {{ n_rest }}u;
        let x = k[(row * p.n_kv_heads + head) * {{ k_octets }}u + octet];
        k_cache[((block + head) * {{ k_octets }}u + octet) * {{ block_tokens }}u + t] = encode(x[0], x[1]);
        return;
    }
    //# endif
    j -= n_rest;
    let x = v[row * p.n_kv_heads * {{ v_octets }}u + j];
    let head = j / {{ v_octets }}u;
    v_cache[((block + head) * {{ block_tokens }}u + t) * {{ v_octets }}u + j % {{ v_octets }}u] = encode(x[0], x[1]);
}
