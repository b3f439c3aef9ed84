// y[n][o] = sum over k of x[n][k] * w[o][k] for few rows and quantised weights, on the device's matrix units, sums in f32. With
// a second matrix `up`: such sums of both, joined as in gated.wgsl, in f32 and in f16 as the next product reads them.
//
// A workgroup has 16 rows and 16 columns of results. Each of its {{ n_split }} subgroups has every {{ n_split }}th run of 128 columns of x and
// w; a lane unpacks a chunk of two rows of w into the elements that it has of eight matrices, so that weights go through no
// memory. Elements of a lane lie as `fragments.wgsl` has them, which is how NVIDIA's devices hold them; the check of matrix
// units at start finds out whether this one does.

enable f16;
enable wgpu_cooperative_matrix;

struct Params {
    n_chunks: u32,
    n_groups: u32,
    n_rows: u32,
    y_stride: u32,
    y_start: u32,
    //# if kind is defined
    alpha: f32,
    limit: f32,
    //# endif
}
var<immediate> p: Params;

//# include "weight_codes.wgsl"

//# set lanes = n_split * 32
//# set n_joined = 2 if kind is defined else 1
//# set n_tiles = n_joined
//# set block_stride = 5
//# set block_size = 16 * block_stride

// The eight elements of a lane.
struct Eight {
    @align(16) low: vec4<f16>,
    high: vec4<f16>,
}

@group(0) @binding(3) var<storage, read> x: array<Eight>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;
//# if kind is defined
@group(0) @binding(5) var<storage, read_write> fragments: array<vec2<u32>>;
//# endif

// Of each subgroup: a matrix of results, or two, in fours.
var<workgroup> blocks: array<vec4<f32>, {{ n_split * n_joined * block_size }}>;

//# include "grid.wgsl"
//# if kind is defined
//# include "gate.wgsl"
//# include "half_bits.wgsl"
//# include "fragments.wgsl"
//# endif

// See registers.rs.
fn halves_of_word(word: u32) -> vec2<f16> { return vec2<f16>(); }
fn matrix_of_rows(a: vec2<f16>, b: vec2<f16>, c: vec2<f16>, d: vec2<f16>) -> coop_mat16x16<f16, A> { return coop_mat16x16<f16, A>(); }
fn matrix_of_weights(a: vec2<f16>, b: vec2<f16>, c: vec2<f16>, d: vec2<f16>) -> coop_mat16x16<f16, B> { return coop_mat16x16<f16, B>(); }

//# set are_nibbles = bits == 4 and not table
//# if are_nibbles
//# set zero = 8 if is_signed else 0
// Codes as weights.
fn weights(codes: vec2<f16>, scale: f16, offset: f16) -> vec2<f16> {
    return {{ "fma(codes, vec2(scale), vec2(-offset))" if has_offset else "codes * scale" }};
}

// The low nibbles of bytes 0 and 2, which are {{ zero }} more than they are.
fn two_low(nibbles: u32, scale: f16, offset: f16) -> vec2<f16> {
    // 1024 and the nibble.
    let v = halves_of_word((nibbles & 0x000f000fu) | 0x64006400u);
    return weights(v - {{ 1024 + zero }}.0h, scale, offset);
}

// The high ones.
fn two_high(nibbles: u32, scale: f16, offset: f16) -> vec2<f16> {
    // 1024 and sixteen times the nibble.
    let v = halves_of_word((nibbles & 0x00f000f0u) | 0x64006400u);
    return weights(fma(v, vec2(0.0625h), vec2(-{{ 64 + zero }}.0h)), scale, offset);
}
//# else
// Bytes 0 and 2 of codes that are 128 more than they are, as weights.
fn two(codes: u32, scale: f16, offset: f16) -> vec2<f16> {
    // 1024 and the byte.
    let v = halves_of_word((codes & 0x00ff00ffu) | 0x64006400u);
    return {{ "fma(v - 1152.0h, vec2(scale), vec2(-offset))" if has_offset else "(v - 1152.0h) * scale" }};
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
    prepare_weights(lane, {{ lanes }}u);
    let first_out = workgroup_index(wg, n_wg) * 16u;
    let first_row = wg.z * 16u;
    let w_row = first_out + sublane / 4u;
    let x_start = wg.z * p.n_chunks * 64u + sublane;
    //# for j in range(n_tiles)
    var sum{{ j }} = coop_mat16x16<f32, C>();
    //# endfor
    //# if are_nibbles
    // Of the next run.
    let first = min(subgroup * 4u, p.n_chunks - 4u) + sublane % 4u;
    //# for j in range(n_tiles)
    //# for r in range(2)
    //# set c = "%d_%d"|format(j, r)
    //# set w = ["w", "up"][j]
    var ahead{{ c }} = {{ w }}_codes[(w_row + {{ 8 * r }}u) * p.n_chunks + first];
    var scales_ahead{{ c }} = {{ w }}_scales_of(w_row + {{ 8 * r }}u, first, (w_row + {{ 8 * r }}u) * p.n_chunks + first);
    //# endfor
    //# endfor
    //# endif
    for (var at = subgroup * 4u; at < p.n_chunks; at += {{ 4 * n_split }}u) {
        //# for q in range(8)
        let x{{ q }} = x[x_start + (at * 2u + {{ q }}u) * 32u];
        //# endfor
        //# if are_nibbles
        let after = at + {{ 4 * n_split }}u;
        let next = select(first, after + sublane % 4u, after < p.n_chunks);
        //# endif
        //# for j in range(n_tiles)
        //# set w = ["w", "up"][j]
        //# for r in range(2)
        //# set c = "%d_%d"|format(j, r)
        //# if are_nibbles
        let scale{{ c }} = vec2<f16>(scales_ahead{{ c }}.xy{{ " * 16.0" if is_signed }});
        let offset{{ c }} = vec2<f16>(scales_ahead{{ c }}.zw);
        let codes{{ c }} = ahead{{ c }}{{ " ^ vec4(0x88888888u)" if is_signed }};
        ahead{{ c }} = {{ w }}_codes[(w_row + {{ 8 * r }}u) * p.n_chunks + next];
        scales_ahead{{ c }} = {{ w }}_scales_of(w_row + {{ 8 * r }}u, next, (w_row + {{ 8 * r }}u) * p.n_chunks + next);
        //# else
        let chunk{{ c }} = {{ w }}_chunk(w_row + {{ 8 * r }}u, at + sublane % 4u);
        let scale{{ c }} = vec2<f16>(chunk{{ c }}.scale);
        let offset{{ c }} = vec2<f16>(chunk{{ c }}.offset);
        let low{{ c }} = chunk{{ c }}.low ^ vec4(0x80808080u);
        let high{{ c }} = chunk{{ c }}.high ^ vec4(0x80808080u);
        //# endif
        //# endfor
        //# endfor
        //# for q in range(8)
        let a{{ q }} = matrix_of_rows(x{{ q }}.low.xy, x{{ q }}.low.zw, x{{ q }}.high.xy, x{{ q }}.high.zw);
        //# for j in range(n_tiles)
        //# set part = "low" if q < 4 else "high"
        //# set half = "x" if q < 4 else "y"
        //# for r in range(2)
        //# set c = "%d_%d"|format(j, r)
        //# set codes = "%s%s[%d]"|format("codes" if are_nibbles else part, c, q % 4)
        //# set two = "two_%s"|format(part) if are_nibbles else "two"
        let even{{ c }}_{{ q }} = {{ two }}({{ codes }}, scale{{ c }}.{{ half }}, offset{{ c }}.{{ half }});
        let odd{{ c }}_{{ q }} = {{ two }}({{ codes }} >> 8u, scale{{ c }}.{{ half }}, offset{{ c }}.{{ half }});
        //# endfor
        let b{{ q }}_{{ j }} = matrix_of_weights(even{{ j }}_0_{{ q }}, odd{{ j }}_0_{{ q }}, even{{ j }}_1_{{ q }}, odd{{ j }}_1_{{ q }});
        sum{{ j }} = coopMultiplyAdd(a{{ q }}, b{{ q }}_{{ j }}, sum{{ j }});
        //# endfor
        //# endfor
    }
    //# include "matmul_few_end.wgsl"
}
