    // The end of a matvec: lanes in pairs, then subgroups, then the bias. Where there are several results, each half of
    // a pair goes on with half of them; what is added to what does not depend on how many there are.
    //# set n_results = n_out * n_rows
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
    for (var i = lane; i < {{ n_results }}u; i += {{ lanes }}u) {
        let o = first + i / {{ n_rows }}u;
        let n = first_row + i % {{ n_rows }}u;
        if (o < p.n_out && n < p.n_rows) {
            var total = 0.0;
            for (var s = 0u; s < {{ n_split }}u; s++) {
                total += partial[(set_idx * {{ n_split }}u + s) * {{ n_results }}u + i];
            }
            if (p.has_bias != 0u) {
                total += bias[base + p.first_out + o];
            }
            y[n * p.y_stride + p.y_start + o] = total;
        }
    }
