    // Loads of values in attention: up to {{ v_ahead }} tokens of a lane, from its token number {{ first_v }} on.
    //# for i in range(first_v, [first_v + v_ahead, n_tokens] | min)
    //# if is_even and block_tokens % n_groups == 0
    {{ "var" if n_rounds > 1 else "let" }} v_token{{ i }} = unit_start + group + {{ i * n_groups }}u;
    let v_slot{{ i }} = block{{ i * n_groups // block_tokens }} * {{ block_tokens }}u + unit_start % {{ block_tokens }}u + group + {{ i * n_groups % block_tokens }}u;
    //# else
    {{ "var" if n_rounds > 1 else "let" }} v_token{{ i }} = unit_start + min(group + {{ i * n_groups }}u, {{ unit - 1 }}u);
    let v_slot{{ i }} = block_of(v_token{{ i }}, {{ blocks | join(", ") }}) * {{ block_tokens }}u + v_token{{ i }} % {{ block_tokens }}u;
    //# endif
    //# for c in range(n_cols)
    var octet{{ i }}_{{ c }} = v_cache[v_slot{{ i }} * {{ v_octets }}u + column{{ c }}];
    //# if has_scales
    var v_scale{{ i }}_{{ c }} = v_scales[v_slot{{ i }} * {{ v_dim // 32 }}u + column{{ c }} / 4u];
    //# endif
    //# endfor
    //# endfor
