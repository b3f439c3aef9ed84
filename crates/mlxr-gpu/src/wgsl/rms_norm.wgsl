// y = x / sqrt(mean(x^2) + eps) * weight over groups of columns, one workgroup per group.
// With a residual: residual += scale * x first, and the norm is of the residual; it is scaled last, as where a product has
// left that to others.

struct Params {
    n_groups: u32,
    // Columns, or fours of them.
    n_items: u32,
    cols: f32,
    eps: f32,
    scale: f32,
}
var<immediate> p: Params;

//# if has_quads
alias Item = vec4<f32>;
//# else
alias Item = f32;
//# endif

@group(0) @binding(0) var<storage, read> weight: array<Item>;
//# if is_half
@group(0) @binding(1) var<storage, read_write> y: array<vec2<u32>>;
//# else
@group(0) @binding(1) var<storage, read_write> y: array<Item>;
//# endif
//# if kind != "in_place"
@group(0) @binding(2) var<storage, read> x: array<Item>;
//# endif
//# if kind == "residual"
@group(0) @binding(3) var<storage, read_write> residual: array<Item>;
//# endif

//# if is_quantising
//# set first_of_codes = 4 if kind == "residual" else 3
//# include "quantise.wgsl"
//# endif
//# if has_fragments
@group(0) @binding({{ first_of_codes + 2 }}) var<storage, read_write> fragments: array<vec2<u32>>;
//# include "fragments.wgsl"
//# endif
//# if is_half or has_fragments
//# include "half_bits.wgsl"
//# endif
//# include "grid.wgsl"
//# include "lanes.wgsl"
//# if has_quads
//# include "squares.wgsl"
var<workgroup> squares: array<f32, {{ per_lane * lanes // 8 }}>;
//# else
//# include "workgroup_sum.wgsl"
//# endif

@compute @workgroup_size({{ lanes }})
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let subgroup = lane / {{ subgroup }}u;
    let sublane = lane % {{ subgroup }}u;
    let row = workgroup_index(wg, n_wg);
    if (row >= p.n_groups) {
        return;
    }
    let start = row * p.n_items;
    // All loads before the first store, so that none waits for it.
    //# for k in range(per_lane)
    let c{{ k }} = lane + {{ k * lanes }}u;
    let at{{ k }} = min(c{{ k }}, p.n_items - 1u);
    //# if kind == "in_place"
    let x{{ k }} = y[start + at{{ k }}];
    //# else
    let x{{ k }} = x[start + at{{ k }}];
    //# endif
    //# if kind == "residual"
    let r{{ k }} = residual[start + at{{ k }}];
    //# endif
    let w{{ k }} = weight[at{{ k }}];
    //# endfor
    //# if not has_quads
    var sum = 0.0;
    //# endif
    //# for k in range(per_lane)
    let v{{ k }} = {{ "fma(Item(p.scale), x%d, r%d)"|format(k, k) if kind == "residual" else "x%d"|format(k) }};
    if (c{{ k }} < p.n_items) {
        //# if kind == "residual"
        residual[start + c{{ k }}] = v{{ k }};
        //# endif
        //# if not has_quads
        sum += v{{ k }} * v{{ k }};
        //# endif
    }
    //# if has_quads
    let squares{{ k }} = chunk_squares(v{{ k }});
    if ((lane & 7u) == 0u) {
        squares[c{{ k }} >> 3u] = squares{{ k }};
    }
    //# endif
    //# endfor
    //# if has_quads
    workgroupBarrier();
    var sum = 0.0;
    for (var i = sublane; i < p.n_items / 8u; i += {{ subgroup }}u) {
        sum += squares[i];
    }
    let factor = row_factor(sum, p.cols, p.eps);
    //# else
    let factor = 1.0 / sqrt(workgroup_sum(sum, subgroup, sublane) / p.cols + p.eps);
    //# endif
    //# for k in range(per_lane)
    //# if kind == "residual"
    let u{{ k }} = v{{ k }} * w{{ k }};
    let y{{ k }} = u{{ k }} * factor;
    //# else
    let y{{ k }} = v{{ k }} * factor * w{{ k }};
    //# endif
    //# if is_quantising and kind == "residual"
    quantise_times(start + c{{ k }}, u{{ k }}, factor, c{{ k }} < p.n_items);
    //# elif is_quantising
    quantise(start + c{{ k }}, y{{ k }}, c{{ k }} < p.n_items);
    //# endif
    if (c{{ k }} < p.n_items) {
        //# if is_half
        y[start + c{{ k }}] = half_bits(y{{ k }});
        //# else
        y[start + c{{ k }}] = y{{ k }};
        //# endif
        //# if has_fragments
        fragments[fragment_place(row, c{{ k }}, p.n_items)] = half_bits(y{{ k }}.xzyw);
        //# endif
    }
    //# endfor
}
