// A weight as rows of f16: one lane per chunk.

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
    let chunk = load_chunk(i / p.n_chunks, i % p.n_chunks);
    //# if bits is defined
    for (var j = 0u; j < 2u; j++) {
        let scale = vec4(chunk.scale[j]);
        let offset = vec4(-chunk.offset[j]);
        let words = select(chunk.low, chunk.high, j == 1u);
        let a = fma(scale, vec4<f32>(unpack4xI8(words.x)), offset);
        let b = fma(scale, vec4<f32>(unpack4xI8(words.y)), offset);
        let c = fma(scale, vec4<f32>(unpack4xI8(words.z)), offset);
        let d = fma(scale, vec4<f32>(unpack4xI8(words.w)), offset);
        y[4u * i + 2u * j] = halves(a, b);
        y[4u * i + 2u * j + 1u] = halves(c, d);
    }
    //# else
    y[i] = halves(chunk.low, chunk.high);
    //# endif
}
