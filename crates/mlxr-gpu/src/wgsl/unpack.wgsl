// A weight as rows of f16, a lane having {{ n_each }} times eight columns.

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

//# if bits is defined
// A quarter of a chunk.
fn eight(chunk: Chunk, quarter: u32) -> vec4<u32> {
    let is_high = (quarter & 2u) != 0u;
    let words = select(chunk.low, chunk.high, is_high);
    let two = select(words.xy, words.zw, (quarter & 1u) != 0u);
    let scale = vec4(select(chunk.scale.x, chunk.scale.y, is_high));
    let offset = vec4(-select(chunk.offset.x, chunk.offset.y, is_high));
    return halves(fma(scale, vec4<f32>(unpack4xI8(two.x)), offset), fma(scale, vec4<f32>(unpack4xI8(two.y)), offset));
}
//# endif

@compute @workgroup_size({{ lanes }})
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    prepare_weights(lane, {{ lanes }}u);
    let first = workgroup_index(wg, n_wg) * {{ lanes * n_each }}u + lane;
    // All loads before the first store, so that none waits for it.
    //# for k in range(n_each)
    let i{{ k }} = first + {{ k * lanes }}u;
    let at{{ k }} = min(i{{ k }}, p.n - 1u){{ " / 4u" if bits is defined else "" }};
    let chunk{{ k }} = w_chunk(at{{ k }} / p.n_chunks, at{{ k }} % p.n_chunks);
    //# endfor
    //# for k in range(n_each)
    if (i{{ k }} < p.n) {
        //# if bits is defined
        y[i{{ k }}] = eight(chunk{{ k }}, i{{ k }} & 3u);
        //# else
        y[i{{ k }}] = halves(chunk{{ k }}.low, chunk{{ k }}.high);
        //# endif
    }
    //# endfor
}
