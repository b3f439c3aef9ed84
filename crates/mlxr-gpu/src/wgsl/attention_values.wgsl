    // Loads of values in attention: up to {{ v_ahead }} tokens of a lane, from its token number {{ first }} on.
    //# for i in range(first, [first + v_ahead, n_tokens] | min)
    // What is not seen stands for the nearest that is, and counts for nothing.
    let at{{ i }} = clamp(group + {{ i * n_groups }}u, low, high);
    let token{{ i }} = blocks[at{{ i }} / {{ block_tokens }}u] * {{ block_tokens }}u + at{{ i }} % {{ block_tokens }}u;
    {{ "var" if n_pairs else "let" }} octet{{ i }} = v_cache[token{{ i }} * {{ v_octets }}u + column];
    //# if n_pairs
    if (at{{ i }} == own) {
        octet{{ i }} = own_value[column];
    }
    //# endif
    //# if is_q8
    let v_scale{{ i }} = v_scales[token{{ i }} * {{ v_dim // 32 }}u + column / 4u];
    //# endif
    //# endfor
