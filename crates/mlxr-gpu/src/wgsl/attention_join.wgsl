    // The end of attention: joins the splits of a row's heads. Each of {{ n_joiners }} groups of lanes has every so manyth split of a
    // head, a lane four columns of them. Needs `sums` and `joined`.
    let first_split = seen.x / {{ split }}u;
    let last_split = seen.y / {{ split }}u;
    //# set n_at_once = [n_heads, n_joiners] | min
    //# set n_members = n_joiners // n_at_once
    // Splits of a group whose loads are in flight at a time.
    //# set n_ahead = 8
    let joiner = min(lane / {{ v_quads }}u, {{ n_at_once * n_members - 1 }}u);
    let is_joiner = lane < {{ n_at_once * n_members * v_quads }}u;
    let member = joiner % {{ n_members }}u;
    let quad = lane % {{ v_quads }}u;
    //# for first in range(0, n_heads, n_at_once)
    //# if first > 0
    workgroupBarrier();
    //# endif
    {
        let head = first_head + min({{ first }}u + joiner / {{ n_members }}u, {{ n_heads - 1 }}u);
        let base = (local_row * p.n_heads + head) * p.max_splits;
        let last = base + last_split - p.first_split;
        var largest = -3.0e38;
        var total = 0.0;
        var sum = vec4(0.0);
        for (var s = base + first_split - p.first_split + member; s <= last; s += {{ n_ahead * n_members }}u) {
            let before = largest;
            //# for i in range(n_ahead)
            let s{{ i }} = min(s + {{ i * n_members }}u, last);
            let stat{{ i }} = stats[s{{ i }}];
            let part{{ i }} = parts[s{{ i }} * {{ v_quads }}u + quad];
            //# endfor
            //# for i in range(n_ahead)
            largest = max(largest, stat{{ i }}.x);
            //# endfor
            let shrunk = exp(before - largest);
            total *= shrunk;
            sum *= shrunk;
            //# for i in range(n_ahead)
            let factor{{ i }} = select(0.0, exp(stat{{ i }}.x - largest), s + {{ i * n_members }}u <= last);
            total = fma(factor{{ i }}, stat{{ i }}.y, total);
            sum = fma(vec4(factor{{ i }}), part{{ i }}, sum);
            //# endfor
        }
        if (is_joiner) {
            sums[lane] = sum;
            if (quad == 0u) {
                joined[joiner] = vec2(largest, total);
            }
        }
        workgroupBarrier();
        largest = -3.0e38;
        if (p.has_sinks != 0u) {
            largest = sinks[head];
        }
        let start = joiner - member;
        for (var m = 0u; m < {{ n_members }}u; m++) {
            largest = max(largest, joined[start + m].x);
        }
        total = 0.0;
        if (p.has_sinks != 0u) {
            total = exp(sinks[head] - largest);
        }
        sum = vec4(0.0);
        for (var m = 0u; m < {{ n_members }}u; m++) {
            let factor = exp(joined[start + m].x - largest);
            total = fma(factor, joined[start + m].y, total);
            sum = fma(vec4(factor), sums[(start + m) * {{ v_quads }}u + quad], sum);
        }
        let value = sum / total;
        let at = ((p.first_row + local_row) * p.n_heads + head) * {{ v_quads }}u + quad;
        let is_writer = is_joiner && member == 0u && {{ first }}u + joiner / {{ n_members }}u < {{ n_heads }}u;
        //# if is_quantising
        quantise(at, value, is_writer);
        //# endif
        if (is_writer) {
            y[at] = value;
        }
    }
    //# endfor
