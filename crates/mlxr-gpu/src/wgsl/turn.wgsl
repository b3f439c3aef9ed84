// Rotates four columns of a head; needs `angles`, cosine and sine by pair.

//# if is_interleaved
// Two pairs, from number `at` of the angles on.
fn turn(x: vec4<f32>, at: u32) -> vec4<f32> {
    let a = x.xz;
    let b = x.yw;
    let c = vec2(angles[at].x, angles[at + 1u].x);
    let s = vec2(angles[at].y, angles[at + 1u].y);
    let first = fma(a, c, -(b * s));
    let second = fma(b, c, a * s);
    return vec4(first.x, second.x, first.y, second.y);
}
//# else
// The first or second halves of four pairs, from number `at` of the angles on; `other` are the other halves.
fn turn(x: vec4<f32>, other: vec4<f32>, at: u32, is_second: bool) -> vec4<f32> {
    let c = vec4(angles[at].x, angles[at + 1u].x, angles[at + 2u].x, angles[at + 3u].x);
    let s = vec4(angles[at].y, angles[at + 1u].y, angles[at + 2u].y, angles[at + 3u].y);
    let across = other * s;
    return fma(x, c, select(-across, across, is_second));
}
//# endif
