    // What scales row {{ row }}, `factor{{ n }}`: a lane adds each {{ subgroup }}th of its {{ n_squares }} squares.
    //# for i in range((n_squares + subgroup - 1) // subgroup)
    //# set place = (i * subgroup) ~ "u + sublane"
    //# if (i + 1) * subgroup > n_squares
    let square{{ n }}_{{ i }} = select(0.0, x_squares[{{ row }} * {{ n_squares }}u + min({{ place }}, {{ n_squares - 1 }}u)], {{ place }} < {{ n_squares }}u);
    //# else
    let square{{ n }}_{{ i }} = x_squares[{{ row }} * {{ n_squares }}u + {{ place }}];
    //# endif
    //# endfor
    var squares{{ n }} = square{{ n }}_0;
    //# for i in range(1, (n_squares + subgroup - 1) // subgroup)
    squares{{ n }} += square{{ n }}_{{ i }};
    //# endfor
    let factor{{ n }} = row_factor(squares{{ n }}, p.x_cols, p.x_eps);
