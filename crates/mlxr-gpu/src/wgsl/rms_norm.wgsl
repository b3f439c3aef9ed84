// y = x / sqrt(mean(x^2) + eps) * weight over groups of `cols` columns, one workgroup per group.
// With a residual: residual += scale * x first, and the norm is of the residual.

struct Params {
    n_groups: u32,
    cols: u32,
    eps: f32,
    scale: f32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> weight: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
//# if kind == "out_of_place"
@group(0) @binding(2) var<storage, read> x: array<f32>;
//# elif kind == "residual"
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> residual: array<f32>;
//# endif

//# include "grid.wgsl"
//# include "workgroup_sum.wgsl"

fn value(i: u32) -> f32 {
    //# if kind == "out_of_place"
    return x[i];
    //# elif kind == "residual"
    return residual[i];
    //# else
    return y[i];
    //# endif
}

@compute @workgroup_size({{ lanes }})
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) sublane: u32,
) {
    let row = workgroup_index(wg, n_wg);
    if (row >= p.n_groups) {
        return;
    }
    let start = row * p.cols;
    var sum = 0.0;
    for (var c = lane; c < p.cols; c += {{ lanes }}u) {
        //# if kind == "residual"
        residual[start + c] = fma(p.scale, x[start + c], residual[start + c]);
        //# endif
        let v = value(start + c);
        sum = fma(v, v, sum);
    }
    let factor = 1.0 / sqrt(workgroup_sum(sum, subgroup, sublane) / f32(p.cols) + p.eps);
    for (var c = lane; c < p.cols; c += {{ lanes }}u) {
        y[start + c] = value(start + c) * factor * weight[c];
    }
}
