// The sum of exp(value - the largest value) over each row, one workgroup per row.

struct Params {
    n_rows: u32,
    cols: u32,
    // Where the sums begin.
    first: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> sums: array<f32>;

//# include "grid.wgsl"
//# include "lanes.wgsl"
//# include "workgroup_max.wgsl"
//# include "workgroup_sum.wgsl"

@compute @workgroup_size({{ lanes }})
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let subgroup = lane / {{ subgroup }}u;
    let sublane = lane % {{ subgroup }}u;
    let row = workgroup_index(wg, n_wg);
    if (row >= p.n_rows) {
        return;
    }
    let start = row * p.cols;
    let end = start + p.cols;
    // The lowest number there is.
    var largest = -0x1.fffffep+127f;
    for (var c = start + lane; c < end; c += {{ lanes }}u) {
        largest = max(largest, x[c]);
    }
    largest = workgroup_max(largest, subgroup, sublane);
    var sum = 0.0;
    for (var c = start + lane; c < end; c += {{ lanes }}u) {
        let below = x[c] - largest;
        // What is so far below adds nothing, and nobody says what exp makes of an infinity.
        if (below > -80.0) {
            sum += exp(below);
        }
    }
    let total = workgroup_sum(sum, subgroup, sublane);
    if (lane == 0u) {
        sums[p.first + row] = total;
    }
}
