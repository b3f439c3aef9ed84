// The first and last position a row sees, both included; needs `p.window` and `p.sees_both`.
fn reach(row: vec4<u32>) -> vec2<u32> {
    var last = select(row.x, row.y, p.sees_both != 0u);
    var first = 0u;
    if (p.window != 0u) {
        first = max(row.x + 1u, p.window) - p.window;
        last = min(last, row.x + p.window - 1u);
    }
    return vec2(first, last);
}
