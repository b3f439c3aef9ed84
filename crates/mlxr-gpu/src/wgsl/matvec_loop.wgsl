    // The head of a matvec's loop: chunks c0, c1 and so on of each row of w, loaded together.
    //# if n_chunks == n_ahead * lanes
    // Once: a loop costs time even so.
    {
        let c0 = lane;
    //# else
    for (var c0 = lane; c0 < {{ n_chunks }}u; c0 += {{ n_ahead * lanes }}u) {
    //# endif
        //# for u in range(n_ahead)
        //# if u > 0
        let c{{ u }} = c0 + {{ u * lanes }}u;
        //# endif
        //# for o in range(n_out)
        let w{{ u }}_{{ o }} = {{ "w" if o < n_y else "up" }}_chunk(w_row{{ o % n_y }}, c{{ u }});
        //# endfor
        //# endfor
