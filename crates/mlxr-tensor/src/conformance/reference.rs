//! Plain forms of the ops in f64, as their definitions read.

use crate::{Activation, Gate, RopePairing};

/// `x: [rows, cols]` times the transpose of `w: [out, cols]`, plus `bias`.
pub fn linear(x: &[f32], w: &[f32], bias: Option<&[f32]>, cols: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for x in x.chunks_exact(cols) {
        for (o, w) in w.chunks_exact(cols).enumerate() {
            let sum: f64 = x.iter().zip(w).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            out.push(sum + bias.map_or(0.0, |b| f64::from(b[o])));
        }
    }
    out
}

/// `x / sqrt(mean(x^2) + eps) * weight` over groups of `weight.len()`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f64> {
    let mut out = Vec::new();
    for x in x.chunks_exact(weight.len()) {
        let mean = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / x.len() as f64;
        let factor = 1.0 / (mean + f64::from(eps)).sqrt();
        out.extend(x.iter().zip(weight).map(|(&v, &w)| f64::from(v) * factor * f64::from(w)));
    }
    out
}

/// `(x - mean) / sqrt(variance + eps) * weight + bias` over groups of `weight.len()`.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32) -> Vec<f64> {
    let mut out = Vec::new();
    for x in x.chunks_exact(weight.len()) {
        let n = x.len() as f64;
        let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        let factor = 1.0 / (variance + f64::from(eps)).sqrt();
        out.extend(x.iter().zip(weight).enumerate().map(|(i, (&v, &w))| {
            (f64::from(v) - mean) * factor * f64::from(w) + bias.map_or(0.0, |b| f64::from(b[i]))
        }));
    }
    out
}

/// One element of an ungated MLP's middle.
pub fn activation(x: f32, kind: Activation) -> f64 {
    match kind {
        Activation::Gelu => gated(x, 1.0, Gate::Gelu),
        Activation::GeluTanh => gated(x, 1.0, Gate::GeluTanh),
        Activation::QuickGelu => f64::from(x) / (1.0 + (-1.702 * f64::from(x)).exp()),
        Activation::Silu => gated(x, 1.0, Gate::Silu),
        Activation::Relu => f64::from(x).max(0.0),
        Activation::Tanh => f64::from(x).tanh(),
    }
}

/// The error function: its Maclaurin series near 0, a continued fraction far out.
pub fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a < 3.0 {
        let (mut term, mut sum) = (a, a);
        for n in 1..100 {
            term *= -a * a / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return (sum * 2.0 / std::f64::consts::PI.sqrt()).copysign(x);
    }
    let fraction = (1..60).rev().fold(a, |f, n| a + f64::from(n) / 2.0 / f);
    (1.0 - (-a * a).exp() / (fraction * std::f64::consts::PI.sqrt())).copysign(x)
}

/// One element of the gated MLP's middle.
pub fn gated(gate: f32, up: f32, kind: Gate) -> f64 {
    let (g, u) = (f64::from(gate), f64::from(up));
    let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
    match kind {
        Gate::Silu => g * sigmoid(g) * u,
        Gate::Gelu => 0.5 * g * (1.0 + erf(g / std::f64::consts::SQRT_2)) * u,
        Gate::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3));
            0.5 * g * (1.0 + inner.tanh()) * u
        }
        Gate::ClampedSwiglu { alpha, limit } => {
            let (alpha, limit) = (f64::from(alpha), f64::from(limit));
            let (g, u) = (g.min(limit), u.clamp(-limit, limit));
            g * sigmoid(alpha * g) * (u + 1.0)
        }
    }
}

/// Rotates one head by `position`; angles are rounded to f32 as Hugging Face's implementation does.
pub fn rope(head: &[f32], position: u32, inv_freq: &[f32], magnitude: f32, pairing: RopePairing) -> Vec<f64> {
    let mut out: Vec<f64> = head.iter().map(|&v| f64::from(v)).collect();
    let half = inv_freq.len();
    for (i, &inv_freq) in inv_freq.iter().enumerate() {
        let (a, b) = match pairing {
            RopePairing::Half => (i, i + half),
            RopePairing::Interleaved => (2 * i, 2 * i + 1),
        };
        let angle = f64::from(position as f32 * inv_freq);
        let (sin, cos) = (angle.sin() * f64::from(magnitude), angle.cos() * f64::from(magnitude));
        let (x, y) = (f64::from(head[a]), f64::from(head[b]));
        out[a] = x * cos - y * sin;
        out[b] = y * cos + x * sin;
    }
    out
}

/// What one query head attends to.
pub struct Attended<'a> {
    /// `[n, k_dim]`: the keys the query sees, in order.
    pub keys: &'a [f32],
    /// `[n, v_dim]`
    pub values: &'a [f32],
    pub v_dim: usize,
    pub scale: f32,
    pub softcap: Option<f32>,
    pub sink: Option<f32>,
}

/// Softmax attention of one query head.
pub fn attention(query: &[f32], over: &Attended<'_>) -> Vec<f64> {
    let scores = over.keys.chunks_exact(query.len()).map(|key| {
        let dot: f64 = query.iter().zip(key).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        let score = dot * f64::from(over.scale);
        over.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
    });
    let scores: Vec<f64> = scores.collect();
    let sink = over.sink.map_or(f64::NEG_INFINITY, f64::from);
    let max = scores.iter().copied().fold(sink, f64::max);
    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum::<f64>() + (sink - max).exp();
    let mut out = vec![0f64; over.v_dim];
    for (score, value) in scores.iter().zip(over.values.chunks_exact(over.v_dim)) {
        let p = (score - max).exp() / sum;
        out.iter_mut().zip(value).for_each(|(o, &v)| *o += p * f64::from(v));
    }
    out
}

/// The experts of one row of router logits, best first, and their weights.
pub fn route(logits: &[f32], top_k: usize, softmax_over_all: bool) -> Vec<(usize, f64)> {
    let mut chosen: Vec<usize> = Vec::new();
    for _ in 0..top_k {
        let best = (0..logits.len())
            .filter(|e| !chosen.contains(e))
            .fold(None, |best: Option<usize>, e| best.filter(|&b| logits[b] >= logits[e]).or(Some(e)));
        chosen.extend(best);
    }
    let over: Vec<usize> = if softmax_over_all { (0..logits.len()).collect() } else { chosen.clone() };
    let sum: f64 = over.iter().map(|&e| f64::from(logits[e]).exp()).sum();
    chosen.into_iter().map(|e| (e, f64::from(logits[e]).exp() / sum)).collect()
}
