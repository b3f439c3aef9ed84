    // Attention of a split, each subgroup by itself: from keys and queries to parts and stats. Needs `weights`, `unit_stats` and `sums`,
    // and the first keys and values.

    //# for i in range(n_shares)
    //# for h in range(n_heads)
    var dot{{ i }}_{{ h }} = 0.0;
    //# endfor
    //# endfor
    var q_at = share * {{ 2 * share_octets }}u;
    //# for first_d in range(0, share_octets, k_ahead)
    //# set end_d = [first_d + k_ahead, share_octets] | min
    //# if first_d > 0
    //# include "attention_unit_keys.wgsl"
    //# endif
    //# if n_pairs
    if (own < {{ split }}u) {
        //# for i in range(n_shares)
        if (unit_start + slot + {{ i * n_slots }}u == own) {
            //# for d in range(first_d, end_d)
            key{{ d }}_{{ i }} = own_key[share * {{ share_octets }}u + {{ d }}u];
            //# endfor
        }
        //# endfor
    }
    //# endif
    //# if n_rounds > 1
    for (var round = 0u; round < p.n_rounds; round++) {
    //# endif
    //# for d in range(first_d, first_d + (end_d - first_d) // n_rounds)
    {
        //# for h in range(n_heads)
        let first{{ h }} = queries[q_at + {{ h * k_dim // 4 + 2 * d }}u];
        let second{{ h }} = queries[q_at + {{ h * k_dim // 4 + 2 * d + 1 }}u];
        //# endfor
        //# for i in range(n_shares)
        {
            //# set scale_d = d if share_octets % 4 > 0 else [d // 4 * 4, first_d] | max
            let both = decode(key{{ d }}_{{ i }}){{ (" * k_scale" ~ scale_d ~ "_" ~ i) if has_scales else "" }};
            //# for half in ["first", "second"]
            //# for c in [".x", ".y", ".z", ".w"]
            //# for h in range(n_heads)
            dot{{ i }}_{{ h }} = fma(both[{{ 0 if half == "first" else 1 }}]{{ c }}, {{ half }}{{ h }}{{ c }}, dot{{ i }}_{{ h }});
            //# endfor
            //# endfor
            //# endfor
        }
        //# endfor
    }
    //# endfor
    //# if n_rounds > 1
        q_at += {{ 2 * share_octets // n_rounds }}u;
        //# for d in range(share_octets - share_octets // n_rounds)
        //# for i in range(n_shares)
        key{{ d }}_{{ i }} = key{{ d + share_octets // n_rounds }}_{{ i }};
        //# endfor
        //# endfor
    }
    //# endif
    //# endfor
    // All other values are on their way from here on.
    //# for first_v in range(v_ahead, n_tokens, v_ahead)
    //# include "attention_unit_values.wgsl"
    //# endfor

    // Shares meet, and leave each lane the scores of the token that has its number.
    //# for n in [4, 2]
    //# if n <= n_shares
    {
        let has_second = (share & {{ n // 2 }}u) != 0u;
        //# for i in range(n // 2)
        //# for h in range(n_heads)
        {
            let given = select(dot{{ i + n // 2 }}_{{ h }}, dot{{ i }}_{{ h }}, has_second);
            let kept = select(dot{{ i }}_{{ h }}, dot{{ i + n // 2 }}_{{ h }}, has_second);
            dot{{ i }}_{{ h }} = kept + subgroupShuffleXor(given, {{ n // 2 * n_slots }}u);
        }
        //# endfor
        //# endfor
    }
    //# endif
    //# endfor
    let is_seen = lane >= low && lane <= high;
    //# for h in range(n_heads)
    var score{{ h }} = p.scale * dot0_{{ h }};
    if (p.softcap != 0.0) {
        score{{ h }} = p.softcap * tanh_stable(score{{ h }} / p.softcap);
    }
    score{{ h }} = select(-3.0e38, score{{ h }}, is_seen);
    let largest{{ h }} = lanes_max(score{{ h }});
    //# endfor
    //# for h in range(n_heads)
    let weight{{ h }} = select(0.0, exp(score{{ h }} - largest{{ h }}), is_seen);
    let total{{ h }} = lanes_add(weight{{ h }});
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
    //# set at_once = n_tokens if n_rounds > 1 else v_ahead
    //# for first_v in range(0, n_tokens, at_once)
    //# set end_v = first_v + ([at_once, n_tokens - first_v] | min) // n_rounds
    //# if n_rounds > 1
    for (var round = 0u; round < p.n_rounds; round++) {
    //# endif
    if (low > 0u || high < {{ split - 1 }}u{{ " || own < " ~ split ~ "u" if n_pairs else "" }}) {
        //# for i in range(first_v, end_v)
        // What is not seen may be of others, and no number.
        if (v_token{{ i }} < low || v_token{{ i }} > high) {
            //# for c in range(n_cols)
            octet{{ i }}_{{ c }} = Octet();
            //# if has_scales
            v_scale{{ i }}_{{ c }} = 0.0;
            //# endif
            //# endfor
        }
        //# if n_pairs
        if (v_token{{ i }} == own) {
            //# for c in range(n_cols)
            octet{{ i }}_{{ c }} = own_value[column{{ c }}];
            //# endfor
        }
        //# endif
        //# endfor
    }
    //# for i in range(first_v, end_v)
    {
        //# for j in range(n_heads // w_vec)
        //# if is_even
        let w{{ j }} = weights[v_token{{ i }} * {{ n_heads // w_vec }}u + {{ j }}u];
        //# else
        let w{{ j }} = select({{ w_type }}(0.0), weights[v_token{{ i }} * {{ n_heads // w_vec }}u + {{ j }}u], group + {{ i * n_groups }}u < {{ unit }}u);
        //# endif
        //# endfor
        //# for c in range(n_cols)
        let both{{ c }} = decode(octet{{ i }}_{{ c }}){{ (" * v_scale" ~ i ~ "_" ~ c) if has_scales else "" }};
        //# for h in range(n_heads)
        //# set w = "w" ~ (h // w_vec) ~ (w_lane[h % w_vec] if w_vec > 1 else "")
        value{{ h }}_{{ c }}[0] = fma(vec4({{ w }}), both{{ c }}[0], value{{ h }}_{{ c }}[0]);
        value{{ h }}_{{ c }}[1] = fma(vec4({{ w }}), both{{ c }}[1], value{{ h }}_{{ c }}[1]);
        //# endfor
        //# endfor
    }
    //# endfor
    //# if n_rounds > 1
        //# for i in range(n_tokens - end_v)
        v_token{{ i }} = v_token{{ i + end_v }};
        //# for c in range(n_cols)
        octet{{ i }}_{{ c }} = octet{{ i + end_v }}_{{ c }};
        //# endfor
        //# endfor
    }
    //# endif
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
    //# for turn in range((n * slice_quads + split - 1) // split if is_single else 1)
    //# if is_single
    {
        let i = min(lane + {{ turn * split }}u, {{ n * slice_quads - 1 }}u);
    //# else
    for (var i = lane; i < {{ n * slice_quads }}u; i += {{ split }}u) {
    //# endif
        let slice = {{ first }}u + i / {{ slice_quads }}u;
        let h = slice / {{ n_cols }}u;
        let quad = slice % {{ n_cols }}u * {{ slice_quads }}u + i % {{ slice_quads }}u;
        var largest = -3.0e38;
        //# if is_single
        if (p.has_sinks != 0u) {
            largest = sinks[first_head + h];
        }
        //# endif
        for (var u = 0u; u < {{ n_units }}u; u++) {
            largest = max(largest, unit_stats[u * {{ n_heads }}u + h].x);
        }
        var total = 0.0;
        //# if is_single
        if (p.has_sinks != 0u) {
            total = exp(sinks[first_head + h] - largest);
        }
        //# endif
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
        //# if is_single
        let is_there = lane + {{ turn * split }}u < {{ n * slice_quads }}u && quad < {{ v_quads }}u;
        let value = sum / total;
        let to = ((p.first_row + local_row) * p.n_heads + first_head + h) * {{ v_quads }}u + quad;
        //# if is_quantising
        quantise(to, value, is_there);
        //# endif
        if (is_there) {
            y[to] = value;
        }
        //# else
        if (quad < {{ v_quads }}u) {
            let part = (local_row * p.n_heads + first_head + h) * p.max_splits + wg.z;
            parts[part * {{ v_quads }}u + quad] = sum;
            if (quad == 0u) {
                stats[part] = vec2(largest, total);
            }
        }
        //# endif
    }
    //# endfor
    //# endfor
