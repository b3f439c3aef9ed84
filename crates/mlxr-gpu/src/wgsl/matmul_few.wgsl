// y[n][o] = sum over k of x[n][k] * w[o][k] for few rows, on the device's matrix units, w in f16, sums in f32. With a second
// matrix `up`: such sums of both, joined as in gated.wgsl, in f16.
//
// A workgroup has 16 rows and {{ 16 * n_tiles }} columns of results{{ ", half of them gate's and half up's" if kind is defined }}. Each of its {{ n_split }} subgroups has every {{ n_split }}th run
// of {{ k_tile }} columns of x and w, which go through workgroup memory of its own, so that none waits for another before the end.

enable f16;
enable wgpu_cooperative_matrix;

struct Params {
    cols: u32,
    n_rows: u32,
    y_stride: u32,
    y_start: u32,
    //# if kind is defined
    alpha: f32,
    limit: f32,
    //# endif
}
var<immediate> p: Params;

//# set lanes = n_split * subgroup
// A lane loads eight columns at a time, a subgroup so many rows of a run.
//# set per_row = k_tile // 8
//# set step = subgroup // per_row
//# set n_x = 16 // step
//# set n_w = 16 * n_tiles // step
// In fours: rows are apart by a little more than their length, so that they begin in different banks.
//# set stride = (k_tile + 8) // 4
//# set x_size = 16 * stride
//# set strip_size = x_size + 16 * n_tiles * stride
//# set n_joined = 2 if kind is defined else 1
//# set n_outs = 16 * n_tiles // n_joined
//# set block_stride = 5
//# set block_size = 16 * block_stride

// What a lane loads at a time.
struct Eight {
    @align(16) low: vec4<f16>,
    high: vec4<f16>,
}

// Nobody writes to weights here; see matmul.wgsl for why they might be written to.
@group(0) @binding(0) var<storage, read_write> w: array<Eight>;
//# if kind is defined
@group(0) @binding(3) var<storage, read_write> up: array<Eight>;
//# endif
@group(0) @binding(1) var<storage, read> x: array<{{ "Eight" if is_half else "vec4<f32>" }}>;
@group(0) @binding(2) var<storage, read_write> y: array<{{ "vec2<u32>" if kind is defined else "vec4<f32>" }}>;

// Of each subgroup: runs of rows of x, then of w.
var<workgroup> strips: array<vec4<f16>, {{ n_split * strip_size }}>;
// Of each subgroup: a matrix of results, or two, in fours.
var<workgroup> blocks: array<vec4<f32>, {{ n_split * n_joined * block_size }}>;

//# include "grid.wgsl"
//# if kind is defined
//# include "gate.wgsl"
//# include "half_bits.wgsl"
//# endif

//# if not is_half
fn halves(v: vec4<f32>) -> vec4<f16> {
    return vec4<f16>(clamp(v, vec4(-65504.0), vec4(65504.0)));
}
//# endif

@compute @workgroup_size({{ lanes }})
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) sublane: u32,
) {
    let first_out = workgroup_index(wg, n_wg) * {{ n_outs }}u;
    let first_row = wg.z * 16u;
    let n_eights = p.cols / 8u;
    let row = sublane / {{ per_row }}u;
    let col = sublane % {{ per_row }}u;
    //# for i in range(n_x)
    let x_from{{ i }} = min(first_row + row + {{ i * step }}u, p.n_rows - 1u) * n_eights + col;
    //# endfor
    //# for j in range(n_tiles)
    var sum{{ j }} = coop_mat16x16<f32, C>();
    //# endfor
    let x_strip = subgroup * {{ strip_size }}u;
    let w_strip = x_strip + {{ x_size }}u;
    let to = row * {{ stride }}u + 2u * col;
    let first_k = subgroup * {{ k_tile }}u;
    //# set k = "first_k"
    //# set start = "var "
    //# include "matmul_few_load.wgsl"
    for (var at = first_k; at < p.cols; at += {{ n_split * k_tile }}u) {
        // Nobody reads the run before this one any more.
        subgroupBarrier();
        //# for i in range(n_x)
        //# set place = "x_strip + to + %du"|format(i * step * stride)
        strips[{{ place }}] = {{ "x%d.low"|format(i) if is_half else "halves(x_low%d)"|format(i) }};
        strips[{{ place }} + 1u] = {{ "x%d.high"|format(i) if is_half else "halves(x_high%d)"|format(i) }};
        //# endfor
        //# for i in range(n_w)
        //# set place = "w_strip + to + %du"|format(i * step * stride)
        strips[{{ place }}] = w{{ i }}.low;
        strips[{{ place }} + 1u] = w{{ i }}.high;
        //# endfor
        let after = at + {{ n_split * k_tile }}u;
        let next = select(first_k, after, after < p.cols);
        //# set k = "next"
        //# set start = ""
        //# include "matmul_few_load.wgsl"
        subgroupBarrier();
        //# for k0 in range(0, k_tile, 16)
        let a{{ k0 }} = coopLoadT<coop_mat16x16<f16, A>>(&strips[x_strip + {{ k0 // 4 }}u], {{ stride }}u);
        //# for j in range(n_tiles)
        let b{{ k0 }}_{{ j }} = coopLoad<coop_mat16x16<f16, B>>(&strips[w_strip + {{ 16 * j * stride + k0 // 4 }}u], {{ stride }}u);
        //# endfor
        //# for j in range(n_tiles)
        sum{{ j }} = coopMultiplyAdd(a{{ k0 }}, b{{ k0 }}_{{ j }}, sum{{ j }});
        //# endfor
        //# endfor
    }
    //# include "matmul_few_end.wgsl"
}
