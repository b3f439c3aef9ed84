// y[n][o] = sum over columns of x[n] * w[o] (+ bias[o]), or gated(that, the same with up[o]);
// weights in quantised chunks, activations in 8-bit chunks.
//
// {{ n_split }} subgroups share the columns of {{ n_out }} rows of w and meet {{ n_rows }} rows of x; the order in which a result's parts
// are added is the same for every number of rows.

//# include "matvec_params.wgsl"
//# include "weight_codes.wgsl"

@group(0) @binding(3) var<storage, read> x_codes: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> x_scales: array<vec2<f32>>;
@group(0) @binding(5) var<storage, read> bias: array<f32>;
@group(0) @binding(6) var<storage, read> routing: array<u32>;
//# if is_normed is defined
@group(0) @binding(7) var<storage, read_write> residual: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read> norm: array<vec4<f32>>;
@group(0) @binding(9) var<storage, read_write> squares: array<f32>;
@group(0) @binding(10) var<storage, read_write> y: array<vec4<f32>>;
//# set after_y = 11
//# elif kind is defined
@group(0) @binding(7) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(11) var<storage, read> up_bias: array<f32>;
//# set after_y = 12
//# else
@group(0) @binding(7) var<storage, read_write> y: array<f32>;
//# set after_y = 8
//# endif
//# set n_squares = n_chunks
//# if is_unscaled
@group(0) @binding({{ after_y }}) var<storage, read> x_squares: array<f32>;
//# set first_of_codes = after_y + 1
//# else
//# set first_of_codes = after_y
//# endif

fn dot4(start: i32, a: vec4<u32>, b: vec4<u32>) -> i32 {
    var sum = start + dot4I8Packed(a.x, b.x);
    sum += dot4I8Packed(a.y, b.y);
    sum += dot4I8Packed(a.z, b.z);
    return sum + dot4I8Packed(a.w, b.w);
}

// The low bits of 1.5 * 2^23 as a float count ones: a sum that starts with them, of a size below 2^22, is a float at once.
// Cheaper than a conversion where those go through a unit of their own.
const ZERO = 0x4b400000;

fn number(sum: i32) -> f32 {
    return bitcast<f32>(sum) - 12582912.0;
}

//# include "matvec_start.wgsl"
    //# for o in range(n_out)
    //# for n in range(n_rows)
    var sum{{ o * n_rows + n }} = 0.0;
    //# endfor
    //# endfor
    // Rows of whole groups of chunks are as far from each other as the kernel knows; there is room for all that it meets.
    //# set has_groups = n_rows > 2 and not is_routed and n_chunks % 32 == 0
    //# include "matvec_loop.wgsl"
        //# for u in range(n_ahead)
        //# if has_groups
        let place{{ u }} = first_row * {{ 2 * n_chunks }}u + (c{{ u }} >> 5u) * 64u + (c{{ u }} & 31u);
        //# endif
        //# for n in range(n_rows)
        {
            // See quantise.wgsl.
            //# if has_groups
            let place = place{{ u }} + {{ n * 2 * n_chunks }}u;
            //# else
            let at = x_row{{ n }} * {{ n_chunks }}u + c{{ u }};
            let place = (at >> 5u) * 64u + (at & 31u);
            //# endif
            let low = x_codes[place];
            let high = x_codes[place + 32u];
            let s = x_scales[place]{{ " * factor%d"|format(n) if is_unscaled else "" }};
            //# if has_halves and has_offset
            let halves = x_scales[place + 32u]{{ " * factor%d"|format(n) if is_unscaled else "" }};
            //# endif
            //# for o in range(n_out)
            //# set sum = "sum" ~ (o * n_rows + n)
            //# set w = "w" ~ u ~ "_" ~ o
            //# if has_halves
            {{ sum }} = fma({{ w }}.scale.x * s.x, number(dot4(ZERO, {{ w }}.low, low)), {{ sum }});
            {{ sum }} = fma({{ w }}.scale.y * s.x, number(dot4(ZERO, {{ w }}.high, high)), {{ sum }});
            //# if has_offset
            {{ sum }} = fma(-{{ w }}.offset.x, halves.x, {{ sum }});
            {{ sum }} = fma(-{{ w }}.offset.y, halves.y, {{ sum }});
            //# endif
            //# else
            {{ sum }} = fma({{ w }}.scale.x * s.x, number(dot4(dot4(ZERO, {{ w }}.low, low), {{ w }}.high, high)), {{ sum }});
            //# if has_offset
            {{ sum }} = fma(-{{ w }}.offset.x, s.y, {{ sum }});
            //# endif
            //# endif
            //# endfor
        }
        //# endfor
        //# endfor
    }
    //# include "matvec_end.wgsl"
}
