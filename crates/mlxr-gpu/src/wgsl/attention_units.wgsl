    // Attention of a split, each subgroup by itself: from keys and queries to parts and stats. Needs `weights`, `unit_stats` and `sums`.

    // What is not seen stands for the nearest that is, and counts for nothing.
    let token = clamp(lane, low, high);
    let k_start = blocks[token / {{ block_tokens }}u] * {{ k_octets * block_tokens }}u + token % {{ block_tokens }}u;
    //# for h in range(n_heads)
    var dot{{ h }} = vec4(0.0);
    //# endfor
    //# for first in range(0, k_octets, k_ahead)
    //# set end = [first + k_ahead, k_octets] | min
    //# for d in range(first, end)
    {{ "var" if n_pairs else "let" }} key{{ d }} = k_cache[k_start + {{ d * block_tokens }}u];
    //# if is_q8 and d % 4 == 0
    // Four octets share a scale.
    let k_scale{{ d // 4 }} = k_scales[(k_start - token % {{ block_tokens }}u) / 4u + {{ d // 4 * block_tokens }}u + token % {{ block_tokens }}u];
    //# endif
    //# endfor
    //# if first == 0
    // Values: a lane has eight columns of every so manyth token. The first are on their way while scores are computed.
    let group = sublane / {{ v_octets }}u;
    //# set first_v = 0
    //# include "attention_unit_values.wgsl"
    //# endif
    //# if n_pairs
    if (lane == own) {
        //# for d in range(first, end)
        key{{ d }} = own_key[{{ d }}];
        //# endfor
    }
    //# endif
    //# for d in range(first, end)
    {
        let both = decode(key{{ d }}){{ (" * k_scale" ~ (d // 4)) if is_q8 else "" }};
        //# for h in range(n_heads)
        dot{{ h }} = fma(both[0], queries[{{ h * k_dim // 4 + 2 * d }}], dot{{ h }});
        dot{{ h }} = fma(both[1], queries[{{ h * k_dim // 4 + 2 * d + 1 }}], dot{{ h }});
        //# endfor
    }
    //# endfor
    //# endfor

    let is_seen = lane >= low && lane <= high;
    //# for h in range(n_heads)
    var score{{ h }} = p.scale * ((dot{{ h }}.x + dot{{ h }}.y) + (dot{{ h }}.z + dot{{ h }}.w));
    if (p.softcap != 0.0) {
        score{{ h }} = p.softcap * tanh_stable(score{{ h }} / p.softcap);
    }
    score{{ h }} = select(-3.0e38, score{{ h }}, is_seen);
    let largest{{ h }} = subgroupMax(score{{ h }});
    //# endfor
    //# for h in range(n_heads)
    let weight{{ h }} = select(0.0, exp(score{{ h }} - largest{{ h }}), is_seen);
    let total{{ h }} = subgroupAdd(weight{{ h }});
    //# endfor
    //# for i in range(n_heads // w_vec)
    //# if w_vec == 1
    weights[lane * {{ n_heads }}u + {{ i }}u] = weight{{ i }};
    //# else
    weights[lane * {{ n_heads // w_vec }}u + {{ i }}u] = {{ w_type }}(
        //# for j in range(w_vec)
        weight{{ i * w_vec + j }},
        //# endfor
    );
    //# endif
    //# endfor
    if (sublane == 0u) {
        //# for h in range(n_heads)
        unit_stats[subgroup * {{ n_heads }}u + {{ h }}u] = vec2(largest{{ h }}, total{{ h }});
        //# endfor
    }
    workgroupBarrier();

    //# for h in range(n_heads)
    //# for c in range(n_cols)
    var value{{ h }}_{{ c }} = mat2x4<f32>();
    //# endfor
    //# endfor
    //# for first_v in range(0, n_tokens, v_ahead)
    //# if first_v > 0
    //# include "attention_unit_values.wgsl"
    //# endif
    //# for i in range(first_v, [first_v + v_ahead, n_tokens] | min)
    {
        let place = subgroup * {{ unit }}u + {{ ("group + " ~ (i * n_groups) ~ "u") if unit % n_groups == 0 and unit % v_octets == 0 else ("min(group + " ~ (i * n_groups) ~ "u, " ~ (unit - 1) ~ "u)") }};
        //# for j in range(n_heads // w_vec)
        //# if unit % n_groups == 0
        let w{{ j }} = weights[place * {{ n_heads // w_vec }}u + {{ j }}u];
        //# else
        let w{{ j }} = select({{ w_type }}(0.0), weights[place * {{ n_heads // w_vec }}u + {{ j }}u], group + {{ i * n_groups }}u < {{ unit }}u);
        //# endif
        //# endfor
        //# for c in range(n_cols)
        let both{{ c }} = decode(octet{{ i }}_{{ c }}){{ (" * v_scale" ~ i ~ "_" ~ c) if is_q8 else "" }};
        //# for h in range(n_heads)
        //# set w = "w" ~ (h // w_vec) ~ (w_lane[h % w_vec] if w_vec > 1 else "")
        value{{ h }}_{{ c }}[0] = fma(vec4({{ w }}), both{{ c }}[0], value{{ h }}_{{ c }}[0]);
        value{{ h }}_{{ c }}[1] = fma(vec4({{ w }}), both{{ c }}[1], value{{ h }}_{{ c }}[1]);
        //# endfor
        //# endfor
    }
    //# endfor
    //# endfor
    //# for first in range(0, n_slices, n_summed)
    //# set n = [n_summed, n_slices - first] | min
    //# if first > 0
    workgroupBarrier();
    //# endif
    //# for slice in range(first, first + n)
    //# set c = slice % n_cols
    //# set value = "value" ~ (slice // n_cols) ~ "_" ~ c
    //# for step in [1, 2, 4, 8, 16]
    //# if step < n_joined
    {{ value }}[0] += subgroupShuffleXor({{ value }}[0], {{ step * v_octets }}u);
    {{ value }}[1] += subgroupShuffleXor({{ value }}[1], {{ step * v_octets }}u);
    //# endif
    //# endfor
    //# set n_there = v_octets if n_joined > 1 else n_groups * v_octets if n_cols == 1 else v_octets - c * unit
    if (sublane < {{ n_there }}u) {
        //# set sum_group = "subgroup" if n_joined == n_groups else "(subgroup * " ~ n_groups ~ "u + group)"
        let to = ({{ slice - first }}u * {{ n_sums }}u + {{ sum_group }}) * {{ slice_quads }}u + 2u * {{ "column0" if n_cols == 1 else "sublane" }};
        sums[to] = {{ value }}[0];
        sums[to + 1u] = {{ value }}[1];
    }
    //# endfor
    workgroupBarrier();
    for (var i = lane; i < {{ n * slice_quads }}u; i += {{ lanes }}u) {
        let slice = {{ first }}u + i / {{ slice_quads }}u;
        let h = slice / {{ n_cols }}u;
        let quad = slice % {{ n_cols }}u * {{ slice_quads }}u + i % {{ slice_quads }}u;
        var largest = -3.0e38;
        for (var u = 0u; u < {{ n_units }}u; u++) {
            largest = max(largest, unit_stats[u * {{ n_heads }}u + h].x);
        }
        var total = 0.0;
        var sum = vec4(0.0);
        let first_sum = i / {{ slice_quads }}u * {{ n_sums * slice_quads }}u + i % {{ slice_quads }}u;
        for (var u = 0u; u < {{ n_units }}u; u++) {
            let stat = unit_stats[u * {{ n_heads }}u + h];
            let factor = exp(stat.x - largest);
            total = fma(factor, stat.y, total);
            //# for g in range(n_groups // n_joined)
            sum = fma(vec4(factor), sums[first_sum + (u * {{ n_groups // n_joined }}u + {{ g }}u) * {{ slice_quads }}u], sum);
            //# endfor
        }
        if (quad < {{ v_quads }}u) {
            let part = (local_row * p.n_heads + first_head + h) * p.max_splits + wg.z;
            parts[part * {{ v_quads }}u + quad] = sum;
            if (quad == 0u) {
                stats[part] = vec2(largest, total);
            }
        }
    }
    //# endfor
