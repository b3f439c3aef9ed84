// y = activation(gate) * up

struct Params {
    // Elements, or fours of them.
    n: u32,
    alpha: f32,
    limit: f32,
}
var<immediate> p: Params;

//# set item = "vec4<f32>" if is_quantising else "f32"
@group(0) @binding(0) var<storage, read> gate: array<{{ item }}>;
@group(0) @binding(1) var<storage, read> up: array<{{ item }}>;
@group(0) @binding(2) var<storage, read_write> y: array<{{ item }}>;

//# if is_quantising
//# set first_of_codes = 3
//# include "quantise.wgsl"
//# endif
//# include "grid.wgsl"
//# include "gate.wgsl"

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = workgroup_index(wg, n_wg) * 256u + lane;
    let has_some = i < p.n;
    let at = min(i, p.n - 1u);
    let g = gate[at];
    let u = up[at];
    //# if is_quantising
    let v = vec4(gated(g.x, u.x), gated(g.y, u.y), gated(g.z, u.z), gated(g.w, u.w));
    quantise(i, v, has_some);
    //# else
    let v = gated(g, u);
    //# endif
    if (has_some) {
        y[i] = v;
    }
}
