// y[n][o] = sum over columns of x[n] * w[o] (+ bias[o]), or gated(that, the same with up[o]);
// weights and activations as floats in chunks of 8 columns.
//
// {{ n_split }} subgroups share the columns of {{ n_out }} rows of w and meet {{ n_rows }} rows of x; the order in which a result's parts
// are added is the same for every number of rows.

//# include "matvec_params.wgsl"
//# include "weight_floats.wgsl"

@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> routing: array<u32>;
//# if is_normed is defined
@group(0) @binding(5) var<storage, read_write> residual: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> norm: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> squares: array<f32>;
@group(0) @binding(8) var<storage, read_write> y: array<vec4<f32>>;
//# set after_y = 9
//# elif kind is defined
@group(0) @binding(5) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read> up_bias: array<f32>;
//# set after_y = 9
//# else
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
//# set after_y = 6
//# endif
//# set n_squares = n_chunks // 4
//# if is_unscaled
@group(0) @binding({{ after_y }}) var<storage, read> x_squares: array<f32>;
//# set first_of_codes = after_y + 1
//# else
//# set first_of_codes = after_y
//# endif

// In this order everywhere, which a built-in product of vectors does not promise.
fn add_products(a: vec4<f32>, b: vec4<f32>, sum: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

//# include "matvec_start.wgsl"
    //# for o in range(n_out)
    //# for n in range(n_rows)
    var sum{{ o * n_rows + n }} = 0.0;
    //# endfor
    //# endfor
    //# include "matvec_loop.wgsl"
        //# for u in range(n_ahead)
        //# for n in range(n_rows)
        {
            let at = x_row{{ n }} * {{ n_chunks }}u + c{{ u }};
            let low = x[2u * at]{{ " * factor%d"|format(n) if is_unscaled else "" }};
            let high = x[2u * at + 1u]{{ " * factor%d"|format(n) if is_unscaled else "" }};
            //# for o in range(n_out)
            sum{{ o * n_rows + n }} = add_products(w{{ u }}_{{ o }}.high, high, add_products(w{{ u }}_{{ o }}.low, low, sum{{ o * n_rows + n }}));
            //# endfor
        }
        //# endfor
        //# endfor
    }
    //# include "matvec_end.wgsl"
}
