//# if is_scattering
// Row rows[i] of y is row i of x.
//# else
// Row i of y is row rows[i] of x.
//# endif

struct Params {
    n: u32,
    cols: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

//# include "grid.wgsl"

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = workgroup_index(wg, n_wg) * 256u + lane;
    if (i < p.n) {
        let named = rows[i / p.cols] * p.cols + i % p.cols;
        {{ "y[named] = x[i]" if is_scattering else "y[i] = x[named]" }};
    }
}
