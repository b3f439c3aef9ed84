// The first column of each row by rank, one workgroup per row. A row with a NaN or positive infinity, or
// without a finite value, has none: 0xffffffff.

struct Params {
    n_rows: u32,
    cols: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> found: array<u32>;

var<workgroup> keys: array<u32, {{ lanes }}>;
var<workgroup> columns: array<u32, {{ lanes }}>;
var<workgroup> is_bad: atomic<u32>;

//# include "grid.wgsl"

//# include "float_key.wgsl"

const NONE: u32 = 0xffffffffu;

@compute @workgroup_size({{ lanes }})
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
    for (var first = lane; first < p.cols; first += {{ 4 * lanes }}u) {
        // Loads in flight at a time; past the end comes the last column again.
        //# for i in range(4)
        let c{{ i }} = min(first + {{ i * lanes }}u, p.cols - 1u);
        let bits{{ i }} = x[row * p.cols + c{{ i }}];
        //# endfor
        //# for i in range(4)
        if (is_finite(bits{{ i }})) {
            let key{{ i }} = float_key(bits{{ i }});
            if (key{{ i }} > best) {
                best = key{{ i }};
                column = c{{ i }};
            }
        } else if (bits{{ i }} != NEGATIVE_INFINITY) {
            atomicStore(&is_bad, 1u);
        }
        //# endfor
    }
    keys[lane] = best;
    columns[lane] = column;
    workgroupBarrier();
    for (var n = {{ lanes // 2 }}u; n > 0u; n = n / 2u) {
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
