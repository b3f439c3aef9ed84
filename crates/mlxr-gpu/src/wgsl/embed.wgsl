// Rows of the table that the batch's tokens name, times a scale: one lane per chunk.

struct Params {
    n: u32,
    n_chunks: u32,
    n_groups: u32,
    group: u32,
    cols: u32,
    scale: f32,
    // This part of the table holds rows first_out to first_out + n_out.
    first_out: u32,
    n_out: u32,
}
var<immediate> p: Params;

//# if bits is defined
//# include "weight_codes.wgsl"
//# else
//# include "weight_floats.wgsl"
//# endif

// See batch.rs.
@group(0) @binding(3) var<storage, read> tokens: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

//# include "grid.wgsl"

fn put(row: u32, col: u32, v: vec4<f32>) {
    for (var i = 0u; i < 4u; i++) {
        if (col + i < p.cols) {
            y[row * p.cols + col + i] = p.scale * v[i];
        }
    }
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
    let row = i / p.n_chunks;
    let c = i % p.n_chunks;
    let token = tokens[row];
    if (token < p.first_out || token >= p.first_out + p.n_out) {
        return;
    }
    let chunk = w_chunk(token - p.first_out, c);
    //# if bits is defined
    for (var j = 0u; j < 4u; j++) {
        let low = vec4<f32>(unpack4xI8(chunk.low[j]));
        let high = vec4<f32>(unpack4xI8(chunk.high[j]));
        put(row, c * 32u + 4u * j, fma(vec4(chunk.scale.x), low, vec4(-chunk.offset.x)));
        put(row, c * 32u + 16u + 4u * j, fma(vec4(chunk.scale.y), high, vec4(-chunk.offset.y)));
    }
    //# else
    put(row, c * 8u, chunk.low);
    put(row, c * 8u + 4u, chunk.high);
    //# endif
}
