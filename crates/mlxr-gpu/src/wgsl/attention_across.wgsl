    // Attention of a split by all lanes together: from keys and queries to parts and stats. Needs `weights`, `partial` and `sums`.

    // Values: a lane has eight columns, and every {{ n_groups }}th token. The first are on their way while scores are computed.
    let column = lane % {{ v_octets }}u;
    let group = lane / {{ v_octets }}u;
    //# set first = 0
    //# include "attention_values.wgsl"

    // Scores: {{ n_shares }} lanes share a token.
    let token = lane % {{ split }}u;
    let share = lane / {{ split }}u;
    if (share < {{ n_shares }}u && token >= low && token <= high) {
        let block = blocks[token / {{ block_tokens }}u];
        let place = token % {{ block_tokens }}u;
        let first = share * {{ share_octets }}u;
        //# for h in range(n_heads)
        var dot{{ h }} = vec4(0.0);
        //# endfor
        for (var d = first; d < first + {{ share_octets }}u; d += {{ k_ahead }}u) {
            //# for i in range(k_ahead)
            {{ "var" if n_pairs else "let" }} octet{{ i }} = k_cache[(block * {{ k_octets }}u + d + {{ i }}u) * {{ block_tokens }}u + place];
            //# endfor
            //# if n_pairs
            if (token == own) {
                //# for i in range(k_ahead)
                octet{{ i }} = own_key[d + {{ i }}u];
                //# endfor
            }
            //# endif
            //# if is_q8
            // Four octets share a scale.
            let scale = k_scales[(block * {{ k_dim // 32 }}u + d / 4u) * {{ block_tokens }}u + place];
            //# endif
            //# for i in range(k_ahead)
            {
                let key = decode(octet{{ i }}){{ " * scale" if is_q8 else "" }};
                //# for h in range(n_heads)
                dot{{ h }} = fma(key[0], queries[{{ h * k_dim // 4 }}u + 2u * (d + {{ i }}u)], dot{{ h }});
                dot{{ h }} = fma(key[1], queries[{{ h * k_dim // 4 }}u + 2u * (d + {{ i }}u) + 1u], dot{{ h }});
                //# endfor
            }
            //# endfor
        }
        //# for h in range(n_heads)
        weights[(share * {{ n_heads }}u + {{ h }}u) * {{ split }}u + token] = (dot{{ h }}.x + dot{{ h }}.y) + (dot{{ h }}.z + dot{{ h }}.w);
        //# endfor
    }
    workgroupBarrier();

    // From here on a lane has one token of one head at a time, a subgroup one head.
    //# for i in range(n_scores)
    let idx{{ i }} = lane + {{ i * lanes }}u;
    let position{{ i }} = idx{{ i }} % {{ split }}u;
    let is_seen{{ i }} = idx{{ i }} < {{ n_heads * split }}u && position{{ i }} >= low && position{{ i }} <= high;
    var score{{ i }} = -3.0e38;
    if (is_seen{{ i }}) {
        var dot = weights[idx{{ i }}];
        //# for s in range(1, n_shares)
        dot += weights[{{ s * n_heads * split }}u + idx{{ i }}];
        //# endfor
        score{{ i }} = p.scale * dot;
        if (p.softcap != 0.0) {
            score{{ i }} = p.softcap * tanh_stable(score{{ i }} / p.softcap);
        }
    }
    let subgroup_largest{{ i }} = subgroupMax(score{{ i }});
    if (sublane == 0u) {
        partial[{{ i * n_subgroups }}u + subgroup] = subgroup_largest{{ i }};
    }
    //# endfor
    workgroupBarrier();
    //# for i in range(n_scores)
    let head{{ i }} = min(idx{{ i }} / {{ split }}u, {{ n_heads - 1 }}u) * {{ per_head }}u;
    var largest{{ i }} = partial[head{{ i }}];
    for (var s = 1u; s < {{ per_head }}u; s++) {
        largest{{ i }} = max(largest{{ i }}, partial[head{{ i }} + s]);
    }
    //# endfor
    workgroupBarrier();
    //# for i in range(n_scores)
    let weight{{ i }} = select(0.0, exp(score{{ i }} - largest{{ i }}), is_seen{{ i }});
    if (idx{{ i }} < {{ n_heads * split }}u) {
        weights[idx{{ i }}] = weight{{ i }};
    }
    let subgroup_sum{{ i }} = subgroupAdd(weight{{ i }});
    if (sublane == 0u) {
        partial[{{ i * n_subgroups }}u + subgroup] = subgroup_sum{{ i }};
    }
    //# endfor
    workgroupBarrier();
    //# for i in range(n_scores)
    if (position{{ i }} == 0u && idx{{ i }} < {{ n_heads * split }}u) {
        var total = 0.0;
        for (var s = 0u; s < {{ per_head }}u; s++) {
            total += partial[head{{ i }} + s];
        }
        let head = first_head + idx{{ i }} / {{ split }}u;
        stats[(local_row * p.n_heads + head) * p.max_splits + wg.z] = vec2(largest{{ i }}, total);
    }
    //# endfor

    //# for h in range(n_heads)
    var value{{ h }} = mat2x4<f32>();
    //# endfor
    //# for first in range(0, n_tokens, v_ahead)
    //# if first > 0
    //# include "attention_values.wgsl"
    //# endif
    //# for i in range(first, [first + v_ahead, n_tokens] | min)
    {
        let values = decode(octet{{ i }}){{ " * v_scale" ~ i if is_q8 else "" }};
        let is_there = at{{ i }} == group + {{ i * n_groups }}u;
        //# for h in range(n_heads)
        let weight{{ h }} = vec4(select(0.0, weights[{{ h * split }}u + at{{ i }}], is_there));
        value{{ h }}[0] = fma(weight{{ h }}, values[0], value{{ h }}[0]);
        value{{ h }}[1] = fma(weight{{ h }}, values[1], value{{ h }}[1]);
        //# endfor
    }
    //# endfor
    //# endfor
    //# for first in range(0, n_heads, n_summed)
    //# set n = [n_summed, n_heads - first] | min
    //# if first > 0
    workgroupBarrier();
    //# endif
    //# for h in range(first, first + n)
    //# for step in [1, 2, 4, 8, 16]
    //# if step < n_joined
    value{{ h }}[0] += subgroupShuffleXor(value{{ h }}[0], {{ step * v_octets }}u);
    value{{ h }}[1] += subgroupShuffleXor(value{{ h }}[1], {{ step * v_octets }}u);
    //# endif
    //# endfor
    if (group % {{ n_joined }}u == 0u && group < {{ n_groups }}u) {
        let to = ({{ h - first }}u * {{ n_sums }}u + group / {{ n_joined }}u) * {{ v_quads }}u + 2u * column;
        sums[to] = value{{ h }}[0];
        sums[to + 1u] = value{{ h }}[1];
    }
    //# endfor
    workgroupBarrier();
    for (var i = lane; i < {{ n * v_quads }}u; i += {{ lanes }}u) {
        let h = i / {{ v_quads }}u;
        let quad = i % {{ v_quads }}u;
        var total = sums[h * {{ n_sums * v_quads }}u + quad];
        for (var g = 1u; g < {{ n_sums }}u; g++) {
            total += sums[(h * {{ n_sums }}u + g) * {{ v_quads }}u + quad];
        }
        let part = (local_row * p.n_heads + first_head + {{ first }}u + h) * p.max_splits + wg.z;
        parts[part * {{ v_quads }}u + quad] = total;
    }
    //# endfor
