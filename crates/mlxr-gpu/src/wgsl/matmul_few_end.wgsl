    // Subgroups join what they have of a matrix; a lane ends with four columns of a row.
    let block = subgroup * {{ n_joined * block_size }}u;
    //# for j in range(n_tiles // n_joined)
    //# if j > 0
    workgroupBarrier();
    //# endif
    coopStoreT(sum{{ j }}, &blocks[block], {{ block_stride }}u);
    //# if kind is defined
    coopStoreT(sum{{ j + n_tiles // 2 }}, &blocks[block + {{ block_size }}u], {{ block_stride }}u);
    //# endif
    workgroupBarrier();
    for (var quad = lane; quad < 64u; quad += {{ lanes }}u) {
        let from_block = quad / 4u * {{ block_stride }}u + quad % 4u;
        //# for m in range(n_joined)
        var total{{ m }} = blocks[{{ m * block_size }}u + from_block];
        for (var s = 1u; s < {{ n_split }}u; s++) {
            total{{ m }} += blocks[s * {{ n_joined * block_size }}u + {{ m * block_size }}u + from_block];
        }
        //# endfor
        let y_row = first_row + quad / 4u;
        if (y_row < p.n_rows) {
            let place = (y_row * p.y_stride + p.y_start + first_out + {{ 16 * j }}u) / 4u + quad % 4u;
            //# if kind is defined
            let joined = vec4(gated(total0.x, total1.x), gated(total0.y, total1.y), gated(total0.z, total1.z), gated(total0.w, total1.w));
            //# if bits is defined
            y[place] = joined;
            fragments[fragment_place(y_row, place % (p.y_stride / 4u), p.y_stride / 4u)] = half_bits(joined.xzyw);
            //# else
            y[place] = half_bits(joined);
            //# endif
            //# else
            y[place] = total0;
            //# endif
        }
    }
    //# endfor
