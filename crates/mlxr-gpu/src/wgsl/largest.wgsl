// The first `n` columns of each row by rank and the bits of their values, in no order, one workgroup per row. The key of
// the last of them is found digit by digit, eight bits at a time from the top, by counting.

struct Params {
    n_rows: u32,
    cols: u32,
    n: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> found: array<vec2<u32>>;

var<workgroup> counts: array<atomic<u32>, 256>;
// Finite values, and values that no distribution has.
var<workgroup> n_finite: atomic<u32>;
var<workgroup> n_bad: atomic<u32>;
var<workgroup> n_found: atomic<u32>;
// The digits of the last key so far, and how many columns with it are wanted.
var<workgroup> last: vec2<u32>;
var<workgroup> next_column: atomic<u32>;

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
    let start = row * p.cols;
    if (lane == 0u) {
        atomicStore(&n_finite, 0u);
        atomicStore(&n_bad, 0u);
        atomicStore(&n_found, 0u);
        last = vec2<u32>(0u, p.n);
    }
    var any_finite = false;
    var any_bad = false;
    for (var shift = 32u; shift > 0u;) {
        shift -= 8u;
        if (lane < 256u) {
            atomicStore(&counts[lane], 0u);
        }
        let digits = workgroupUniformLoad(&last).x;
        for (var first = lane; first < p.cols; first += {{ 4 * lanes }}u) {
            // Loads in flight at a time.
            //# for i in range(4)
            let c{{ i }} = first + {{ i * lanes }}u;
            let bits{{ i }} = x[start + min(c{{ i }}, p.cols - 1u)];
            //# endfor
            //# for i in range(4)
            if (c{{ i }} < p.cols) {
                let key = float_key(bits{{ i }});
                // A shift by all 32 bits is none.
                if (shift == 24u || (key >> (shift + 8u)) == digits) {
                    atomicAdd(&counts[(key >> shift) & 255u], 1u);
                }
                if (shift == 24u) {
                    if (is_finite(bits{{ i }})) {
                        any_finite = true;
                    } else if (bits{{ i }} != NEGATIVE_INFINITY) {
                        any_bad = true;
                    }
                }
            }
            //# endfor
        }
        if (any_finite) {
            atomicStore(&n_finite, 1u);
        }
        if (any_bad) {
            atomicStore(&n_bad, 1u);
        }
        workgroupBarrier();
        if (lane == 0u) {
            var wanted = last.y;
            var digit = 255u;
            for (; digit > 0u; digit -= 1u) {
                let count = atomicLoad(&counts[digit]);
                if (wanted <= count) {
                    break;
                }
                wanted -= count;
            }
            last = vec2<u32>((last.x << 8u) | digit, wanted);
        }
        // The counts are cleared again once they have been read.
        workgroupBarrier();
    }
    let end = workgroupUniformLoad(&last);
    let key = end.x;
    let n_equal = end.y;
    let first = row * p.n;
    for (var at = lane; at < p.cols; at += {{ 4 * lanes }}u) {
        //# for i in range(4)
        let c{{ i }} = at + {{ i * lanes }}u;
        let bits{{ i }} = x[start + min(c{{ i }}, p.cols - 1u)];
        //# endfor
        //# for i in range(4)
        if (c{{ i }} < p.cols && float_key(bits{{ i }}) > key) {
            found[first + atomicAdd(&n_found, 1u)] = vec2<u32>(c{{ i }}, bits{{ i }});
        }
        //# endfor
    }
    // Those with the last key, from the lowest column up; rarely more than one.
    var least = 0u;
    for (var i = 0u; i < n_equal; i += 1u) {
        if (lane == 0u) {
            atomicStore(&next_column, NONE);
        }
        workgroupBarrier();
        for (var c = lane; c < p.cols; c += {{ lanes }}u) {
            if (c >= least && float_key(x[start + c]) == key) {
                atomicMin(&next_column, c);
                break;
            }
        }
        workgroupBarrier();
        let column = atomicLoad(&next_column);
        if (lane == 0u) {
            found[first + p.n - n_equal + i] = vec2<u32>(column, x[start + column]);
        }
        least = column + 1u;
        workgroupBarrier();
    }
    // Instead of what stands there.
    storageBarrier();
    if (lane == 0u && (atomicLoad(&n_bad) != 0u || atomicLoad(&n_finite) == 0u)) {
        found[first] = vec2<u32>(NONE, 0u);
    }
}
