// The start of a matvec: which rows of w and x a lane meets.

//# set lanes = subgroup * n_split
// Columns of y that a set computes: of each, n_out has a row of w, or one of w and one of up.
//# set n_y = n_out // 2 if kind is defined else n_out
//# set n_results = n_out * n_rows
// Rows of x that chose the same expert, or just one.
//# set is_grouped = is_routed and n_rows > 1
var<workgroup> partial: array<f32, {{ n_sets * n_split * n_results }}>;

// Result i of a set, of which each of its subgroups has a part.
fn joined(set_idx: u32, i: u32) -> f32 {
    var total = 0.0;
    for (var s = 0u; s < {{ n_split }}u; s++) {
        total += partial[(set_idx * {{ n_split }}u + s) * {{ n_results }}u + i];
    }
    return total;
}

//# include "grid.wgsl"
//# if kind is defined
//# include "gate.wgsl"
//# endif
//# if is_unscaled or is_normed is defined
//# include "lanes.wgsl"
//# include "squares.wgsl"
//# endif
//# if is_quantising is defined and is_quantising
//# include "quantise.wgsl"
//# endif

@compute @workgroup_size({{ lanes * n_sets }})
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let subgroup = index / {{ subgroup }}u;
    let sublane = index % {{ subgroup }}u;
    //# if is_grouped
    // See group.wgsl.
    let tile = wg.z * {{ n_rows + 1 }}u;
    let expert = routing[tile];
    if (expert == 0xffffffffu) {
        return;
    }
    //# endif
    prepare_weights(index, {{ lanes * n_sets }}u);
    let set_idx = subgroup / {{ n_split }}u;
    let lane = (subgroup % {{ n_split }}u) * {{ subgroup }}u + sublane;
    let first = (workgroup_index(wg, n_wg) * {{ n_sets }}u + set_idx) * {{ n_y }}u;
    //# if is_grouped
    let base = expert * p.n_out;
    //# for n in range(n_rows)
    let x_row{{ n }} = min(routing[tile + {{ n + 1 }}u], p.n_rows - 1u) / p.choices_per_row;
    //# endfor
    //# else
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
    //# endif
    //# if kind is defined or is_normed is defined
    // A lane ends with four columns of a row of y.
    //# set n_quads = n_sets * n_y // 4
    let quad = index % {{ n_quads }}u;
    let n = min(index / {{ n_quads }}u, {{ n_rows - 1 }}u);
    let column = workgroup_index(wg, n_wg) * {{ 4 * n_quads }}u + 4u * quad;
    let row = first_row + n;
    let is_there = index < {{ n_quads * n_rows }}u && column < p.n_out && row < p.n_rows;
    let at = (row * p.y_stride + column) / 4u;
    //# endif
    //# if is_normed is defined
    var before = vec4(0.0);
    var norm_weight = vec4(0.0);
    if (is_there) {
        before = residual[at];
        norm_weight = norm[column / 4u];
    }
    //# endif
    //# if is_unscaled
    //# for n in range(n_rows)
    //# set row = "x_row" ~ n
    //# include "row_factor.wgsl"
    //# endfor
    //# endif
    //# for o in range(n_y)
    let w_row{{ o }} = base + min(first + {{ o }}u, p.n_out - 1u);
    //# endfor
