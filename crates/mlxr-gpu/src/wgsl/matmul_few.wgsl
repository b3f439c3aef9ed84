// y[n][o] = sum over k of x[n][k] * w[o][k] (+ bias[o]) for few rows of x, on the device's matrix units: the weight becomes
// f16 on its way from how it is stored through workgroup memory, x is in f16, sums in f32.
//
// A workgroup has {{ 16 * n_tiles }} rows of w and sixteen of x. Its {{ n_split }} subgroups share the columns: each loads {{ n_ahead }} times {{ k_tile }} columns of
// its rows together, and puts sixteen rows by {{ k_tile }} columns into workgroup memory at a time.

enable f16;
enable wgpu_cooperative_matrix;

//# include "matvec_params.wgsl"
//# if bits is defined
//# include "weight_codes.wgsl"
//# set first = 3
//# set chunk = 32
//# else
//# include "weight_floats.wgsl"
//# set first = 2
//# set chunk = 8
//# endif

// As half_tiles.wgsl makes it.
@group(0) @binding({{ first }}) var<storage, read> x: array<vec4<f16>>;
@group(0) @binding({{ first + 1 }}) var<storage, read> bias: array<f32>;
@group(0) @binding({{ first + 2 }}) var<storage, read_write> y: array<f32>;

//# set lanes = subgroup * n_split
// Chunks of a row in a tile; rows that a subgroup loads at a time, and how often it does for a tile.
//# set per_row = k_tile // chunk
//# set row_step = subgroup // per_row
//# set n_loads = 16 // row_step
// Rows are apart by a little more than their length, so that they begin in different banks; in fours.
//# set stride = (k_tile + 8) // 4
// For each subgroup: sixteen rows of the weight, and their sums.
var<workgroup> w_tile: array<vec4<f16>, {{ n_split * 16 * stride }}>;
var<workgroup> partial: array<f32, {{ n_split * 256 }}>;

//# include "grid.wgsl"

//# if bits is defined
// Signed bytes: what is 128 more than one gives the low bits of an f16 from 1024 on, which is cheaper than a conversion.
fn halves(codes: u32, scale: f32, offset: f32) -> vec4<f16> {
    let even = unpack2x16float((codes & 0x00ff00ffu) ^ 0x64806480u);
    let odd = unpack2x16float(((codes >> 8u) & 0x00ff00ffu) ^ 0x64806480u);
    return fma(vec4(f16(scale)), vec4<f16>(vec4(even.x, odd.x, even.y, odd.y)) - vec4(1152.0h), vec4(f16(-offset)));
}
//# endif

// Where the columns do not divide evenly, some subgroups end with columns that others have already had.
fn counted(w: vec4<f16>, k: u32) -> vec4<f16> {
    //# if is_ragged
    return select(vec4<f16>(), w, k < p.n_chunks * {{ chunk }}u);
    //# else
    return w;
    //# endif
}

@compute @workgroup_size({{ lanes }})
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) sublane: u32,
) {
    prepare_weights(index, {{ lanes }}u);
    let first_out = workgroup_index(wg, n_wg) * {{ 16 * n_tiles }}u;
    let row = sublane / {{ per_row }}u;
    let col = sublane % {{ per_row }}u;
    //# for i in range(n_tiles * n_loads)
    let w_row{{ i }} = min(first_out + row + {{ i * row_step }}u, p.n_out - 1u);
    //# endfor
    let n_cols = p.n_chunks * {{ chunk }}u;
    let first_x = wg.z * n_cols * 4u;
    let own = subgroup * {{ 16 * stride }}u;
    let to = own + row * {{ stride }}u + col * {{ chunk // 4 }}u;
    //# for j in range(n_tiles)
    var sum{{ j }} = coop_mat16x16<f32, C>();
    //# endfor
    for (var base = 0u; base < n_cols; base += {{ n_ahead * n_split * k_tile }}u) {
        //# for u in range(n_ahead)
        let k{{ u }} = base + ({{ u * n_split }}u + subgroup) * {{ k_tile }}u;
        let from{{ u }} = min(k{{ u }}, n_cols - {{ k_tile }}u);
        //# for i in range(n_tiles * n_loads)
        let w{{ u }}_{{ i }} = load_chunk(w_row{{ i }}, from{{ u }} / {{ chunk }}u + col);
        //# endfor
        //# endfor
        //# for u in range(n_ahead)
        //# for step in range(0, k_tile, 16)
        let x{{ u }}_{{ step }} = coopLoadT<coop_mat16x16<f16, A>>(&x[first_x + (from{{ u }} + {{ step }}u) * 4u], 4u);
        //# endfor
        //# for j in range(n_tiles)
        //# for i in range(n_loads)
        //# set w = "w%d_%d"|format(u, j * n_loads + i)
        //# set at = i * row_step * stride
        //# if bits is defined
        //# for half, part, start in [["low", "x", 0], ["high", "y", 4]]
        //# for word in range(4)
        w_tile[to + {{ at + start + word }}u] = counted(halves({{ w }}.{{ half }}[{{ word }}], {{ w }}.scale.{{ part }}, {{ w }}.offset.{{ part }}), k{{ u }});
        //# endfor
        //# endfor
        //# else
        w_tile[to + {{ at }}u] = counted(vec4<f16>({{ w }}.low), k{{ u }});
        w_tile[to + {{ at + 1 }}u] = counted(vec4<f16>({{ w }}.high), k{{ u }});
        //# endif
        //# endfor
        workgroupBarrier();
        //# for step in range(0, k_tile, 16)
        let t{{ u }}_{{ j }}_{{ step }} = coopLoad<coop_mat16x16<f16, B>>(&w_tile[own + {{ step // 4 }}u], {{ stride }}u);
        sum{{ j }} = coopMultiplyAdd(x{{ u }}_{{ step }}, t{{ u }}_{{ j }}_{{ step }}, sum{{ j }});
        //# endfor
        workgroupBarrier();
        //# endfor
        //# endfor
    }
    //# for j in range(n_tiles)
    coopStoreT(sum{{ j }}, &partial[subgroup * 256u], 16u);
    workgroupBarrier();
    for (var i = index; i < 256u; i += {{ lanes }}u) {
        let n = wg.z * 16u + i / 16u;
        let o = first_out + {{ 16 * j }}u + i % 16u;
        if (o < p.n_out && n < p.n_rows) {
            var total = 0.0;
            for (var s = 0u; s < {{ n_split }}u; s++) {
                total += partial[s * 256u + i];
            }
            if (p.has_bias != 0u) {
                total += bias[p.first_out + o];
            }
            y[n * p.y_stride + p.y_start + o] = total;
        }
    }
    workgroupBarrier();
    //# endfor
}
