// The top_k experts of each row and their weights, one workgroup per row.

struct Params {
    n_rows: u32,
    n_experts: u32,
    top_k: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read_write> experts: array<u32>;
@group(0) @binding(2) var<storage, read_write> weights: array<f32>;

var<workgroup> values: array<f32, 64>;
var<workgroup> columns: array<u32, 64>;
var<workgroup> sums: array<f32, 64>;

//# include "grid.wgsl"

// Whether this lane's candidate of the row was chosen in an earlier round.
fn is_taken(row: u32, n_chosen: u32, column: u32) -> bool {
    for (var j = 0u; j < n_chosen; j++) {
        if (experts[row * p.top_k + j] == column) {
            return true;
        }
    }
    return false;
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = workgroup_index(wg, n_wg);
    if (row >= p.n_rows) {
        return;
    }
    var largest = 0.0;
    for (var j = 0u; j < p.top_k; j++) {
        var best = -3.4028235e38;
        var column = 0xffffffffu;
        for (var c = lane; c < p.n_experts; c += 64u) {
            let v = logits[row * p.n_experts + c];
            if ((v > best || column == 0xffffffffu) && !is_taken(row, j, c)) {
                best = v;
                column = c;
            }
        }
        values[lane] = best;
        columns[lane] = column;
        workgroupBarrier();
        for (var n = 32u; n > 0u; n = n / 2u) {
            if (lane < n) {
                let v = values[lane + n];
                let c = columns[lane + n];
                // A lane without a candidate has a column no other has.
                let is_better = v > values[lane] || (v == values[lane] && c < columns[lane]);
                if (c != 0xffffffffu && (is_better || columns[lane] == 0xffffffffu)) {
                    values[lane] = v;
                    columns[lane] = c;
                }
            }
            workgroupBarrier();
        }
        if (j == 0u) {
            largest = values[0];
        }
        if (lane == 0u) {
            experts[row * p.top_k + j] = columns[0];
            weights[row * p.top_k + j] = exp(values[0] - largest);
        }
        storageBarrier();
        workgroupBarrier();
    }
    var total = 0.0;
    //# if softmax_over_all
    var sum = 0.0;
    for (var c = lane; c < p.n_experts; c += 64u) {
        sum += exp(logits[row * p.n_experts + c] - largest);
    }
    sums[lane] = sum;
    workgroupBarrier();
    for (var i = 0u; i < 64u; i++) {
        total += sums[i];
    }
    //# else
    for (var j = 0u; j < p.top_k; j++) {
        total += weights[row * p.top_k + j];
    }
    workgroupBarrier();
    //# endif
    for (var j = lane; j < p.top_k; j += 64u) {
        weights[row * p.top_k + j] = weights[row * p.top_k + j] / total;
    }
}
