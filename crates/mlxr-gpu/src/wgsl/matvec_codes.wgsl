// y[n][o] = sum over columns of x[n] * w[o] (+ bias[o]), weights in quantised chunks, activations in 8-bit chunks.
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
    // Experts: rows of x per choice of an expert, rows of one expert.
    choices_per_row: u32,
    first_out: u32,
}
var<immediate> p: Params;

//# include "weight_codes.wgsl"

@group(0) @binding(3) var<storage, read> x_codes: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> x_scales: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> bias: array<f32>;
@group(0) @binding(6) var<storage, read> routing: array<u32>;
@group(0) @binding(7) var<storage, read_write> y: array<f32>;

//# set lanes = subgroup * n_split
var<workgroup> partial: array<f32, {{ n_sets * n_split * n_out * n_rows }}>;

//# include "grid.wgsl"

fn dot4(a: vec4<u32>, b: vec4<u32>) -> i32 {
    return dot4I8Packed(a.x, b.x) + dot4I8Packed(a.y, b.y) + dot4I8Packed(a.z, b.z) + dot4I8Packed(a.w, b.w);
}

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
    var sum{{ o }}_{{ n }} = 0.0;
    //# endfor
    //# endfor
    for (var c = lane; c < p.n_chunks; c += {{ lanes }}u) {
        //# for o in range(n_out)
        let w{{ o }} = load_chunk(w_row{{ o }}, c);
        //# endfor
        //# for n in range(n_rows)
        {
            let at = x_row{{ n }} * p.n_chunks + c;
            let low = x_codes[2u * at];
            let high = x_codes[2u * at + 1u];
            let s = x_scales[at];
            //# for o in range(n_out)
            //# if has_halves
            sum{{ o }}_{{ n }} = fma(w{{ o }}.scale.x * s.x, f32(dot4(w{{ o }}.low, low)), sum{{ o }}_{{ n }});
            sum{{ o }}_{{ n }} = fma(w{{ o }}.scale.y * s.x, f32(dot4(w{{ o }}.high, high)), sum{{ o }}_{{ n }});
            //# if has_offset
            sum{{ o }}_{{ n }} = fma(-w{{ o }}.offset.x, s.y, sum{{ o }}_{{ n }});
            sum{{ o }}_{{ n }} = fma(-w{{ o }}.offset.y, s.z, sum{{ o }}_{{ n }});
            //# endif
            //# else
            let d{{ o }} = dot4(w{{ o }}.low, low) + dot4(w{{ o }}.high, high);
            sum{{ o }}_{{ n }} = fma(w{{ o }}.scale.x * s.x, f32(d{{ o }}), sum{{ o }}_{{ n }});
            //# if has_offset
            sum{{ o }}_{{ n }} = fma(-w{{ o }}.offset.x, s.w, sum{{ o }}_{{ n }});
            //# endif
            //# endif
            //# endfor
        }
        //# endfor
    }
    //# include "matvec_end.wgsl"
}
