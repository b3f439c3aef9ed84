// The lowest column of the largest value of each row, one workgroup per row.

struct Params {
    n_rows: u32,
    cols: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> found: array<u32>;

var<workgroup> values: array<f32, 256>;
var<workgroup> columns: array<u32, 256>;

//# include "grid.wgsl"

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
    var best = -3.4028235e38;
    var column = 0xffffffffu;
    for (var c = lane; c < p.cols; c += 256u) {
        let v = x[row * p.cols + c];
        if (v > best || column == 0xffffffffu) {
            best = v;
            column = c;
        }
    }
    values[lane] = best;
    columns[lane] = column;
    workgroupBarrier();
    for (var n = 128u; n > 0u; n = n / 2u) {
        if (lane < n) {
            let v = values[lane + n];
            let c = columns[lane + n];
            if (v > values[lane] || (v == values[lane] && c < columns[lane])) {
                values[lane] = v;
                columns[lane] = c;
            }
        }
        workgroupBarrier();
    }
    if (lane == 0u) {
        found[row] = min(columns[0], p.cols - 1u);
    }
}
