// A weight as rows of f16: one lane for eight columns.

struct Params {
    n: u32,
    n_chunks: u32,
    n_groups: u32,
    group: u32,
}
var<immediate> p: Params;

//# if bits is defined
//# include "weight_codes.wgsl"
//# else
//# include "weight_floats.wgsl"
//# endif

@group(0) @binding(3) var<storage, read_write> y: array<vec4<u32>>;

//# include "grid.wgsl"

fn halves(a: vec4<f32>, b: vec4<f32>) -> vec4<u32> {
    return vec4(pack2x16float(a.xy), pack2x16float(a.zw), pack2x16float(b.xy), pack2x16float(b.zw));
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    prepare_weights(lane, 64u);
    let i = workgroup_index(wg, n_wg) * 64u + lane;
    if (i >= p.n) {
        return;
    }
    //# if bits is defined
    let at = i / 4u;
    let chunk = w_chunk(at / p.n_chunks, at % p.n_chunks);
    let is_high = (i & 2u) != 0u;
    let words = select(chunk.low, chunk.high, is_high);
    let two = select(words.xy, words.zw, (i & 1u) != 0u);
    let scale = vec4(select(chunk.scale.x, chunk.scale.y, is_high));
    let offset = vec4(-select(chunk.offset.x, chunk.offset.y, is_high));
    y[i] = halves(
        fma(scale, vec4<f32>(unpack4xI8(two.x)), offset),
        fma(scale, vec4<f32>(unpack4xI8(two.y)), offset),
    );
    //# else
    let chunk = w_chunk(i / p.n_chunks, i % p.n_chunks);
    y[i] = halves(chunk.low, chunk.high);
    //# endif
}
