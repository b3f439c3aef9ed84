// Draws a column from all values of each row whose guess says so, one workgroup per row: subgroups share the columns, find
// the one in whose run the draw falls, and that one walks it. Says whether the draw is sure: see ahead.rs of mlxr-tensor.

struct Params {
    n_rows: u32,
    cols: u32,
    tolerance: f32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> guesses: array<vec4<u32>>;
// By row the token, and behind them all whether it is sure.
@group(0) @binding(2) var<storage, read_write> tokens: array<u32>;

// Of each subgroup's run.
var<workgroup> sums: array<f32, {{ lanes // subgroup }}>;
var<workgroup> left_out: array<u32, 8>;

//# include "grid.wgsl"
//# include "lanes.wgsl"
//# include "guess_rows.wgsl"
//# include "workgroup_max.wgsl"

const NONE: u32 = 0xffffffffu;
const LOWEST: f32 = -0x1.fffffep+127f;
const TEMPERATURE: u32 = 4u;

// A value, lowest where it does not count. Infinities compare as they should, whatever is computed with them.
fn value_at(start: u32, column: u32, end: u32, n_left_out: u32) -> f32 {
    if (column >= end) {
        return LOWEST;
    }
    for (var i = 0u; i < n_left_out; i += 1u) {
        if (left_out[i] == column) {
            return LOWEST;
        }
    }
    return max(x[start + column], LOWEST);
}

fn weight(value: f32, best: f32, temperature: f32) -> f32 {
    let below = (value - best) / temperature;
    if (below > -80.0) {
        return exp(below);
    }
    return 0.0;
}

// The sum of what a lane and those below it have.
fn lanes_upto(value: f32, sublane: u32) -> f32 {
    var sum = value;
    //# for delta in [1, 2, 4, 8, 16]
    //# if delta < subgroup
    {
        let below = subgroupShuffleUp(sum, {{ delta }}u);
        sum += select(0.0, below, sublane >= {{ delta }}u);
    }
    //# endif
    //# endfor
    return sum;
}

fn lanes_min(value: u32) -> u32 {
    var least = value;
    //# for mask in [16, 8, 4, 2, 1]
    //# if mask < subgroup
    least = min(least, subgroupShuffleXor(least, {{ mask }}u));
    //# endif
    //# endfor
    return least;
}

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
    let how = guesses[GUESS * row];
    if ((how.y & IS_WHOLE) == 0u) {
        return;
    }
    let changes = guesses[GUESS * row + 2u].xy;
    if (lane < changes.y) {
        left_out[lane] = guesses[changes.x + lane].x;
    }
    if (lane == 0u) {
        tokens[row] = NONE;
        tokens[p.n_rows + row] = 0u;
    }
    workgroupBarrier();
    var temperature = 1.0;
    if ((how.x & 255u) == TEMPERATURE) {
        temperature = bitcast<f32>(guesses[GUESS * row + 1u].x);
    }
    let start = row * p.cols;
    let run = ({{ lanes - 1 }}u + p.cols) / {{ lanes }}u * {{ subgroup }}u;
    let first = subgroup * run;
    let end = min(first + run, p.cols);
    var best = LOWEST;
    for (var c = first + sublane; c < first + run; c += {{ subgroup }}u) {
        best = max(best, value_at(start, c, end, changes.y));
    }
    best = workgroup_max(best, subgroup, sublane);
    if (best == LOWEST) {
        return;
    }
    var sum = 0.0;
    for (var c = first + sublane; c < first + run; c += {{ subgroup }}u) {
        sum += weight(value_at(start, c, end, changes.y), best, temperature);
    }
    sum = lanes_add(sum);
    if (sublane == 0u) {
        sums[subgroup] = sum;
    }
    workgroupBarrier();
    var total = 0.0;
    var before = 0.0;
    for (var i = 0u; i < {{ lanes // subgroup }}u; i += 1u) {
        if (i == subgroup) {
            before = total;
        }
        total += sums[i];
    }
    let at = bitcast<f32>(how.z) * total;
    // Runs meet without a gap; the last one takes what rounding leaves.
    let is_last = before + sum >= total;
    if (sum == 0.0 || at < before || (at >= before + sum && !is_last)) {
        return;
    }
    // The host rounds what it divides by the temperature, to parts of its size.
    let tolerance = (p.tolerance + 1.2e-7 * (abs(best) / temperature + 16.0)) * total;
    for (var c = first; c < end; c += {{ subgroup }}u) {
        let own = weight(value_at(start, c + sublane, end, changes.y), best, temperature);
        let upto = before + lanes_upto(own, sublane);
        // The first lane with a weight whose sum is above.
        let chosen = lanes_min(select(NONE, sublane, upto > at && own > 0.0));
        if (chosen != NONE) {
            if (sublane == chosen) {
                tokens[row] = c + sublane;
                let is_sure = at - (upto - own) > tolerance && upto - at > tolerance;
                tokens[p.n_rows + row] = u32(is_sure);
            }
            return;
        }
        before = before + lanes_add(own);
    }
}
