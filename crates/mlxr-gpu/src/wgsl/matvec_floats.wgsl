// y[n][o] = sum over columns of x[n] * w[o] (+ bias[o]), weights and activations as floats in chunks of 8 columns.
//
// {{ n_split }} subgroups share the columns of {{ n_out }} rows of w and meet {{ n_rows }} rows of x; the order in which a result's parts
// are added is the same for every number of rows.

struct Params {
    n_chunks: u32,
    n_groups: u32,
    n_out: u32,
    n_rows: u32,
    y_stride: u32,
    y_start: u32,
    has_bias: u32,
    choices_per_row: u32,
    first_out: u32,
    group: u32,
}
var<immediate> p: Params;

//# include "weight_floats.wgsl"

@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> routing: array<u32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

//# set lanes = subgroup * n_split
var<workgroup> partial: array<f32, {{ n_sets * n_split * n_out * n_rows }}>;

//# include "grid.wgsl"

@compute @workgroup_size({{ lanes * n_sets }})
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) sublane: u32,
) {
    prepare_weights(index, {{ lanes * n_sets }}u);
    let set_idx = subgroup / {{ n_split }}u;
    let lane = (subgroup % {{ n_split }}u) * {{ subgroup }}u + sublane;
    let first = (workgroup_index(wg, n_wg) * {{ n_sets }}u + set_idx) * {{ n_out }}u;
    let first_row = wg.z * {{ n_rows }}u;
    //# if is_routed
    let base = routing[first_row] * p.n_out;
    let x_row0 = first_row / p.choices_per_row;
    //# else
    let base = 0u;
    //# for n in range(n_rows)
    let x_row{{ n }} = min(first_row + {{ n }}u, p.n_rows - 1u);
    //# endfor
    //# endif
    //# for o in range(n_out)
    let w_row{{ o }} = base + min(first + {{ o }}u, p.n_out - 1u);
    //# for n in range(n_rows)
    var quad{{ o }}_{{ n }} = vec4(0.0);
    //# endfor
    //# endfor
    for (var c = lane; c < p.n_chunks; c += {{ lanes }}u) {
        //# for o in range(n_out)
        let w{{ o }} = load_chunk(w_row{{ o }}, c);
        //# endfor
        //# for n in range(n_rows)
        {
            let at = x_row{{ n }} * p.n_chunks + c;
            let low = x[2u * at];
            let high = x[2u * at + 1u];
            //# for o in range(n_out)
            quad{{ o }}_{{ n }} = fma(w{{ o }}.low, low, quad{{ o }}_{{ n }});
            quad{{ o }}_{{ n }} = fma(w{{ o }}.high, high, quad{{ o }}_{{ n }});
            //# endfor
        }
        //# endfor
    }
    //# for o in range(n_out)
    //# for n in range(n_rows)
    let sum{{ o }}_{{ n }} = (quad{{ o }}_{{ n }}.x + quad{{ o }}_{{ n }}.y) + (quad{{ o }}_{{ n }}.z + quad{{ o }}_{{ n }}.w);
    //# endfor
    //# endfor
    //# include "matvec_end.wgsl"
}
