// The lowest column of the largest value of each row, one workgroup per row. A row with a NaN or positive infinity, or
// without a finite value, has none: 0xffffffff.

struct Params {
    n_rows: u32,
    cols: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> found: array<u32>;

var<workgroup> values: array<f32, 256>;
var<workgroup> columns: array<u32, 256>;
var<workgroup> is_bad: atomic<u32>;

//# include "grid.wgsl"

const NONE: u32 = 0xffffffffu;
const INFINITY_BITS: u32 = 0x7f800000u;

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
    if (lane == 0u) {
        atomicStore(&is_bad, 0u);
    }
    workgroupBarrier();
    var best = 0.0;
    var column = NONE;
    for (var c = lane; c < p.cols; c += 256u) {
        // By their bits: compilers may take for granted that a float is finite.
        let bits = x[row * p.cols + c];
        if ((bits & INFINITY_BITS) != INFINITY_BITS) {
            let v = bitcast<f32>(bits);
            if (column == NONE || v > best) {
                best = v;
                column = c;
            }
        } else if (bits != (INFINITY_BITS | 0x80000000u)) {
            atomicStore(&is_bad, 1u);
        }
    }
    values[lane] = best;
    columns[lane] = column;
    workgroupBarrier();
    for (var n = 128u; n > 0u; n = n / 2u) {
        if (lane < n) {
            let v = values[lane + n];
            let c = columns[lane + n];
            let is_first = c != NONE && columns[lane] == NONE;
            let is_lower = v == values[lane] && c < columns[lane];
            if (is_first || (c != NONE && (v > values[lane] || is_lower))) {
                values[lane] = v;
                columns[lane] = c;
            }
        }
        workgroupBarrier();
    }
    if (lane == 0u) {
        found[row] = select(columns[0], NONE, atomicLoad(&is_bad) != 0u);
    }
}
