// y[n][o] = sum over k of x[n][k] * w[o][k] on the device's matrix units, x and w in f16, sums in f32.
//
// A workgroup computes a tile of {{ tile_rows }} by {{ tile_outs }} results, a subgroup {{ tile_rows // n_down }} by {{ tile_outs // n_across }} of them; {{ k_tile }} columns at a
// time go through workgroup memory, and the next ones are loaded meanwhile. Everything is in whole tiles.

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
//# set lanes = n_down * n_across * subgroup
//# set per_row = k_tile // 8
//# set n_x = tile_rows * per_row // lanes
//# set n_w = tile_outs * per_row // lanes
// Results of a subgroup, and the matrices they are.
//# set sub_rows = tile_rows // n_down
//# set sub_outs = tile_outs // n_across
//# set m = sub_rows // size
//# set n = sub_outs // size
//# set matrix = "coop_mat%dx%d"|format(size, size)

// What a lane loads at a time.
struct Eight {
    @align(16) low: vec4<f16>,
    high: vec4<f16>,
}

// Nobody writes to x and w here. But loads of what nobody may write are moved behind the matrices' products, where they are
// waited for; those of what might be written stay before the barrier.
@group(0) @binding(0) var<storage, read_write> x: array<Eight>;
@group(0) @binding(1) var<storage, read_write> w: array<Eight>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

var<workgroup> x_tile: array<{{ item }}, {{ tile_rows * stride }}>;
var<workgroup> w_tile: array<{{ item }}, {{ tile_outs * stride }}>;

@compute @workgroup_size({{ lanes }})
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let y_stride = p.y_stride;
    // Tiles go by bands of eight across, row after row, so that those computed together share what they read.
    let place = wg.y * n_wg.x + wg.x;
    let band = place / (8u * n_wg.y);
    let width = min(8u, n_wg.x - 8u * band);
    let place_in_band = place - 8u * n_wg.y * band;
    let first_row = place_in_band / width * {{ tile_rows }}u;
    let first_out = (8u * band + place_in_band % width) * {{ tile_outs }}u;
    let down = subgroup / {{ n_across }}u * {{ sub_rows }}u;
    let across = subgroup % {{ n_across }}u * {{ sub_outs }}u;
    //# for i in range(m)
    //# for j in range(n)
    var sum{{ i }}_{{ j }} = {{ matrix }}<f32, C>();
    //# endfor
    //# endfor
    let row = lane / {{ per_row }}u;
    let col = lane % {{ per_row }}u;
    let n_eights = p.cols / 8u;
    let x_from = (first_row + row) * n_eights + col;
    let w_from = (first_out + row) * n_eights + col;
    let to = row * {{ stride }}u + col * {{ 8 // width }}u;
    //# set row_step = lanes // per_row
    //# for i in range(n_x)
    var x{{ i }} = x[x_from + {{ i * row_step }}u * n_eights];
    //# endfor
    //# for i in range(n_w)
    var w{{ i }} = w[w_from + {{ i * row_step }}u * n_eights];
    //# endfor
    for (var k = 0u; k < p.cols; k += {{ k_tile }}u) {
        //# for name, count in [["x", n_x], ["w", n_w]]
        //# for i in range(count)
        //# set at = "to + %du"|format(i * row_step * stride)
        //# if has_vectors
        {{ name }}_tile[{{ at }}] = {{ name }}{{ i }}.low;
        {{ name }}_tile[{{ at }} + 1u] = {{ name }}{{ i }}.high;
        //# else
        for (var e = 0u; e < 4u; e++) {
            {{ name }}_tile[{{ at }} + e] = {{ name }}{{ i }}.low[e];
            {{ name }}_tile[{{ at }} + 4u + e] = {{ name }}{{ i }}.high[e];
        }
        //# endif
        //# endfor
        //# endfor
        let next = min(k + {{ k_tile }}u, p.cols - {{ k_tile }}u) / 8u;
        //# for i in range(n_x)
        x{{ i }} = x[x_from + {{ i * row_step }}u * n_eights + next];
        //# endfor
        //# for i in range(n_w)
        w{{ i }} = w[w_from + {{ i * row_step }}u * n_eights + next];
        //# endfor
        workgroupBarrier();
        //# for step in range(0, k_tile, size)
        //# for i in range(m)
        let x{{ step }}_{{ i }} = coopLoadT<{{ matrix }}<f16, A>>(&x_tile[(down + {{ i * size }}u) * {{ stride }}u + {{ step // width }}u], {{ stride }}u);
        //# endfor
        //# for j in range(n)
        let w{{ step }}_{{ j }} = coopLoad<{{ matrix }}<f16, B>>(&w_tile[(across + {{ j * size }}u) * {{ stride }}u + {{ step // width }}u], {{ stride }}u);
        //# endfor
        //# for i in range(m)
        //# for j in range(n)
        sum{{ i }}_{{ j }} = coopMultiplyAdd(x{{ step }}_{{ i }}, w{{ step }}_{{ j }}, sum{{ i }}_{{ j }});
        //# endfor
        //# endfor
        //# endfor
        workgroupBarrier();
    }
    //# for i in range(m)
    //# for j in range(n)
    let at{{ i }}_{{ j }} = (first_row + down + {{ i * size }}u) * y_stride + p.y_start + first_out + across + {{ j * size }}u;
    coopStoreT(sum{{ i }}_{{ j }}, &y[at{{ i }}_{{ j }}], y_stride);
    //# endfor
    //# endfor
}
