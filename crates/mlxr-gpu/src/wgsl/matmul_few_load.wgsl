    // What a lane has of the columns from {{ k }} on, into variables that `start` declares or that are there.
    //# for i in range(n_x)
    //# if is_half
    {{ start }}x{{ i }} = x[x_from{{ i }} + {{ k }} / 8u];
    //# else
    {{ start }}x_low{{ i }} = x[2u * (x_from{{ i }} + {{ k }} / 8u)];
    {{ start }}x_high{{ i }} = x[2u * (x_from{{ i }} + {{ k }} / 8u) + 1u];
    //# endif
    //# endfor
    //# for i in range(n_w)
    //# set r = i * step
    //# set name = "up" if r >= n_outs else "w"
    //# set w_row = "first_out + row + %du"|format(r % n_outs)
    {{ start }}w{{ i }} = {{ name }}[({{ w_row }}) * n_eights + col + {{ k }} / 8u];
    //# endfor
