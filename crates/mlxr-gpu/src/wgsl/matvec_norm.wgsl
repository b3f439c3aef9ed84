    // The product goes to the residual. Its norm is still to be scaled, which takes all of a row: see squares.wgsl.
    let v = fma(vec4(p.scale), own0, before);
    let u = v * norm_weight;
    let of_chunk = chunk_squares(v);
    //# if is_quantising
    quantise(at, u, is_there);
    //# endif
    if (is_there) {
        residual[at] = v;
        y[at] = u;
        if ((quad & 7u) == 0u) {
            squares[at >> 3u] = of_chunk;
        }
    }
