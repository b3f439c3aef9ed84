    // Loads of keys in attention: up to {{ k_ahead }} octets of each of a lane's tokens, from octet {{ first_d }} of its share on.
    //# for d in range(first_d, [first_d + k_ahead, share_octets] | min)
    //# for i in range(n_shares)
    {{ "var" if n_pairs or n_rounds > 1 else "let" }} key{{ d }}_{{ i }} = k_cache[k_start{{ i }} + {{ d * block_tokens }}u];
    //# if has_scales and (d == first_d or d % 4 == 0 or share_octets % 4 > 0)
    // Four octets share a scale.
    let k_scale{{ d }}_{{ i }} = k_scales[(k_start{{ i }} / {{ block_tokens }}u + {{ d }}u) / 4u * {{ block_tokens }}u + k_start{{ i }} % {{ block_tokens }}u];
    //# endif
    //# endfor
    //# endfor
