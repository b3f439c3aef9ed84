// What a matvec is told.
struct Params {
    n_chunks: u32,
    n_groups: u32,
    n_out: u32,
    n_rows: u32,
    y_stride: u32,
    y_start: u32,
    has_bias: u32,
    // Experts: rows of x per choice of an expert, rows of one expert.
    choices_per_row: u32,
    first_out: u32,
    group: u32,
    // Columns of x, and what keeps its norm finite, where it is still to be scaled.
    x_cols: f32,
    x_eps: f32,
    //# if kind is defined
    has_up_bias: u32,
    alpha: f32,
    limit: f32,
    //# elif is_normed is defined
    scale: f32,
    //# endif
}
var<immediate> p: Params;
