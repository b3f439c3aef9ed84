// Functions whose built-in forms differ between drivers or overflow.

fn sigmoid(x: f32) -> f32 {
    // exp of what is never positive cannot overflow.
    let e = exp(-abs(x));
    return select(e, 1.0, x >= 0.0) / (1.0 + e);
}

fn tanh_stable(x: f32) -> f32 {
    let a = abs(x);
    if (a < 0.05) {
        // The quotient below cancels here.
        let s = x * x;
        return x * fma(s, fma(s, 0.13333334, -0.33333334), 1.0);
    }
    let e = exp(-2.0 * a);
    return sign(x) * (1.0 - e) / (1.0 + e);
}

// Abramowitz and Stegun 7.1.26, absolute error 1.5e-7.
fn erf(x: f32) -> f32 {
    let a = abs(x);
    let t = 1.0 / fma(0.3275911, a, 1.0);
    let p = fma(t, fma(t, fma(t, fma(t, 1.0614054, -1.4531521), 1.4214138), -0.28449672), 0.2548296);
    return sign(x) * fma(-p * t, exp(-a * a), 1.0);
}

fn silu(x: f32) -> f32 {
    return x * sigmoid(x);
}

fn gelu(x: f32) -> f32 {
    return 0.5 * x * (1.0 + erf(x * 0.70710677));
}

// 0.5 (1 + tanh(u)) is sigmoid(2u).
fn gelu_tanh(x: f32) -> f32 {
    return x * sigmoid(2.0 * 0.7978846 * fma(0.044715 * x * x, x, x));
}
