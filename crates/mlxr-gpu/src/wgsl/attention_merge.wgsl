// Joins the splits of each row and head: one workgroup per row and head. A lane has four columns of every {{ lanes // (v_dim // 4) }}th split.

struct Params {
    first_row: u32,
    n_rows: u32,
    n_heads: u32,
    max_splits: u32,
    window: u32,
    sees_both: u32,
    has_sinks: u32,
    first_split: u32,
    // Rows that see fewer or more are not served.
    least_seen: u32,
    most_seen: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> rows: array<vec4<u32>>;
// See attention.wgsl.
@group(0) @binding(1) var<storage, read> parts: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> stats: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read> sinks: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;

//# set quads = v_dim // 4
//# set n_groups = lanes // quads
//# set n_subgroups = lanes // subgroup
// Splits of a group whose loads are in flight at a time.
//# set n_ahead = 4
var<workgroup> partial: array<f32, {{ n_subgroups }}>;
var<workgroup> sums: array<vec4<f32>, {{ lanes }}>;
var<workgroup> totals: array<f32, {{ n_groups }}>;

//# if is_quantising
//# set first_of_codes = 5
//# include "quantise.wgsl"
//# endif
//# include "grid.wgsl"
//# include "reach.wgsl"

@compute @workgroup_size({{ lanes }})
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) sublane: u32,
) {
    let place = workgroup_index(wg, n_wg);
    if (place >= p.n_rows * p.n_heads) {
        return;
    }
    let seen = reach(rows[p.first_row + place / p.n_heads]);
    let n_seen = seen.y + 1u - seen.x;
    if (n_seen < p.least_seen || n_seen > p.most_seen) {
        return;
    }
    let first = place * p.max_splits + seen.x / {{ split }}u - p.first_split;
    let last = place * p.max_splits + seen.y / {{ split }}u - p.first_split;
    let group = lane / {{ quads }}u;
    let quad = lane % {{ quads }}u;
    var largest = -3.0e38;
    if (p.has_sinks != 0u) {
        largest = sinks[place % p.n_heads];
    }
    for (var s = first + lane; s <= last; s += {{ lanes }}u) {
        largest = max(largest, stats[s].x);
    }
    largest = subgroupMax(largest);
    if (sublane == 0u) {
        partial[subgroup] = largest;
    }
    workgroupBarrier();
    for (var i = 0u; i < {{ n_subgroups }}u; i++) {
        largest = max(largest, partial[i]);
    }
    var sum = vec4(0.0);
    var total = 0.0;
    if (group < {{ n_groups }}u) {
        for (var s = first + group; s <= last; s += {{ n_ahead * n_groups }}u) {
            //# for i in range(n_ahead)
            let s{{ i }} = min(s + {{ i * n_groups }}u, last);
            let stat{{ i }} = stats[s{{ i }}];
            let part{{ i }} = parts[s{{ i }} * {{ quads }}u + quad];
            //# endfor
            //# for i in range(n_ahead)
            let factor{{ i }} = select(0.0, exp(stat{{ i }}.x - largest), s + {{ i * n_groups }}u <= last);
            total = fma(factor{{ i }}, stat{{ i }}.y, total);
            sum = fma(vec4(factor{{ i }}), part{{ i }}, sum);
            //# endfor
        }
        if (quad == 0u) {
            totals[group] = total;
        }
    }
    sums[lane] = sum;
    workgroupBarrier();
    total = 0.0;
    if (p.has_sinks != 0u) {
        total = exp(sinks[place % p.n_heads] - largest);
    }
    sum = vec4(0.0);
    for (var g = 0u; g < {{ n_groups }}u; g++) {
        total += totals[g];
        sum += sums[g * {{ quads }}u + quad];
    }
    let v = sum / total;
    let at = (p.first_row * p.n_heads + place) * {{ quads }}u + quad;
    //# if is_quantising
    quantise(at, v, group == 0u);
    //# endif
    if (group == 0u) {
        y[at] = v;
    }
}
