    // The product goes to the residual, which the last workgroup to be done normalises: with its lanes in turn in the place of
    // the {{ norm_lanes }} that rms_norm.wgsl has, so that the same numbers meet in the same order.
    if (is_there) {
        residual[at] = fma(vec4(p.scale), own0, residual[at]);
    }
    // What all lanes have written is there for everybody before this is counted.
    storageBarrier();
    if (index == 0u) {
        let n_before = atomicAdd(&arrivals[0], 1u);
        is_last = u32(n_before == n_wg.x * n_wg.y - 1u);
        if (is_last == 1u) {
            atomicStore(&arrivals[0], 0u);
        }
    }
    if (workgroupUniformLoad(&is_last) == 0u) {
        return;
    }
    storageBarrier();
    let n_items = p.y_stride / 4u;
    for (var r = 0u; r < p.n_rows; r++) {
        let start = r * n_items;
        //# for t in range(n_turns)
        //# for k in range(norm_per_lane)
        let c{{ t }}_{{ k }} = index + {{ t * n_lanes + k * norm_lanes }}u;
        let at{{ t }}_{{ k }} = min(c{{ t }}_{{ k }}, n_items - 1u);
        let v{{ t }}_{{ k }} = residual[start + at{{ t }}_{{ k }}];
        let w{{ t }}_{{ k }} = norm[at{{ t }}_{{ k }}];
        let is_in{{ t }}_{{ k }} = c{{ t }}_{{ k }} < n_items && index < {{ norm_lanes - t * n_lanes }}u;
        //# endfor
        //# endfor
        //# for t in range(n_turns)
        var sum{{ t }}_ = 0.0;
        //# for k in range(norm_per_lane)
        if (is_in{{ t }}_{{ k }}) {
            sum{{ t }}_ += dot(v{{ t }}_{{ k }}, v{{ t }}_{{ k }});
        }
        //# endfor
        let subgroup_sum{{ t }} = subgroupAdd(sum{{ t }}_);
        if (sublane == 0u) {
            squares[{{ t * n_lanes // subgroup }}u + subgroup] = subgroup_sum{{ t }};
        }
        //# endfor
        workgroupBarrier();
        var total = 0.0;
        for (var i = sublane; i < {{ norm_lanes // subgroup }}u; i += {{ subgroup }}u) {
            total += squares[i];
        }
        let factor = 1.0 / sqrt(subgroupAdd(total) / f32(p.y_stride) + p.eps);
        //# for t in range(n_turns)
        //# for k in range(norm_per_lane)
        let y{{ t }}_{{ k }} = v{{ t }}_{{ k }} * factor * w{{ t }}_{{ k }};
        //# if is_quantising
        quantise(start + c{{ t }}_{{ k }}, y{{ t }}_{{ k }}, is_in{{ t }}_{{ k }});
        //# endif
        if (is_in{{ t }}_{{ k }}) {
            y[start + c{{ t }}_{{ k }}] = y{{ t }}_{{ k }};
        }
        //# endfor
        //# endfor
        workgroupBarrier();
    }
