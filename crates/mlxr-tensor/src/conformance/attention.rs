//! Attention over the paged cache: values against the reference, and the same bits in every company.

use std::ops::Range;

use super::data::Noise;
use super::{BLOCK_CACHE_TOLERANCE, FUNCTION_TOLERANCE, assert_close, assert_same_bits, read, reference};
use crate::{
    AttentionSpec, Backend, Batch, BlockCopy, DType, HostTensor, KvCache, KvLayerSpec, KvSpec, Reach, Rope,
    RopePairing, codec,
};

/// One configuration of heads, cache and masking.
#[derive(Clone, Debug)]
struct Case {
    n_heads: usize,
    n_kv_heads: usize,
    k_dim: usize,
    v_dim: usize,
    block_tokens: usize,
    dtype: DType,
    reach: Reach,
    window: Option<u32>,
    softcap: Option<f32>,
    sinks: bool,
    /// Tokens of each sequence.
    lens: Vec<usize>,
    /// Only the last so many rows of a sequence are compared with the reference.
    compared: usize,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            n_heads: 4,
            n_kv_heads: 2,
            k_dim: 64,
            v_dim: 64,
            block_tokens: 16,
            dtype: DType::F32,
            reach: Reach::Causal,
            window: None,
            softcap: None,
            sinks: false,
            lens: vec![1, 21, 5, 50],
            compared: usize::MAX,
        }
    }
}

/// A sequence's queries, keys and values, a row per token.
struct Sequence {
    n_tokens: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    block_table: Vec<u32>,
}

struct Scene<'a> {
    backend: &'a dyn Backend,
    case: Case,
    spec: AttentionSpec,
    sink_values: Vec<f32>,
    sequences: Vec<Sequence>,
    n_blocks: usize,
}

impl<'a> Scene<'a> {
    fn new(backend: &'a dyn Backend, case: Case) -> Self {
        let mut noise = Noise::new(11);
        let blocks_of = |len: usize| len.div_ceil(case.block_tokens);
        let n_blocks = case.lens.iter().map(|&len| blocks_of(len)).sum::<usize>() + 3;
        // Blocks are handed out in random order: no sequence's are contiguous.
        let mut free = noise.permutation(n_blocks);
        let sequences = case.lens.iter().map(|&n_tokens| Sequence {
            n_tokens,
            q: noise.values(n_tokens * case.n_heads * case.k_dim),
            k: noise.values(n_tokens * case.n_kv_heads * case.k_dim),
            v: noise.values(n_tokens * case.n_kv_heads * case.v_dim),
            block_table: free.split_off(free.len() - blocks_of(n_tokens)),
        });
        let sequences: Vec<Sequence> = sequences.collect();
        let sink_values = noise.values(case.n_heads);
        let sinks = case.sinks.then(|| {
            let tensor = HostTensor::from_f32("sinks", &[case.n_heads], &sink_values).expect("sizes fit");
            backend.upload(&tensor).expect("a vector of f32")
        });
        let spec = AttentionSpec {
            n_heads: case.n_heads,
            scale: 1.0 / (case.k_dim as f32).sqrt(),
            reach: case.reach,
            window: case.window,
            softcap: case.softcap,
            sinks,
        };
        Self { backend, case, spec, sink_values, sequences, n_blocks }
    }

    /// A cache of two layers; the first has another shape, so that a wrong layer index shows.
    fn cache(&self) -> KvCache {
        let Case { n_kv_heads, k_dim, v_dim, block_tokens, dtype, .. } = self.case;
        let layer = KvLayerSpec { n_kv_heads, k_dim, v_dim };
        let first = KvLayerSpec { n_kv_heads: 1, k_dim: 64, v_dim: 64 };
        let spec = KvSpec { n_blocks: self.n_blocks, block_tokens, dtype, layers: vec![first, layer] };
        self.backend.kv_cache(&spec).expect("a small cache")
    }

    /// As [`Self::cache`], full of what is no number, or infinite.
    fn spoiled_cache(&self) -> KvCache {
        let (mut kv, case) = (self.cache(), &self.case);
        let n_rows = self.n_blocks * case.block_tokens;
        let table: Vec<u32> = (0..self.n_blocks as u32).collect();
        let mut batch = Batch::new();
        batch.push(&vec![0; n_rows], 0, &table, case.block_tokens);
        let wild = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        let act = |dim: usize| {
            let cols = case.n_kv_heads * dim;
            let values: Vec<f32> = wild.into_iter().cycle().take(n_rows * cols).collect();
            self.backend.act(n_rows, cols, &values)
        };
        self.backend.store_kv(&mut kv, 1, &act(case.k_dim), &act(case.v_dim), &batch);
        kv
    }

    /// Stores and attends the given tokens of the given sequences in one batch; the result rows in that order.
    fn step(&self, kv: &mut KvCache, parts: &[(usize, Range<usize>)]) -> Vec<f32> {
        let case = &self.case;
        let mut batch = Batch::new();
        let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
        for (seq, tokens) in parts {
            let s = &self.sequences[*seq];
            let ids = vec![0u32; tokens.len()];
            let n_blocks = tokens.end.div_ceil(case.block_tokens);
            batch.push(&ids, tokens.start as u32, &s.block_table[..n_blocks], case.block_tokens);
            let cut = |values: &[f32], per_token: usize| {
                values[tokens.start * per_token..tokens.end * per_token].to_vec()
            };
            q.extend(cut(&s.q, case.n_heads * case.k_dim));
            k.extend(cut(&s.k, case.n_kv_heads * case.k_dim));
            v.extend(cut(&s.v, case.n_kv_heads * case.v_dim));
        }
        let act = |values: &[f32]| self.backend.act(batch.n_rows(), values.len() / batch.n_rows(), values);
        self.backend.store_kv(kv, 1, &act(&k), &act(&v), &batch);
        let out = self.backend.attention(&act(&q), kv, 1, &batch, &self.spec);
        assert_eq!((out.rows(), out.cols()), (batch.n_rows(), case.n_heads * case.v_dim));
        read(self.backend, &out)
    }

    /// The reference result of one row.
    fn expected(&self, seq: &Sequence, row: usize, stored: &(Vec<f32>, Vec<f32>)) -> Vec<f64> {
        let case = &self.case;
        let start = case.window.map_or(0, |w| (row + 1).saturating_sub(w as usize));
        let end = match case.reach {
            Reach::Causal => row + 1,
            Reach::Both => case.window.map_or(seq.n_tokens, |w| (row + w as usize).min(seq.n_tokens)),
        };
        let mut out = Vec::new();
        for head in 0..case.n_heads {
            let kv_head = head / (case.n_heads / case.n_kv_heads);
            let gather = |values: &[f32], dim: usize| -> Vec<f32> {
                let row_of = |t: usize| (t * case.n_kv_heads + kv_head) * dim;
                (start..end).flat_map(|t| values[row_of(t)..row_of(t) + dim].to_vec()).collect()
            };
            let (keys, values) = (gather(&stored.0, case.k_dim), gather(&stored.1, case.v_dim));
            let query = &seq.q[(row * case.n_heads + head) * case.k_dim..][..case.k_dim];
            let over = reference::Attended {
                keys: &keys,
                values: &values,
                v_dim: case.v_dim,
                scale: self.spec.scale,
                softcap: case.softcap,
                sink: case.sinks.then(|| self.sink_values[head]),
            };
            out.extend(reference::attention(query, &over));
        }
        out
    }

    /// What the cache holds after rounding to its type.
    fn stored(&self, values: &[f32], dim: usize) -> Vec<f32> {
        let dtype = self.case.dtype;
        let bytes = codec::quantise(dtype, values, dim, None).expect("a cache type");
        let rows = values.len() / dim;
        HostTensor::new("kv", &[rows, dim], dtype, bytes.into())
            .expect("sizes fit")
            .to_f32()
            .expect("numbers")
    }

    fn check(&self) {
        let case = &self.case;
        let whole: Vec<(usize, Range<usize>)> =
            self.sequences.iter().enumerate().map(|(i, s)| (i, 0..s.n_tokens)).collect();
        let together = self.step(&mut self.cache(), &whole);
        let row_len = case.n_heads * case.v_dim;
        let mut first_row = 0;
        for (i, sequence) in self.sequences.iter().enumerate() {
            let results = &together[first_row * row_len..(first_row + sequence.n_tokens) * row_len];
            first_row += sequence.n_tokens;
            let stored = (self.stored(&sequence.k, case.k_dim), self.stored(&sequence.v, case.v_dim));
            let tolerance =
                if case.dtype.is_quantised() { BLOCK_CACHE_TOLERANCE } else { FUNCTION_TOLERANCE };
            for row in sequence.n_tokens.saturating_sub(case.compared)..sequence.n_tokens {
                let expected = self.expected(sequence, row, &stored);
                let got = &results[row * row_len..(row + 1) * row_len];
                assert_close(got, &expected, tolerance, &format!("{case:?}: sequence {i}, row {row}"));
            }
            // A row that sees ahead needs its whole sequence in the step.
            let chunkings = match case.reach {
                Reach::Causal => chunkings(sequence.n_tokens),
                Reach::Both => vec![vec![0, sequence.n_tokens]],
            };
            for cuts in chunkings {
                let mut kv = self.cache();
                for cut in cuts.windows(2) {
                    let (start, end) = (cut[0], cut[1]);
                    let alone = self.step(&mut kv, &[(i, start..end)]);
                    let what = format!("{case:?}: sequence {i}, rows {start}..{end} alone");
                    assert_same_bits(&alone, &results[start * row_len..end * row_len], &what);
                }
            }
        }
    }
}

/// Ways to cut `n` rows into steps, as the cuts' positions: at once, one by one, by sevens; long ones in large chunks
/// that end one by one.
fn chunkings(n: usize) -> Vec<Vec<usize>> {
    let by = |step: usize, end: usize| (0..end).step_by(step).chain([end]).collect::<Vec<usize>>();
    if n <= 64 {
        return vec![by(n, n), by(1, n), by(7, n)];
    }
    let mut long = by(257, n - 3);
    long.extend([n - 2, n - 1, n]);
    vec![by(n, n), long]
}

pub(super) fn head_sizes(backend: &dyn Backend) {
    for dim in [64, 80, 96, 112, 128, 160, 192, 256] {
        for (block_tokens, dtype) in [(16, DType::F32), (32, DType::F16)] {
            let case = Case { k_dim: dim, v_dim: dim, block_tokens, dtype, ..Case::default() };
            Scene::new(backend, case).check();
        }
    }
}

pub(super) fn variants(backend: &dyn Backend) {
    let base = Case::default;
    let cases = [
        Case { dtype: DType::BF16, ..base() },
        Case { dtype: DType::Q8_0, block_tokens: 32, ..base() },
        Case { dtype: DType::Q8_0, k_dim: 96, v_dim: 96, ..base() },
        Case { dtype: DType::Q4_0, k_dim: 128, v_dim: 64, ..base() },
        Case { dtype: DType::Q4_0, n_heads: 8, n_kv_heads: 2, block_tokens: 32, ..base() },
        Case { dtype: DType::F8E4M3, k_dim: 80, v_dim: 80, ..base() },
        Case { dtype: DType::F8E4M3, k_dim: 192, v_dim: 128, block_tokens: 32, ..base() },
        Case { n_heads: 8, n_kv_heads: 1, ..base() },
        Case { n_heads: 3, n_kv_heads: 3, ..base() },
        Case { n_heads: 14, n_kv_heads: 2, dtype: DType::F16, ..base() },
        Case { k_dim: 192, v_dim: 128, dtype: DType::F16, ..base() },
        Case { k_dim: 64, v_dim: 96, ..base() },
        Case { window: Some(1), ..base() },
        Case { window: Some(7), dtype: DType::F16, ..base() },
        Case { window: Some(32), ..base() },
        Case { softcap: Some(2.0), ..base() },
        Case { sinks: true, ..base() },
        Case { sinks: true, window: Some(9), softcap: Some(5.0), dtype: DType::BF16, ..base() },
    ];
    for case in cases {
        Scene::new(backend, case).check();
    }
}

pub(super) fn long(backend: &dyn Backend) {
    for (window, dtype) in [(None, DType::F16), (Some(700), DType::F32)] {
        let lens = vec![1100, 3, 513];
        let case = Case { window, dtype, n_heads: 2, n_kv_heads: 1, lens, compared: 3, ..Case::default() };
        Scene::new(backend, case).check();
    }
    // Backends may divide short ones, and the longest, in other ways.
    let several = || Case { lens: vec![300, 3], compared: 3, ..Case::default() };
    let cases = [
        Case { sinks: true, window: Some(270), softcap: Some(5.0), dtype: DType::BF16, ..several() },
        Case { dtype: DType::Q8_0, block_tokens: 32, ..several() },
        Case { dtype: DType::Q4_0, k_dim: 128, v_dim: 64, ..several() },
        Case { dtype: DType::F8E4M3, k_dim: 192, v_dim: 128, ..several() },
        Case { n_heads: 14, n_kv_heads: 2, k_dim: 80, v_dim: 80, dtype: DType::F16, ..several() },
    ];
    for case in cases {
        Scene::new(backend, case).check();
    }
    let lens = vec![5200, 5];
    let dims = Case { k_dim: 32, v_dim: 32, n_heads: 2, n_kv_heads: 1, ..Case::default() };
    let longest = Case { dtype: DType::F16, lens, compared: 3, ..dims };
    Scene::new(backend, longest).check();
}

/// What a cache held before, in blocks of nobody or behind a sequence's end, changes no bit.
pub(super) fn spoiled(backend: &dyn Backend) {
    let base = || Case { lens: vec![1, 21, 50], ..Case::default() };
    let long = || Case { lens: vec![300, 5], n_heads: 2, n_kv_heads: 1, ..Case::default() };
    let dtypes = [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0, DType::F8E4M3];
    let cases = dtypes.into_iter().map(|dtype| Case { dtype, ..base() }).chain([
        Case { dtype: DType::F16, k_dim: 80, v_dim: 80, block_tokens: 32, ..base() },
        Case { dtype: DType::F16, window: Some(7), sinks: true, ..base() },
        Case { reach: Reach::Both, window: Some(9), ..base() },
        Case { dtype: DType::F16, ..long() },
        Case { dtype: DType::Q8_0, window: Some(270), ..long() },
    ]);
    for case in cases {
        let scene = Scene::new(backend, case.clone());
        for (i, sequence) in scene.sequences.iter().enumerate() {
            let chunkings = match case.reach {
                Reach::Causal => chunkings(sequence.n_tokens),
                Reach::Both => vec![vec![0, sequence.n_tokens]],
            };
            for cuts in chunkings {
                let (mut fresh, mut spoiled) = (scene.cache(), scene.spoiled_cache());
                for cut in cuts.windows(2) {
                    let part = [(i, cut[0]..cut[1])];
                    let (expected, got) = (scene.step(&mut fresh, &part), scene.step(&mut spoiled, &part));
                    let what = format!("{case:?}: sequence {i}, rows {}..{}", cut[0], cut[1]);
                    assert!(expected.iter().all(|value| value.is_finite()), "{what}");
                    assert_same_bits(&got, &expected, &what);
                }
            }
        }
    }
}

pub(super) fn both_ways(backend: &dyn Backend) {
    let base = || Case { reach: Reach::Both, ..Case::default() };
    let long = || Case { lens: vec![1100, 3, 513], n_heads: 2, n_kv_heads: 2, compared: 3, ..base() };
    let cases = [
        base(),
        Case { n_heads: 12, n_kv_heads: 12, k_dim: 32, v_dim: 32, ..base() },
        Case { window: Some(1), ..base() },
        Case { window: Some(9), dtype: DType::F16, ..base() },
        Case { softcap: Some(2.0), sinks: true, ..base() },
        long(),
        Case { window: Some(65), ..long() },
    ];
    for case in cases {
        Scene::new(backend, case).check();
    }
}

/// A forked sequence reads the same after its shared block was copied, and the original is left alone.
pub(super) fn copies(backend: &dyn Backend) {
    for dtype in [DType::F32, DType::Q8_0, DType::Q4_0, DType::F8E4M3] {
        let scene = Scene::new(backend, Case { dtype, lens: vec![20], ..Case::default() });
        let mut kv = scene.cache();
        scene.step(&mut kv, &[(0, 0..19)]);
        let expected = scene.step(&mut scene_with_prefix(&scene), &[(0, 19..20)]);
        let table = &scene.sequences[0].block_table;
        let spare = (0..scene.n_blocks as u32).find(|b| !table.contains(b)).expect("a spare block");
        backend.copy_blocks(&mut kv, &[BlockCopy { from: table[1], to: spare }]);
        let mut fork = Scene::new(backend, scene.case.clone());
        fork.sequences[0].block_table[1] = spare;
        let forked = fork.step(&mut kv, &[(0, 19..20)]);
        assert_same_bits(&forked, &expected, &format!("{dtype}: the fork"));
        let original = scene.step(&mut kv, &[(0, 19..20)]);
        assert_same_bits(&original, &expected, &format!("{dtype}: the original"));
        // Out of the arena and into another one, at other places.
        let held = backend.read_blocks(&kv, &[table[1], table[0]]).expect("the device works");
        let mut other = scene.cache();
        let mut moved = Scene::new(backend, scene.case.clone());
        moved.sequences[0].block_table[..2].copy_from_slice(&[spare, table[1]]);
        backend.write_blocks(&mut other, &[table[1], spare], &held);
        let returned = moved.step(&mut other, &[(0, 19..20)]);
        assert_same_bits(&returned, &expected, &format!("{dtype}: blocks that were away"));
    }
}

/// A cache that holds all but the last token of the scene's sequence.
fn scene_with_prefix(scene: &Scene<'_>) -> KvCache {
    let mut kv = scene.cache();
    let last = scene.sequences[0].n_tokens - 1;
    scene.step(&mut kv, &[(0, 0..last)]);
    kv
}

/// Rotating and storing in one op, against the ops it stands for.
pub(super) fn rotated_and_stored(backend: &dyn Backend) {
    let pairings = [RopePairing::Half, RopePairing::Interleaved];
    let cases = [
        (DType::F32, 32),
        (DType::F16, 32),
        (DType::F16, 16),
        (DType::F16, 12),
        (DType::Q8_0, 32),
        (DType::Q4_0, 32),
        (DType::F8E4M3, 32),
    ];
    for (dtype, n_pairs) in cases {
        for pairing in pairings {
            let inv_freq = (0..n_pairs).map(|i| 0.7f32.powi(i)).collect();
            let rope = Rope::new(pairing, inv_freq, 1.25);
            let scene = Scene::new(backend, Case { dtype, ..Case::default() });
            let (mut apart, mut together) = (scene.cache(), scene.cache());
            for sequence in &scene.sequences {
                let mut batch = Batch::new();
                let tokens = vec![0; sequence.n_tokens];
                batch.push(&tokens, 0, &sequence.block_table, scene.case.block_tokens);
                let act =
                    |values: &[f32]| backend.act(sequence.n_tokens, values.len() / sequence.n_tokens, values);
                let (mut q, mut k, v) = (act(&sequence.q), act(&sequence.k), act(&sequence.v));
                backend.rope(&mut q, scene.case.k_dim, &rope, &batch);
                backend.rope(&mut k, scene.case.k_dim, &rope, &batch);
                backend.store_kv(&mut apart, 1, &k, &v, &batch);
                let mut q_together = act(&sequence.q);
                let rows = (&mut q_together, act(&sequence.k), &v);
                backend.rope_and_store(rows, &rope, &mut together, 1, &batch);
                let case = format!("{dtype} with {n_pairs} pairs, {pairing:?}");
                assert_same_bits(&read(backend, &q_together), &read(backend, &q), &case);
                let attend = |kv: &KvCache| read(backend, &backend.attention(&q, kv, 1, &batch, &scene.spec));
                assert_same_bits(&attend(&together), &attend(&apart), &case);
            }
        }
    }
}

/// Rotating, storing and attending in one op, against the ops it stands for: tokens one by one, some sequences a step.
pub(super) fn rotated_and_attended(backend: &dyn Backend) {
    let cases = [
        (Case::default(), 32),
        (Case { dtype: DType::F16, n_heads: 14, n_kv_heads: 1, ..Case::default() }, 16),
        (Case { dtype: DType::BF16, k_dim: 128, v_dim: 96, window: Some(20), ..Case::default() }, 64),
        (Case { dtype: DType::F16, sinks: true, lens: vec![300, 3, 140], ..Case::default() }, 24),
        (Case { dtype: DType::Q8_0, ..Case::default() }, 32),
        (Case { dtype: DType::Q4_0, ..Case::default() }, 32),
        (Case { dtype: DType::F8E4M3, n_heads: 8, ..Case::default() }, 24),
    ];
    for ((case, n_pairs), pairing) in
        cases.into_iter().flat_map(|c| [(c.clone(), RopePairing::Half), (c, RopePairing::Interleaved)])
    {
        let rope = Rope::new(pairing, (0..n_pairs).map(|i| 0.7f32.powi(i)).collect(), 1.25);
        let scene = Scene::new(backend, case.clone());
        let (mut apart, mut together) = (scene.cache(), scene.spoiled_cache());
        let longest = scene.sequences.iter().map(|s| s.n_tokens).max().unwrap_or(0);
        // The first half as prompts.
        let steps = std::iter::once(0..longest / 2).chain((longest / 2..longest).map(|t| t..t + 1));
        for tokens in steps {
            let mut batch = Batch::new();
            let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
            for s in scene.sequences.iter().filter(|s| s.n_tokens > tokens.start) {
                let tokens = tokens.start..tokens.end.min(s.n_tokens);
                let ids = vec![0; tokens.len()];
                batch.push(&ids, tokens.start as u32, &s.block_table, case.block_tokens);
                let cut = |values: &[f32], per_token: usize| {
                    values[tokens.start * per_token..tokens.end * per_token].to_vec()
                };
                q.extend(cut(&s.q, case.n_heads * case.k_dim));
                k.extend(cut(&s.k, case.n_kv_heads * case.k_dim));
                v.extend(cut(&s.v, case.n_kv_heads * case.v_dim));
            }
            let act = |values: &[f32]| backend.act(batch.n_rows(), values.len() / batch.n_rows(), values);
            let mut turned = act(&q);
            backend.rope_and_store((&mut turned, act(&k), &act(&v)), &rope, &mut apart, 1, &batch);
            let expected = read(backend, &backend.attention(&turned, &apart, 1, &batch, &scene.spec));
            let rows = (act(&q), act(&k), &act(&v));
            let got = backend.rotate_and_attend(rows, (&rope, &scene.spec), &mut together, 1, &batch);
            let what = format!("{case:?}, {n_pairs} pairs, {pairing:?}: tokens {tokens:?}");
            assert_same_bits(&read(backend, &got), &expected, &what);
        }
    }
}
