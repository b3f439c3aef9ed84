// Rows as operands of matrices: sixteen rows at a time and 128 columns of them, eight matrices of 16 by 16 after each other, the
// eight elements of a lane together. Lanes 4g to 4g + 3 have rows g and g + 8, and a chunk of columns each; matrix q has four
// columns of each chunk, those from 4q on, in the order 0, 2, 1, 3.

// Where four columns of a row are, in fours.
fn fragment_place(row: u32, quad: u32, n_quads: u32) -> u32 {
    let lane = (row & 7u) * 4u + ((quad >> 3u) & 3u);
    let matrix = (quad >> 5u) * 8u + (quad & 7u);
    return (row >> 4u) * 16u * n_quads + (matrix * 32u + lane) * 2u + ((row >> 3u) & 1u);
}
