// y[n][o] = sum over k of x[n][k] * w[o][k] on the device's matrix units, x and w in f16, sums in f32. With a second matrix
// `up`: such sums of both, joined as in gated.wgsl, in f16; for matrices of 16 and subgroups of 32 alone.
//
// A workgroup computes a tile of {{ tile_rows }} by {{ tile_outs }} results, a subgroup {{ tile_rows // n_down }} by {{ tile_outs // n_across }} of them; {{ k_tile }} columns at a
// time go through workgroup memory, and the next ones are loaded meanwhile. Everything is in whole tiles.

enable f16;
enable wgpu_cooperative_matrix;

struct Params {
    cols: u32,
    y_stride: u32,
    y_start: u32,
    //# if kind is defined
    alpha: f32,
    limit: f32,
    //# endif
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
//# if kind is defined
@group(0) @binding(2) var<storage, read_write> up: array<Eight>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<u32>>;
//# else
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
//# endif

var<workgroup> x_tile: array<{{ item }}, {{ tile_rows * stride }}>;
var<workgroup> w_tile: array<{{ item }}, {{ tile_outs * stride }}>;
//# if kind is defined
// A matrix of results of each subgroup, as fours.
//# set block_stride = 6
var<workgroup> block: array<vec4<f32>, {{ n_down * n_across * 16 * block_stride }}>;

//# include "gate.wgsl"

fn gated_each(g: vec4<f32>, u: vec4<f32>) -> vec4<f32> {
    return clamp(vec4(gated(g.x, u.x), gated(g.y, u.y), gated(g.z, u.z), gated(g.w, u.w)), vec4(-65504.0), vec4(65504.0));
}
//# endif

@compute @workgroup_size({{ lanes }})
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    //# if kind is defined
    @builtin(subgroup_invocation_id) sublane: u32,
    //# endif
) {
    let y_stride = p.y_stride;
    // Tiles go by bands of eight across, row after row, so that those computed together share what they read.
    let place = wg.y * n_wg.x + wg.x;
    let band = place / (8u * n_wg.y);
    let width = min(8u, n_wg.x - 8u * band);
    let place_in_band = place - 8u * n_wg.y * band;
    let first_row = place_in_band / width * {{ tile_rows }}u;
    //# set out_step = tile_outs // 2 if kind is defined else tile_outs
    let first_out = (8u * band + place_in_band % width) * {{ out_step }}u;
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
    //# set r = i * row_step
    //# if kind is defined
    // Of a subgroup's rows of the tile the first half are the gate's, the others up's.
    //# set in_sub = r % sub_outs
    var w{{ i }} = {{ "w" if in_sub < sub_outs // 2 else "up" }}[w_from + {{ r // sub_outs * (sub_outs // 2) + in_sub % (sub_outs // 2) }}u * n_eights];
    //# else
    var w{{ i }} = w[w_from + {{ r }}u * n_eights];
    //# endif
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
        //# set r = i * row_step
        //# if kind is defined
        //# set in_sub = r % sub_outs
        w{{ i }} = {{ "w" if in_sub < sub_outs // 2 else "up" }}[w_from + {{ r // sub_outs * (sub_outs // 2) + in_sub % (sub_outs // 2) }}u * n_eights + next];
        //# else
        w{{ i }} = w[w_from + {{ r }}u * n_eights + next];
        //# endif
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
    //# if kind is defined
    // A matrix's row has two lanes, which exchange results as in attention_tiles.wgsl.
    let slice = 16u * {{ block_stride }}u * subgroup;
    let from_block = slice + sublane / 2u * {{ block_stride }}u + 2u * (sublane % 2u);
    let y_row = first_row + down + sublane / 2u;
    let y_col = (first_out + across / 2u) / 8u + sublane % 2u;
    //# for i in range(m)
    //# for j in range(n // 2)
    {
        subgroupBarrier();
        coopStoreT(sum{{ i }}_{{ j }}, &block[slice], {{ block_stride }}u);
        subgroupBarrier();
        let g0 = block[from_block];
        let g1 = block[from_block + 1u];
        subgroupBarrier();
        coopStoreT(sum{{ i }}_{{ j + n // 2 }}, &block[slice], {{ block_stride }}u);
        subgroupBarrier();
        let a = gated_each(g0, block[from_block]);
        let b = gated_each(g1, block[from_block + 1u]);
        let packed = vec4(pack2x16float(a.xy), pack2x16float(a.zw), pack2x16float(b.xy), pack2x16float(b.zw));
        y[(y_row + {{ i * size }}u) * (y_stride / 8u) + y_col + {{ j * size // 8 }}u] = packed;
    }
    //# endfor
    //# endfor
    //# else
    //# for i in range(m)
    //# for j in range(n)
    let at{{ i }}_{{ j }} = (first_row + down + {{ i * size }}u) * y_stride + p.y_start + first_out + across + {{ j * size }}u;
    coopStoreT(sum{{ i }}_{{ j }}, &y[at{{ i }}_{{ j }}], y_stride);
    //# endfor
    //# endfor
    //# endif
}
