// y[n][o] = sum over columns of x[n] * w[o] (+ bias[o]), weights in quantised chunks, activations in 8-bit chunks.
//
// {{ n_split }} subgroups share the columns of {{ n_out }} rows of w and meet {{ n_rows }} rows of x; the order in which a result's parts
// are added is the same for every number of rows.

//# include "matvec_params.wgsl"
//# include "weight_codes.wgsl"

@group(0) @binding(3) var<storage, read> x_codes: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> x_scales: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> bias: array<f32>;
@group(0) @binding(6) var<storage, read> routing: array<u32>;
@group(0) @binding(7) var<storage, read_write> y: array<f32>;

fn dot4(a: vec4<u32>, b: vec4<u32>) -> i32 {
    return dot4I8Packed(a.x, b.x) + dot4I8Packed(a.y, b.y) + dot4I8Packed(a.z, b.z) + dot4I8Packed(a.w, b.w);
}

//# include "matvec_start.wgsl"
    //# for o in range(n_out)
    //# for n in range(n_rows)
    var sum{{ o }}_{{ n }} = 0.0;
    //# endfor
    //# endfor
    for (var c = lane; c < p.n_chunks; c += {{ lanes }}u) {
        //# for o in range(n_out)
        let w{{ o }} = load_chunk(w_row{{ o }}, c);
        //# endfor
        //# for n in range(n_rows)
        {
            let at = x_row{{ n }} * p.n_chunks + c;
            let low = x_codes[2u * at];
            let high = x_codes[2u * at + 1u];
            let s = x_scales[at];
            //# for o in range(n_out)
            //# if has_halves
            sum{{ o }}_{{ n }} = fma(w{{ o }}.scale.x * s.x, f32(dot4(w{{ o }}.low, low)), sum{{ o }}_{{ n }});
            sum{{ o }}_{{ n }} = fma(w{{ o }}.scale.y * s.x, f32(dot4(w{{ o }}.high, high)), sum{{ o }}_{{ n }});
            //# if has_offset
            sum{{ o }}_{{ n }} = fma(-w{{ o }}.offset.x, s.y, sum{{ o }}_{{ n }});
            sum{{ o }}_{{ n }} = fma(-w{{ o }}.offset.y, s.z, sum{{ o }}_{{ n }});
            //# endif
            //# else
            let d{{ o }} = dot4(w{{ o }}.low, low) + dot4(w{{ o }}.high, high);
            sum{{ o }}_{{ n }} = fma(w{{ o }}.scale.x * s.x, f32(d{{ o }}), sum{{ o }}_{{ n }});
            //# if has_offset
            sum{{ o }}_{{ n }} = fma(-w{{ o }}.offset.x, s.w, sum{{ o }}_{{ n }});
            //# endif
            //# endif
            //# endfor
        }
        //# endfor
    }
    //# include "matvec_end.wgsl"
}
