// The token that each row's largest values lead to by its guess, one workgroup per row: see ahead.rs of mlxr-tensor.

struct Params {
    n_rows: u32,
    // Values of a row in `found`, at most 256.
    n: u32,
    // Where in `found` the sums of exponentials begin; 0 where there are none.
    first_sum: u32,
}
var<immediate> p: Params;

// Pairs of column and bits as `largest.wgsl` leaves them, and the sums.
@group(0) @binding(0) var<storage, read> found: array<u32>;
@group(0) @binding(1) var<storage, read> guesses: array<vec4<u32>>;
// By row the token, and behind them all whether it is sure.
@group(0) @binding(2) var<storage, read_write> tokens: array<u32>;

var<workgroup> keys: array<u32, 256>;
var<workgroup> columns: array<u32, 256>;
var<workgroup> values: array<f32, 256>;
var<workgroup> sums: array<f32, 256>;
var<workgroup> count: atomic<u32>;

//# include "grid.wgsl"
//# include "float_key.wgsl"
//# include "guess_rows.wgsl"

const NONE: u32 = 0xffffffffu;
const TOP_K: u32 = 1u;
const TOP_P: u32 = 2u;
const MIN_P: u32 = 3u;
const TEMPERATURE: u32 = 4u;
// Its exponential is nothing.
const NONE_VALUE: f32 = -1e30;

// Sets `sums` to the sums of all values up to each lane's.
fn cumulate(lane: u32, value: f32) {
    sums[lane] = value;
    workgroupBarrier();
    for (var step = 1u; step < 256u; step = step * 2u) {
        var before = 0.0;
        if (lane >= step) {
            before = sums[lane - step];
        }
        workgroupBarrier();
        sums[lane] += before;
        workgroupBarrier();
    }
}

// How many lanes say so.
fn count_of(lane: u32, is_counted: bool) -> u32 {
    if (lane == 0u) {
        atomicStore(&count, 0u);
    }
    workgroupBarrier();
    if (is_counted) {
        atomicAdd(&count, 1u);
    }
    workgroupBarrier();
    let n = atomicLoad(&count);
    workgroupBarrier();
    return n;
}

// The value of a column after what happens to it.
fn changed(row: u32, column: u32, value: f32) -> f32 {
    let changes = guesses[GUESS * row + 2u].xy;
    for (var i = 0u; i < changes.y; i += 1u) {
        let change = guesses[changes.x + i];
        if (change.x == column) {
            if (change.y == NEGATIVE_INFINITY) {
                return NONE_VALUE;
            }
            let by = bitcast<vec4<f32>>(change);
            let biased = value + by.y;
            return select(biased / by.z, biased * by.z, biased <= 0.0) - by.w;
        }
    }
    return value;
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = workgroup_index(wg, n_wg);
    if (row >= p.n_rows) {
        return;
    }
    let first = 2u * row * p.n;
    let how = guesses[GUESS * row];
    let stage_values = guesses[GUESS * row + 1u];
    if ((how.y & IS_WHOLE) != 0u) {
        return;
    }
    var column = NONE;
    var bits = NEGATIVE_INFINITY;
    if (lane < p.n && found[first] != NONE) {
        column = found[first + 2u * lane];
        bits = found[first + 2u * lane + 1u];
    }
    var value = NONE_VALUE;
    if (is_finite(bits)) {
        value = changed(row, column, bitcast<f32>(bits));
    }
    let is_there = value > NONE_VALUE;
    let key = select(0u, float_key(bitcast<u32>(value)), is_there);
    keys[lane] = key;
    columns[lane] = column;
    var left = count_of(lane, is_there);
    if (left == 0u) {
        if (lane == 0u) {
            tokens[row] = NONE;
            tokens[p.n_rows + row] = 0u;
        }
        return;
    }
    var rank = 0u;
    for (var i = 0u; i < p.n; i += 1u) {
        rank += u32(keys[i] > key || (keys[i] == key && columns[i] < column));
    }
    workgroupBarrier();
    if (is_there) {
        columns[rank] = column;
        values[rank] = value;
    }
    workgroupBarrier();
    for (var i = 0u; i < 4u; i += 1u) {
        let kind = (how.x >> (8u * i)) & 255u;
        let best = values[0];
        let is_left = lane < left;
        value = NONE_VALUE;
        if (is_left) {
            value = values[lane];
        }
        if (kind == TOP_K) {
            left = clamp(stage_values[i], 1u, left);
        } else if (kind == TOP_P) {
            cumulate(lane, exp(value - best));
            var total = sums[left - 1u];
            if (i == 0u && p.first_sum != 0u) {
                total = bitcast<f32>(found[p.first_sum + row]);
            }
            let is_before = is_left && sums[lane] < bitcast<f32>(stage_values[i]) * total;
            left = min(left, 1u + count_of(lane, is_before));
        } else if (kind == MIN_P) {
            let is_kept = is_left && value >= best + log(bitcast<f32>(stage_values[i]));
            left = max(1u, count_of(lane, is_kept));
        } else if (kind == TEMPERATURE) {
            workgroupBarrier();
            values[lane] = value / bitcast<f32>(stage_values[i]);
            workgroupBarrier();
        }
    }
    let best = values[0];
    let is_left = lane < left;
    column = NONE;
    value = NONE_VALUE;
    if (is_left) {
        column = columns[lane];
        value = values[lane];
    }
    workgroupBarrier();
    if ((how.y & IS_BY_ID) != 0u) {
        // In the order of columns.
        var at = 0u;
        for (var i = 0u; i < left; i += 1u) {
            at += u32(columns[i] < column);
        }
        workgroupBarrier();
        if (is_left) {
            columns[at] = column;
            values[at] = value;
        }
        workgroupBarrier();
        if (is_left) {
            value = values[lane];
        }
    }
    cumulate(lane, exp(value - best));
    let target_sum = bitcast<f32>(how.z) * sums[left - 1u];
    let n_before = count_of(lane, is_left && sums[lane] <= target_sum);
    if (lane == 0u) {
        tokens[row] = columns[min(n_before, left - 1u)];
        tokens[p.n_rows + row] = 0u;
    }
}
