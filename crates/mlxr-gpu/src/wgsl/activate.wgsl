// x = activation(x)

struct Params {
    n: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read_write> x: array<f32>;

//# include "grid.wgsl"
//# include "functions.wgsl"

fn relu(v: f32) -> f32 {
    return max(v, 0.0);
}

fn quick_gelu(v: f32) -> f32 {
    return v * sigmoid(1.702 * v);
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = workgroup_index(wg, n_wg) * 256u + lane;
    if (i < p.n) {
        x[i] = {{ kind }}(x[i]);
    }
}
