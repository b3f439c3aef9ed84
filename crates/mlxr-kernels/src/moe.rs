//! Mixture of experts: which experts a row goes to, and the way back.

use mlxr_tensor::{RouterSpec, Routing};

use crate::disjoint::for_each_row;
use crate::kernels::Kernels;
use crate::pool::ThreadPool;

/// What stands behind a `Routing` of this backend: `[rows, top_k]` each.
pub(crate) struct CpuRouting {
    pub(crate) experts: Vec<u32>,
    pub(crate) weights: Vec<f32>,
}

/// Picks the `top_k` experts of each row of `logits: [rows, n_experts]`.
pub(crate) fn route(kernels: &Kernels, logits: &[f32], n_experts: usize, spec: &RouterSpec) -> CpuRouting {
    assert!(spec.top_k <= n_experts, "{} of {n_experts} experts", spec.top_k);
    let n = logits.len() / n_experts.max(1) * spec.top_k;
    let mut routing = CpuRouting { experts: Vec::with_capacity(n), weights: Vec::with_capacity(n) };
    let mut order: Vec<u32> = Vec::with_capacity(n_experts);
    for row in logits.chunks_exact(n_experts.max(1)) {
        order.clear();
        order.extend(0..n_experts as u32);
        // The sort is stable: equal logits stay in index order.
        order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
        let chosen = &order[..spec.top_k];
        let of_chosen: Vec<f32> = chosen.iter().map(|&e| row[e as usize]).collect();
        let mut over = if spec.softmax_over_all { row.to_vec() } else { of_chosen.clone() };
        let max = kernels.max(&over);
        let sum = kernels.exp_sum(&mut over, max);
        routing.experts.extend_from_slice(chosen);
        routing.weights.extend(of_chosen.iter().map(|&logit| kernels.exp(logit - max) / sum));
    }
    routing
}

/// For each expert that was chosen: its index and the `(input row, result row)` pairs it serves, in row order.
pub(crate) fn group_by_expert(
    routing: &CpuRouting,
    n_experts: usize,
    input_row: impl Fn(usize) -> usize,
) -> Vec<(usize, Vec<(u32, u32)>)> {
    let mut groups: Vec<Vec<(u32, u32)>> = vec![Vec::new(); n_experts];
    for (choice, &expert) in routing.experts.iter().enumerate() {
        groups[expert as usize].push((input_row(choice) as u32, choice as u32));
    }
    groups.into_iter().enumerate().filter(|(_, pairs)| !pairs.is_empty()).collect()
}

/// The weighted sum of each row's expert results, choices in order.
pub(crate) fn combine(kernels: &Kernels, pool: &ThreadPool, x: &[f32], routing: &Routing, out: &mut [f32]) {
    let weights = &routing.handle::<CpuRouting>().weights;
    let top_k = routing.top_k();
    let row_len = out.len() / routing.n_rows().max(1);
    for_each_row(pool, out, row_len, |row, out| {
        let choices = row * top_k..(row + 1) * top_k;
        out.fill(0.0);
        kernels.weighted_sum(
            out,
            &weights[choices.clone()],
            &x[choices.start * row_len..choices.end * row_len],
        );
    });
}
