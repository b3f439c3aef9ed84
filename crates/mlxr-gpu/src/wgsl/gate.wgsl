// What joins the halves of a gated MLP; needs `p.alpha` and `p.limit`.

//# include "functions.wgsl"

fn gated(gate: f32, up: f32) -> f32 {
    //# if kind == "clamped_swiglu"
    let g = min(gate, p.limit);
    return g * sigmoid(p.alpha * g) * (clamp(up, -p.limit, p.limit) + 1.0);
    //# else
    return {{ kind }}(gate) * up;
    //# endif
}
