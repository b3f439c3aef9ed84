// The first column of each row by rank, one workgroup per row. A row with a NaN or positive infinity, or
// without a finite value, has none: 0xffffffff.

struct Params {
    n_rows: u32,
    cols: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> found: array<u32>;

var<workgroup> keys: array<u32, 256>;
var<workgroup> columns: array<u32, 256>;
var<workgroup> is_bad: atomic<u32>;

//# include "grid.wgsl"

//# include "float_key.wgsl"

const NONE: u32 = 0xffffffffu;

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
    // No finite value has this key.
    var best = 0u;
    var column = NONE;
    for (var c = lane; c < p.cols; c += 256u) {
        let bits = x[row * p.cols + c];
        if (is_finite(bits)) {
            let key = float_key(bits);
            if (key > best) {
                best = key;
                column = c;
            }
        } else if (bits != NEGATIVE_INFINITY) {
            atomicStore(&is_bad, 1u);
        }
    }
    keys[lane] = best;
    columns[lane] = column;
    workgroupBarrier();
    for (var n = 128u; n > 0u; n = n / 2u) {
        if (lane < n) {
            let key = keys[lane + n];
            let c = columns[lane + n];
            if (key > keys[lane] || (key == keys[lane] && c < columns[lane])) {
                keys[lane] = key;
                columns[lane] = c;
            }
        }
        workgroupBarrier();
    }
    if (lane == 0u) {
        found[row] = select(columns[0], NONE, atomicLoad(&is_bad) != 0u);
    }
}
