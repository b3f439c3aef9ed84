// Norms over whole chunks of 32 columns: the squares of a chunk are added by its eight lanes, those of a row's chunks by the
// lanes of a subgroup in turn, in the same order wherever that is done.

// Of the chunk to which a lane's four columns belong.
fn chunk_squares(v: vec4<f32>) -> f32 {
    var sum = fma(v.w, v.w, fma(v.z, v.z, fma(v.y, v.y, v.x * v.x)));
    sum += subgroupShuffleXor(sum, 1u);
    sum += subgroupShuffleXor(sum, 2u);
    return sum + subgroupShuffleXor(sum, 4u);
}

// What scales a row, from the squares that a lane has added.
fn row_factor(squares: f32, cols: f32, eps: f32) -> f32 {
    return 1.0 / sqrt(lanes_add(squares) / cols + eps);
}
