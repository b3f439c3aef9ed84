    // The end of a matvec: lanes, then subgroups, then the bias.
    //# for o in range(n_out)
    //# for n in range(n_rows)
    let total{{ o }}_{{ n }} = subgroupAdd(sum{{ o }}_{{ n }});
    //# endfor
    //# endfor
    if (sublane == 0u) {
        //# for o in range(n_out)
        //# for n in range(n_rows)
        partial[subgroup * {{ n_out * n_rows }}u + {{ o * n_rows + n }}u] = total{{ o }}_{{ n }};
        //# endfor
        //# endfor
    }
    workgroupBarrier();
    for (var i = lane; i < {{ n_out * n_rows }}u; i += {{ lanes }}u) {
        let o = first + i / {{ n_rows }}u;
        let n = first_row + i % {{ n_rows }}u;
        if (o < p.n_out && n < p.n_rows) {
            var total = 0.0;
            for (var s = 0u; s < {{ n_split }}u; s++) {
                total += partial[(set_idx * {{ n_split }}u + s) * {{ n_out * n_rows }}u + i];
            }
            if (p.has_bias != 0u) {
                total += bias[base + p.first_out + o];
            }
            y[n * p.y_stride + p.y_start + o] = total;
        }
    }
