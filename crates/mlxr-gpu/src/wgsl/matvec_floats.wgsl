// y[n][o] = sum over columns of x[n] * w[o] (+ bias[o]), weights and activations as floats in chunks of 8 columns.
//
// {{ n_split }} subgroups share the columns of {{ n_out }} rows of w and meet {{ n_rows }} rows of x; the order in which a result's parts
// are added is the same for every number of rows.

//# include "matvec_params.wgsl"
//# include "weight_floats.wgsl"

@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> routing: array<u32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

//# include "matvec_start.wgsl"
    //# for o in range(n_out)
    //# for n in range(n_rows)
    var quad{{ o }}_{{ n }} = vec4(0.0);
    //# endfor
    //# endfor
    for (var c = lane; c < p.n_chunks; c += {{ lanes }}u) {
        //# for o in range(n_out)
        let w{{ o }} = load_chunk(w_row{{ o }}, c);
        //# endfor
        //# for n in range(n_rows)
        {
            let at = x_row{{ n }} * p.n_chunks + c;
            let low = x[2u * at];
            let high = x[2u * at + 1u];
            //# for o in range(n_out)
            quad{{ o }}_{{ n }} = fma(w{{ o }}.low, low, quad{{ o }}_{{ n }});
            quad{{ o }}_{{ n }} = fma(w{{ o }}.high, high, quad{{ o }}_{{ n }});
            //# endfor
        }
        //# endfor
    }
    //# for o in range(n_out)
    //# for n in range(n_rows)
    let sum{{ o }}_{{ n }} = (quad{{ o }}_{{ n }}.x + quad{{ o }}_{{ n }}.y) + (quad{{ o }}_{{ n }}.z + quad{{ o }}_{{ n }}.w);
    //# endfor
    //# endfor
    //# include "matvec_end.wgsl"
}
