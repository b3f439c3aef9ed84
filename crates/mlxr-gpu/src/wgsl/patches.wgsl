// Row i of y is square i of the image: its pixels by channel, line and column.

struct Params {
    n: u32,
    // Columns of y, and pixels of a side of a square.
    cols: u32,
    side: u32,
    // Squares of a line of them.
    n_across: u32,
    height: u32,
    width: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> image: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

//# include "grid.wgsl"

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) n_wg: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = workgroup_index(wg, n_wg) * 256u + lane;
    if (i >= p.n) {
        return;
    }
    let square = i / p.cols;
    let pixel = i % p.cols;
    let channel = pixel / (p.side * p.side);
    let line = (square / p.n_across) * p.side + pixel / p.side % p.side;
    let column = (square % p.n_across) * p.side + pixel % p.side;
    y[i] = image[(channel * p.height + line) * p.width + column];
}
