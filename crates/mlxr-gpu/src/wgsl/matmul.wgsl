// y[n][o] = sum over k of x[n][k] * w[o][k] on the device's matrix units, x and w in f16, sums in f32.
//
// A workgroup computes a tile of {{ tile }} by {{ tile }} results, a subgroup {{ tile // 2 }} by {{ tile // 4 }} of them; {{ k_tile }} columns at a time go
// through workgroup memory, and the next ones are loaded meanwhile. Everything is in whole tiles.

enable f16;
enable wgpu_cooperative_matrix;

struct Params {
    cols: u32,
    y_stride: u32,
    y_start: u32,
}
var<immediate> p: Params;

//# set item = "vec4<f16>" if has_vectors else "f16"
//# set width = 4 if has_vectors else 1
// Rows are apart by a little more than their length, so that they begin in different banks.
//# set stride = (k_tile + 8) // width
//# set lanes = 8 * subgroup
//# set per_row = k_tile // 8
//# set n_loads = tile * per_row // lanes
//# set n_down = tile // 2 // size
//# set n_across = tile // 4 // size
//# set matrix = "coop_mat%dx%d"|format(size, size)

@group(0) @binding(0) var<storage, read> x: array<vec4<f16>>;
@group(0) @binding(1) var<storage, read> w: array<vec4<f16>>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

var<workgroup> x_tile: array<{{ item }}, {{ tile * stride }}>;
var<workgroup> w_tile: array<{{ item }}, {{ tile * stride }}>;

@compute @workgroup_size({{ lanes }})
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let y_stride = p.y_stride;
    let first_row = wg.y * {{ tile }}u;
    let first_out = wg.x * {{ tile }}u;
    let down = subgroup / 4u * {{ tile // 2 }}u;
    let across = subgroup % 4u * {{ tile // 4 }}u;
    //# for i in range(n_down)
    //# for j in range(n_across)
    var sum{{ i }}_{{ j }} = {{ matrix }}<f32, C>();
    //# endfor
    //# endfor
    //# for i in range(n_loads)
    let row{{ i }} = (lane + {{ i * lanes }}u) / {{ per_row }}u;
    let col{{ i }} = (lane + {{ i * lanes }}u) % {{ per_row }}u;
    let x_from{{ i }} = (first_row + row{{ i }}) * (p.cols / 4u) + 2u * col{{ i }};
    let w_from{{ i }} = (first_out + row{{ i }}) * (p.cols / 4u) + 2u * col{{ i }};
    let to{{ i }} = row{{ i }} * {{ stride }}u + col{{ i }} * {{ 8 // width }}u;
    var x_low{{ i }} = x[x_from{{ i }}];
    var x_high{{ i }} = x[x_from{{ i }} + 1u];
    var w_low{{ i }} = w[w_from{{ i }}];
    var w_high{{ i }} = w[w_from{{ i }} + 1u];
    //# endfor
    for (var k = 0u; k < p.cols; k += {{ k_tile }}u) {
        //# for i in range(n_loads)
        //# if has_vectors
        x_tile[to{{ i }}] = x_low{{ i }};
        x_tile[to{{ i }} + 1u] = x_high{{ i }};
        w_tile[to{{ i }}] = w_low{{ i }};
        w_tile[to{{ i }} + 1u] = w_high{{ i }};
        //# else
        for (var e = 0u; e < 4u; e++) {
            x_tile[to{{ i }} + e] = x_low{{ i }}[e];
            x_tile[to{{ i }} + 4u + e] = x_high{{ i }}[e];
            w_tile[to{{ i }} + e] = w_low{{ i }}[e];
            w_tile[to{{ i }} + 4u + e] = w_high{{ i }}[e];
        }
        //# endif
        //# endfor
        workgroupBarrier();
        let next = min(k + {{ k_tile }}u, p.cols - {{ k_tile }}u) / 4u;
        //# for i in range(n_loads)
        x_low{{ i }} = x[x_from{{ i }} + next];
        x_high{{ i }} = x[x_from{{ i }} + next + 1u];
        w_low{{ i }} = w[w_from{{ i }} + next];
        w_high{{ i }} = w[w_from{{ i }} + next + 1u];
        //# endfor
        //# for step in range(0, k_tile, size)
        //# for i in range(n_down)
        let x{{ step }}_{{ i }} = coopLoadT<{{ matrix }}<f16, A>>(&x_tile[(down + {{ i * size }}u) * {{ stride }}u + {{ step // width }}u], {{ stride }}u);
        //# endfor
        //# for j in range(n_across)
        let w{{ step }}_{{ j }} = coopLoad<{{ matrix }}<f16, B>>(&w_tile[(across + {{ j * size }}u) * {{ stride }}u + {{ step // width }}u], {{ stride }}u);
        //# endfor
        //# for i in range(n_down)
        //# for j in range(n_across)
        sum{{ i }}_{{ j }} = coopMultiplyAdd(x{{ step }}_{{ i }}, w{{ step }}_{{ j }}, sum{{ i }}_{{ j }});
        //# endfor
        //# endfor
        //# endfor
        workgroupBarrier();
    }
    //# for i in range(n_down)
    //# for j in range(n_across)
    let at{{ i }}_{{ j }} = (first_row + down + {{ i * size }}u) * y_stride + p.y_start + first_out + across + {{ j * size }}u;
    coopStoreT(sum{{ i }}_{{ j }}, &y[at{{ i }}_{{ j }}], y_stride);
    //# endfor
    //# endfor
}
