    // The end of a matvec: lanes in pairs, then subgroups, then the bias. Where there are several results, each half of
    // a pair goes on with half of them; what is added to what does not depend on how many there are.
    //# for step in range(subgroup_bits)
    //# set mask = subgroup // 2 ** (step + 1)
    //# set n_left = n_results // 2 ** (step + 1)
    //# if n_left >= 1
    let is_upper{{ step }} = (sublane & {{ mask }}u) != 0u;
    //# for i in range(n_left)
    sum{{ i }} = select(sum{{ i }}, sum{{ i + n_left }}, is_upper{{ step }}) + subgroupShuffleXor(select(sum{{ i + n_left }}, sum{{ i }}, is_upper{{ step }}), {{ mask }}u);
    //# endfor
    //# else
    sum0 += subgroupShuffleXor(sum0, {{ mask }}u);
    //# endif
    //# endfor
    //# if n_results > subgroup
    //# for i in range(n_results // subgroup)
    partial[subgroup * {{ n_results }}u + sublane * {{ n_results // subgroup }}u + {{ i }}u] = sum{{ i }};
    //# endfor
    //# else
    if (sublane % {{ subgroup // n_results }}u == 0u) {
        partial[subgroup * {{ n_results }}u + sublane / {{ subgroup // n_results }}u] = sum0;
    }
    //# endif
    workgroupBarrier();
    //# if kind is defined or is_normed is defined
    //# for m in range(2 if kind is defined else 1)
    var own{{ m }} = vec4(
        //# for j in range(4)
        joined((4u * quad + {{ j }}u) / {{ n_y }}u, ((4u * quad + {{ j }}u) % {{ n_y }}u + {{ m * n_y }}u) * {{ n_rows }}u + n),
        //# endfor
    );
    //# set of_up = "up_" if m > 0 else ""
    if (p.has_{{ of_up }}bias != 0u && column < p.n_out) {
        own{{ m }} += vec4({{ of_up }}bias[column], {{ of_up }}bias[column + 1u], {{ of_up }}bias[column + 2u], {{ of_up }}bias[column + 3u]);
    }
    //# endfor
    //# if kind is defined
    let v = vec4(gated(own0.x, own1.x), gated(own0.y, own1.y), gated(own0.z, own1.z), gated(own0.w, own1.w));
    //# if is_quantising
    quantise(at, v, is_there);
    //# endif
    if (is_there) {
        y[at] = v;
    }
    //# else
    //# include "matvec_norm.wgsl"
    //# endif
    //# else
    for (var i = lane; i < {{ n_results }}u; i += {{ lanes }}u) {
        let o = first + i / {{ n_rows }}u;
        let n = {{ "routing[tile + 1u + i %% %du]"|format(n_rows) if is_grouped else "first_row + i %% %du"|format(n_rows) }};
        if (o < p.n_out && n < p.n_rows) {
            var total = joined(set_idx, i);
            if (p.has_bias != 0u) {
                total += bias[base + p.first_out + o];
            }
            y[n * p.y_stride + p.y_start + o] = total;
        }
    }
    //# endif
