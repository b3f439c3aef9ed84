    // Loads of values in attention: up to {{ v_ahead }} tokens of a lane, from its token number {{ first_v }} on. What is not seen
    // stands for the nearest that is, and counts for nothing.
    //# if first_v == 0
    //# for c in range(n_cols)
    //# if v_octets <= unit
    let column{{ c }} = sublane % {{ v_octets }}u;
    //# else
    let column{{ c }} = min(sublane + {{ c * unit }}u, {{ v_octets - 1 }}u);
    //# endif
    //# endfor
    //# endif
    //# for i in range(first_v, [first_v + v_ahead, n_tokens] | min)
    let at{{ i }} = clamp(subgroup * {{ unit }}u + group + {{ i * n_groups }}u, low, high);
    let slot{{ i }} = blocks[at{{ i }} / {{ block_tokens }}u] * {{ block_tokens }}u + at{{ i }} % {{ block_tokens }}u;
    //# for c in range(n_cols)
    {{ "var" if n_pairs else "let" }} octet{{ i }}_{{ c }} = v_cache[slot{{ i }} * {{ v_octets }}u + column{{ c }}];
    //# if is_q8
    let v_scale{{ i }}_{{ c }} = v_scales[slot{{ i }} * {{ v_dim // 32 }}u + column{{ c }} / 4u];
    //# endif
    //# endfor
    //# endfor
    //# if n_pairs
    if (own < {{ split }}u) {
        //# for i in range(first_v, [first_v + v_ahead, n_tokens] | min)
        if (at{{ i }} == own) {
            //# for c in range(n_cols)
            octet{{ i }}_{{ c }} = own_value[column{{ c }}];
            //# endfor
        }
        //# endfor
    }
    //# endif
