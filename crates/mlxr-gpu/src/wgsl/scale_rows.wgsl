// y = x / sqrt(mean of squares + eps), where a product has left the squares of each chunk. A workgroup has a row.

struct Params {
    n_quads: u32,
    x_cols: f32,
    x_eps: f32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> x_squares: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

//# include "lanes.wgsl"
//# include "squares.wgsl"

@compute @workgroup_size({{ lanes }})
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let sublane = lane % {{ subgroup }}u;
    //# set row = "wg.x"
    //# set n = 0
    //# include "row_factor.wgsl"
    for (var i = lane; i < p.n_quads; i += {{ lanes }}u) {
        y[wg.x * p.n_quads + i] = x[wg.x * p.n_quads + i] * factor0;
    }
}
