//! Ops that bf16 products join, against the ops they stand for.

use std::sync::Arc;

use mlxr_tensor::conformance::data::{self, Noise};
use mlxr_tensor::{
    Act, AttentionSpec, Backend, Batch, DType, Format, Gate, KvLayerSpec, KvSpec, Reach, Rope, RopePairing,
    Weight,
};

use crate::acts::ActPool;
use crate::backend::{CpuBackend, CpuOptions};
use crate::equivalence::with_wide_products;
use crate::kernels::{DotWide, Kernels};
use crate::linear::codes::CodeKind;
use crate::linear::tiled::N_ROWS;
use crate::linear::wide::{BLOCK_FLOATS, BLOCK_ROWS, STEP_COLS, TILE_BYTES, WideActs, sums_at};

/// Rows from which on products are in bf16.
const FROM: usize = 32;

/// Backends that multiply floats in bf16, of some tables; the tests have no other weights.
fn backends(suits: impl Fn(&Kernels) -> bool) -> Vec<CpuBackend> {
    fn no_codes(_: CodeKind) -> DotWide {
        unreachable!("weights of floats")
    }
    let backend = |mut kernels: Kernels| {
        let wide = kernels.wide.as_mut()?;
        wide.unpacked.get_or_insert(no_codes);
        let backend =
            CpuBackend::new(CpuOptions { n_threads: Some(2), isa: Some(kernels.isa()) }).expect("a table");
        Some(backend.with_kernels(kernels))
    };
    with_wide_products().into_iter().filter(suits).filter_map(backend).collect()
}

fn weight(backend: &CpuBackend, dtype: DType, shape: &[usize], seed: u64) -> Weight {
    let tensor = data::tensor(Format::Plain(dtype), shape, &mut Noise::new(seed));
    backend.upload(&tensor).expect("a weight")
}

fn read(backend: &CpuBackend, act: &Act) -> Vec<f32> {
    backend.read(act).expect("numbers")
}

/// Values that differ by roundings to bf16 and those of what they were computed from.
fn assert_rounded(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let size = expected.iter().fold(0f32, |most, v| most.max(v.abs()));
    assert!(size > 0.0, "{what}: nothing but zeros");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= size * 2f32.powi(-6), "{what}: {i} is {got}, not {expected}");
    }
}

#[test]
fn rows_and_sums_are_packed_as_blocks_are() {
    for kernels in with_wide_products() {
        let (wide, memory) = (kernels.wide.expect("products in bf16"), Arc::<ActPool>::default());
        // A last row that shares its lines with none.
        let (n_rows, cols) = (BLOCK_ROWS - 1, 3 * STEP_COLS);
        let mut rows = Noise::new(6).values(BLOCK_ROWS * cols);
        rows[n_rows * cols..].fill(0.0);
        let rounded: Vec<f32> = rows.iter().map(|&v| half::bf16::from_f32(v).to_f32()).collect();
        let acts = || {
            let mut acts = WideActs::new(n_rows, cols, &memory);
            acts.bytes_mut().fill(0xff);
            acts
        };
        let (mut block, mut by_rows, mut by_sums) = (acts(), acts(), acts());
        let n = block.block_bytes().0;
        let some: Vec<&[f32]> = rows.chunks_exact(cols).take(n_rows).collect();
        // SAFETY: the table came from `Kernels::available`; a row at a time, and each has its lines.
        unsafe {
            (wide.pack)(&some, &mut block.bytes_mut()[..n]);
            let lines = by_rows.lines();
            for (i, row) in some.iter().enumerate() {
                (wide.pack_row)(&row[STEP_COLS..], lines.at(i, STEP_COLS..cols));
                (wide.pack_row)(&row[..STEP_COLS], lines.at(i, 0..STEP_COLS));
            }
            for (step, out) in by_sums.bytes_mut()[..n].chunks_exact_mut(2 * TILE_BYTES).enumerate() {
                let mut sums = [0f32; BLOCK_FLOATS];
                for (i, row) in rows.chunks_exact(cols).enumerate() {
                    for (col, &value) in row[step * STEP_COLS..][..STEP_COLS].iter().enumerate() {
                        sums[sums_at(1, i, col / N_ROWS) + col % N_ROWS] = value;
                    }
                }
                (wide.pack_sums)(&sums, out);
            }
        }
        for acts in [&block, &by_rows, &by_sums] {
            let mut read = vec![0f32; n_rows * cols];
            acts.unpack(cols, &mut read);
            assert_eq!(read, rounded[..n_rows * cols], "{kernels:?}");
            assert_eq!(acts.bytes()[..n], block.bytes()[..n], "{kernels:?}");
        }
    }
}

#[test]
fn gate_and_up_in_bf16_are_joined_as_they_are_apart() {
    // They are joined tile by tile.
    let has_tiles = |kernels: &Kernels| kernels.codes.put_in_order(Format::Plain(DType::F16)).is_some();
    for backend in backends(has_tiles) {
        for (dtype, n_out, cols, rows) in
            [(DType::F16, 96, 64, FROM), (DType::F32, 32, 2080, 45), (DType::BF16, 320, 96, 130)]
        {
            let matrix = |shape: [usize; 2], seed| weight(&backend, dtype, &shape, seed);
            let (gate, up, down) =
                (matrix([n_out, cols], 1), matrix([n_out, cols], 2), matrix([70, n_out], 3));
            let values = Noise::new(4).values(rows * cols);
            let x = backend.act(rows, cols, &values);
            for kind in [Gate::Silu, Gate::GeluTanh, Gate::ClampedSwiglu { alpha: 1.7, limit: 7.0 }] {
                let joined = backend.linear_gated(&x, (&gate, None), (&up, None), kind);
                let both = backend.linear_each(&x, &[(&gate, None), (&up, None)]);
                let apart = backend.gated(&both[0], &both[1], kind);
                // The instruction that rounds takes denormals for zeros.
                let round = |&v: &f32| {
                    if v.abs() < f32::MIN_POSITIVE { 0.0 } else { half::bf16::from_f32(v).to_f32() }
                };
                let rounded: Vec<f32> = read(&backend, &apart).iter().map(round).collect();
                // The same bits for the product that follows.
                let (a, b) = (backend.linear(&joined, &down, None), backend.linear(&apart, &down, None));
                assert_eq!(read(&backend, &a), read(&backend, &b), "{dtype} {rows}");
                assert_eq!(read(&backend, &joined), rounded, "{dtype} {rows}");
                // A row alone among others.
                let some = backend.act(FROM, cols, &values[..FROM * cols]);
                let some = backend.linear_gated(&some, (&gate, None), (&up, None), kind);
                assert_eq!(read(&backend, &some), rounded[..FROM * n_out], "{dtype} {rows}");
            }
        }
    }
}

#[test]
fn products_in_bf16_are_added_to_the_residual_and_normalised() {
    for backend in backends(|_| true) {
        for (n_out, cols, rows) in [(64, 32, FROM), (101, 2080, 33), (288, 1056, 64)] {
            let layer = weight(&backend, DType::F16, &[n_out, cols], 1);
            let norm = weight(&backend, DType::F32, &[n_out], 2);
            let x = backend.act(rows, cols, &Noise::new(3).values(rows * cols));
            let before = Noise::new(4).values(rows * n_out);
            for (scale, bias) in [(1.0, false), (0.5, false), (1.0, true)] {
                let vector = weight(&backend, DType::F32, &[n_out], 5);
                let layer = (&layer, bias.then_some(&vector));
                let [mut together, mut apart] = [0; 2].map(|_| backend.act(rows, n_out, &before));
                let got = backend.linear_add_rms_norm(&mut together, (&x, layer), scale, &norm, 1e-5);
                backend.add(&mut apart, &backend.linear(&x, layer.0, layer.1), scale);
                let expected = backend.rms_norm(&apart, &norm, 1e-5);
                let (sums, others) = (read(&backend, &together), read(&backend, &apart));
                for (sum, other) in sums.iter().zip(&others) {
                    assert!((sum - other).abs() <= 1e-5 * cols as f32, "{n_out} {rows}: {sum}, not {other}");
                }
                assert_rounded(&read(&backend, &got), &read(&backend, &expected), "norm");
            }
        }
    }
}

#[test]
fn attention_in_bf16_rotates_queries_and_packs_results_as_it_does_apart() {
    for backend in backends(|_| true) {
        // Heads of one KV head that are a whole number of steps of columns, and ones that are not.
        for (n_heads, n_kv_heads, dim, rows) in
            [(8, 1, 64, 70), (4, 4, 32, 33), (2, 2, 48, 40), (16, 2, 32, 290)]
        {
            let spec = KvSpec {
                n_blocks: rows / 16 + 2,
                block_tokens: 16,
                dtype: DType::F16,
                layers: vec![KvLayerSpec { n_kv_heads, k_dim: dim, v_dim: dim }],
            };
            let attention = AttentionSpec {
                n_heads,
                scale: 0.2,
                reach: Reach::Causal,
                window: None,
                softcap: None,
                sinks: None,
            };
            let rope = Rope::new(RopePairing::Half, (1..=dim / 2).map(|i| 1.0 / i as f32).collect(), 1.0);
            let table: Vec<u32> = (0..rows as u32 / 16 + 1).rev().collect();
            let mut batch = Batch::new();
            batch.push(&vec![1; rows], 0, &table, 16);
            let act = |heads: usize, seed| {
                backend.act(rows, heads * dim, &Noise::new(seed).values(rows * heads * dim))
            };
            let (v, layer) = (act(n_kv_heads, 3), weight(&backend, DType::F32, &[64, n_heads * dim], 4));
            let mut kv = backend.kv_cache(&spec).expect("memory");
            let parts = (act(n_heads, 1), act(n_kv_heads, 2), &v);
            let got = backend.rotate_and_attend(parts, (&rope, &attention), &mut kv, 0, &batch);
            let (mut q, k) = (act(n_heads, 1), act(n_kv_heads, 2));
            backend.rope_and_store((&mut q, k, &v), &rope, &mut kv, 0, &batch);
            let apart = backend.attention(&q, &kv, 0, &batch, &attention);
            let [a, b] = [&got, &apart].map(|x| read(&backend, &backend.linear(x, &layer, None)));
            assert_eq!(a, b, "{n_heads} heads of {dim}");
            let plain = CpuBackend::new(CpuOptions { n_threads: Some(2), isa: None }).expect("a CPU");
            let mut kv = plain.kv_cache(&spec).expect("memory");
            let parts = (act(n_heads, 1), act(n_kv_heads, 2), &v);
            let exact = plain.rotate_and_attend(parts, (&rope, &attention), &mut kv, 0, &batch);
            assert_rounded(&read(&backend, &got), &read(&plain, &exact), "attention");
        }
    }
}
