//! Attention over the paged cache, with an online softmax (Milakov and Gimelshein, arXiv 1805.02867).
//!
//! A query meets its KV blocks in order, cut into units of [`UNIT_TOKENS`]; units form segments of [`SEGMENT_TOKENS`] that start at fixed positions, each
//! with a softmax state of its own, and the states are merged in order. Nothing in that order depends on the batch, on
//! chunking or on the number of threads, so a row's result never does either.

use std::cell::RefCell;
use std::ops::Range;

use mlxr_tensor::{AttentionSpec, Batch, DType, Format, Reach, Span};

use crate::aligned::{as_bytes, prefetch};
use crate::disjoint::{Disjoint, split};
use crate::kernels::{Attend, DotFloats, Kernels, Softmax, TILE, Unit, UnitScratch};
use crate::kv::{LayerKv, decode};
use crate::pool::ThreadPool;
use crate::weight::vector;

/// Tokens whose softmax state is kept apart.
const SEGMENT_TOKENS: usize = 512;

/// Keys met in one go, where blocks hold a multiple of it: a result then does not depend on the size of the blocks.
const UNIT_TOKENS: usize = 16;

/// Queries (rows times heads of one KV head) that share one pass over the keys.
const TILE_QUERIES: usize = 32;

/// Queries that one call of a kernel takes at most.
const MAX_QUERIES: usize = 64;

/// One attention op.
pub(crate) struct Attention<'a> {
    pub(crate) kernels: &'a Kernels,
    /// `[rows, n_heads * k_dim]`
    pub(crate) q: &'a [f32],
    pub(crate) layer: &'a LayerKv,
    pub(crate) batch: &'a Batch,
    pub(crate) spec: &'a AttentionSpec,
}

/// Some rows of one sequence and the query heads of one KV head.
struct Tile<'a> {
    span: &'a Span,
    rows: Range<usize>,
    kv_head: usize,
}

/// Softmax state of each query of a tile: largest score, sum of exponentials, weighted values.
#[derive(Default)]
struct State {
    max: Vec<f32>,
    sum: Vec<f32>,
    /// `[queries, v_dim]`
    acc: Vec<f32>,
}

/// One thread's buffers.
#[derive(Default)]
struct Scratch {
    total: State,
    segment: State,
    /// `[queries, unit_tokens]`
    scores: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    unit: UnitScratch,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

impl State {
    fn reset(&mut self, n_queries: usize, v_dim: usize) {
        self.max.clear();
        self.max.resize(n_queries, f32::NEG_INFINITY);
        self.sum.clear();
        self.sum.resize(n_queries, 0.0);
        self.acc.clear();
        self.acc.resize(n_queries * v_dim, 0.0);
    }
}

impl Attention<'_> {
    /// Fills `out: [rows, n_heads * v_dim]`.
    pub(crate) fn run(&self, pool: &ThreadPool, out: &mut [f32]) {
        let tiles = self.tiles();
        let out = Disjoint::new(out);
        if tiles.len() < pool.n_threads() && tiles.iter().any(|tile| self.segments(tile).len() > 1) {
            return self.run_by_segments(pool, &tiles, &out);
        }
        pool.run(|part, n_parts| {
            SCRATCH.with_borrow_mut(|scratch| {
                for tile in &tiles[split(tiles.len(), part, n_parts, 1)] {
                    self.tile(tile, scratch);
                    self.finish(tile, &scratch.total, &out);
                }
            });
        });
    }

    /// Few tiles over long contexts: segments are computed by any thread, then merged in the order `tile` has.
    fn run_by_segments(&self, pool: &ThreadPool, tiles: &[Tile<'_>], out: &Disjoint<'_, f32>) {
        let work = tiles.iter().flat_map(|tile| self.segments(tile).into_iter().map(move |s| (tile, s)));
        let work: Vec<(&Tile<'_>, Range<usize>)> = work.collect();
        let mut states: Vec<State> = work.iter().map(|_| State::default()).collect();
        let shared = Disjoint::new(&mut states);
        pool.run(|part, n_parts| {
            SCRATCH.with_borrow_mut(|scratch| {
                for i in split(work.len(), part, n_parts, 1) {
                    let (tile, segment) = &work[i];
                    self.segment(tile, segment, scratch);
                    // SAFETY: `split` gives each segment to one part only.
                    let state = unsafe { shared.slice(i..i + 1) };
                    std::mem::swap(&mut state[0], &mut scratch.segment);
                }
            });
        });
        let mut states = states.iter();
        for tile in tiles {
            let mut total = State::default();
            total.reset(tile.rows.len() * self.group(), self.layer.layout.v_dim);
            for state in states.by_ref().take(self.segments(tile).len()) {
                self.merge(&mut total, state);
            }
            self.finish(tile, &total, out);
        }
    }

    fn group(&self) -> usize {
        self.spec.n_heads / self.layer.layout.n_kv_heads
    }

    fn tiles(&self) -> Vec<Tile<'_>> {
        let rows_per_tile = (TILE_QUERIES / self.group()).max(1);
        let mut tiles = Vec::new();
        for span in &self.batch.spans {
            for start in span.rows.clone().step_by(rows_per_tile) {
                let rows = start..(start + rows_per_tile).min(span.rows.end);
                let heads = 0..self.layer.layout.n_kv_heads;
                tiles.extend(heads.map(|kv_head| Tile { span, rows: rows.clone(), kv_head }));
            }
        }
        tiles
    }

    /// Keys of a block met in one go.
    fn unit_tokens(&self) -> usize {
        let block_tokens = self.layer.layout.block_tokens;
        if block_tokens.is_multiple_of(UNIT_TOKENS) { UNIT_TOKENS } else { block_tokens }
    }

    /// Positions a row of a sequence sees.
    fn visible(&self, span: &Span, row: usize) -> Range<usize> {
        let own = self.batch.positions[row] as usize;
        let window = self.spec.window.map(|window| window as usize);
        let end = match self.spec.reach {
            Reach::Causal => own + 1,
            Reach::Both => {
                let stored = self.batch.positions[span.rows.end - 1] as usize + 1;
                window.map_or(stored, |window| stored.min(own + window))
            }
        };
        window.map_or(0, |window| (own + 1).saturating_sub(window))..end
    }

    /// Positions the rows of a tile see together: rows are consecutive positions, so the first row reaches back
    /// furthest and the last one ahead.
    fn seen(&self, tile: &Tile<'_>) -> Range<usize> {
        self.visible(tile.span, tile.rows.start).start..self.visible(tile.span, tile.rows.end - 1).end
    }

    /// The units a tile sees, cut into segments at fixed positions.
    fn segments(&self, tile: &Tile<'_>) -> Vec<Range<usize>> {
        let seen = self.seen(tile);
        let unit_tokens = self.unit_tokens();
        let per_segment = (SEGMENT_TOKENS / unit_tokens).max(1);
        let (mut start, end) = (seen.start / unit_tokens, seen.end.div_ceil(unit_tokens));
        let mut segments = Vec::with_capacity((end - start) / per_segment + 2);
        while start < end {
            let next = ((start / per_segment + 1) * per_segment).min(end);
            segments.push(start..next);
            start = next;
        }
        segments
    }

    /// Computes the state of all queries of a tile into `scratch.total`.
    fn tile(&self, tile: &Tile<'_>, scratch: &mut Scratch) {
        scratch.total.reset(tile.rows.len() * self.group(), self.layer.layout.v_dim);
        for segment in self.segments(tile) {
            self.segment(tile, &segment, scratch);
            self.merge(&mut scratch.total, &scratch.segment);
        }
    }

    /// Computes the state of all queries of a tile over some units into `scratch.segment`.
    fn segment(&self, tile: &Tile<'_>, units: &Range<usize>, scratch: &mut Scratch) {
        scratch.segment.reset(tile.rows.len() * self.group(), self.layer.layout.v_dim);
        let seen_end = self.seen(tile).end;
        for unit in units.clone() {
            self.unit(tile, unit * self.unit_tokens(), seen_end, scratch);
        }
    }

    /// Adds the keys and values of the unit that starts at position `first` to the segment's states.
    fn unit(&self, tile: &Tile<'_>, first: usize, seen_end: usize, scratch: &mut Scratch) {
        let layout = &self.layer.layout;
        let (unit_tokens, v_dim) = (self.unit_tokens(), layout.v_dim);
        let n_keys = unit_tokens.min(seen_end - first);
        let (keys, values) = self.stored(tile, first, n_keys);
        let next = first + n_keys;
        let next = (next < seen_end).then(|| self.stored(tile, next, unit_tokens.min(seen_end - next)));
        // Units lie anywhere in the arena, so that nobody else knows what comes next.
        next.inspect(|(keys, _)| prefetch(keys));
        if let Some(attend) = self.attend() {
            next.inspect(|(_, values)| prefetch(values));
            return self.unit_at_once(attend, tile, (first, n_keys), (keys, values), scratch);
        }
        self.scores(tile, keys, n_keys, scratch);
        next.inspect(|(_, values)| prefetch(values));
        scratch.values.resize(unit_tokens * v_dim, 0.0);
        decode(self.kernels, layout.dtype, values, &mut scratch.values[..n_keys * v_dim]);
        let group = self.group();
        for (query, scores) in scratch.scores.chunks_exact_mut(unit_tokens).enumerate() {
            let visible = self.visible(tile.span, tile.rows.start + query / group);
            let from = visible.start.max(first) - first;
            let to = visible.end.min(first + n_keys).saturating_sub(first);
            if from >= to {
                continue;
            }
            let state = &mut scratch.segment;
            let acc = &mut state.acc[query * v_dim..(query + 1) * v_dim];
            let scores = &mut scores[from..to];
            self.kernels.scale(scores, self.spec.scale);
            if let Some(cap) = self.spec.softcap {
                self.kernels.softcap(scores, cap);
            }
            let max = state.max[query].max(self.kernels.max(scores));
            if state.max[query] != f32::NEG_INFINITY && state.max[query] != max {
                let shrink = self.kernels.exp(state.max[query] - max);
                state.sum[query] *= shrink;
                self.kernels.scale(acc, shrink);
            }
            state.max[query] = max;
            state.sum[query] += self.kernels.exp_sum(scores, max);
            self.kernels.weighted_sum(acc, scores, &scratch.values[from * v_dim..to * v_dim]);
        }
    }

    /// The keys and values of `n` positions from `first` on, which are of one block.
    fn stored(&self, tile: &Tile<'_>, first: usize, n: usize) -> (&[u8], &[u8]) {
        let layout = &self.layer.layout;
        let block = tile.span.block_table[first / layout.block_tokens] as usize;
        let offset = first % layout.block_tokens;
        let keys = &self.layer.bytes()[layout.keys(block, tile.kv_head)];
        let values = &self.layer.bytes()[layout.values(block, tile.kv_head)];
        let rows = |bytes: usize| offset * bytes..(offset + n) * bytes;
        (&keys[rows(layout.k_bytes)], &values[rows(layout.v_bytes)])
    }

    /// The kernel that takes a unit at once, where there is one for these shapes.
    fn attend(&self) -> Option<Attend> {
        let layout = &self.layer.layout;
        let fits = self.unit_tokens() == UNIT_TOKENS
            && layout.k_dim.is_multiple_of(UNIT_TOKENS)
            && layout.v_dim.is_multiple_of(UNIT_TOKENS);
        self.kernels.attend.filter(|_| fits)
    }

    /// As [`Self::unit`], by a kernel of its own: `n_keys` keys and values from position `first` on.
    fn unit_at_once(
        &self,
        attend: Attend,
        tile: &Tile<'_>,
        (first, n_keys): (usize, usize),
        (keys, values): (&[u8], &[u8]),
        scratch: &mut Scratch,
    ) {
        let layout = &self.layer.layout;
        let (n_queries, group) = (tile.rows.len() * self.group(), self.group());
        let mut queries: [&[f32]; MAX_QUERIES] = [&[]; MAX_QUERIES];
        let mut masks = [0u16; MAX_QUERIES];
        let mut floats = (layout.dtype, keys, values);
        if layout.dtype == DType::Q8_0 {
            scratch.keys.resize(n_keys * layout.k_dim, 0.0);
            scratch.values.resize(n_keys * layout.v_dim, 0.0);
            decode(self.kernels, layout.dtype, keys, &mut scratch.keys);
            decode(self.kernels, layout.dtype, values, &mut scratch.values);
            floats = (DType::F32, as_bytes(&scratch.keys), as_bytes(&scratch.values));
        }
        for start in (0..n_queries).step_by(MAX_QUERIES) {
            let n = MAX_QUERIES.min(n_queries - start);
            for i in 0..n {
                queries[i] = self.query(tile, start + i);
                let visible = self.visible(tile.span, tile.rows.start + (start + i) / group);
                let from = visible.start.max(first) - first;
                let to = visible.end.min(first + n_keys).saturating_sub(first);
                masks[i] = (from..to).fold(0, |mask, key| mask | 1 << key);
            }
            let unit = Unit {
                dtype: floats.0,
                keys: floats.1,
                values: floats.2,
                n_keys,
                k_dim: layout.k_dim,
                v_dim: layout.v_dim,
                queries: &queries[..n],
                masks: &masks[..n],
                scale: self.spec.scale,
                softcap: self.spec.softcap,
            };
            let state = &mut scratch.segment;
            let mut softmax = Softmax {
                max: &mut state.max[start..start + n],
                sum: &mut state.sum[start..start + n],
                acc: &mut state.acc[start * layout.v_dim..(start + n) * layout.v_dim],
            };
            // SAFETY: a table is only handed out where the CPU has its features (`Kernels::available`).
            unsafe { attend(&unit, &mut scratch.unit, &mut softmax) };
        }
    }

    /// Dot products of all queries of a tile with `n_keys` stored keys.
    fn scores(&self, tile: &Tile<'_>, keys: &[u8], n_keys: usize, scratch: &mut Scratch) {
        let layout = &self.layer.layout;
        let unit_tokens = self.unit_tokens();
        let n_queries = tile.rows.len() * self.group();
        scratch.scores.resize(n_queries * unit_tokens, 0.0);
        scratch.scores.truncate(n_queries * unit_tokens);
        let (dot, keys, key_bytes): (DotFloats, &[u8], usize) =
            match self.kernels.dot_floats(Format::Plain(layout.dtype)) {
                Some(dot) => (dot, keys, layout.k_bytes),
                None => {
                    scratch.keys.resize(unit_tokens * layout.k_dim, 0.0);
                    decode(self.kernels, layout.dtype, keys, &mut scratch.keys[..n_keys * layout.k_dim]);
                    (self.kernels.dot_f32, as_bytes(&scratch.keys), layout.k_dim * DType::F32.block_bytes())
                }
            };
        for first_query in (0..n_queries).step_by(TILE) {
            let n = TILE.min(n_queries - first_query);
            let mut queries: [&[f32]; TILE] = [&[]; TILE];
            for (i, query) in queries[..n].iter_mut().enumerate() {
                *query = self.query(tile, first_query + i);
            }
            for first_key in (0..n_keys).step_by(TILE) {
                let n_tile = TILE.min(n_keys - first_key);
                let rows: [&[u8]; TILE] = std::array::from_fn(|i| {
                    let key = (first_key + i).min(n_keys - 1);
                    &keys[key * key_bytes..(key + 1) * key_bytes]
                });
                let mut out = [0f32; TILE * TILE];
                // SAFETY: a table is only handed out where the CPU has its features (`Kernels::available`).
                unsafe { dot(&rows[..n_tile], &queries[..n], &mut out) };
                for i in 0..n {
                    let at = (first_query + i) * unit_tokens + first_key;
                    scratch.scores[at..at + n_tile].copy_from_slice(&out[i * TILE..][..n_tile]);
                }
            }
        }
    }

    /// The vector of query `query` of a tile: queries of a row are the heads of the KV head's group.
    fn query(&self, tile: &Tile<'_>, query: usize) -> &[f32] {
        let group = self.group();
        let row = tile.rows.start + query / group;
        let head = tile.kv_head * group + query % group;
        let k_dim = self.layer.layout.k_dim;
        &self.q[(row * self.spec.n_heads + head) * k_dim..][..k_dim]
    }

    /// Merges the state of the next segment into the total.
    fn merge(&self, total: &mut State, segment: &State) {
        let v_dim = self.layer.layout.v_dim;
        for query in 0..total.max.len() {
            if segment.sum[query] == 0.0 {
                continue;
            }
            let acc = &mut total.acc[query * v_dim..(query + 1) * v_dim];
            let added = &segment.acc[query * v_dim..(query + 1) * v_dim];
            let max = total.max[query].max(segment.max[query]);
            let keep = self.kernels.exp(total.max[query] - max);
            let add = self.kernels.exp(segment.max[query] - max);
            total.max[query] = max;
            total.sum[query] = total.sum[query] * keep + segment.sum[query] * add;
            self.kernels.scale(acc, keep);
            self.kernels.add_scaled(acc, added, add);
        }
    }

    /// Takes the sinks in, divides, and writes a tile's results.
    fn finish(&self, tile: &Tile<'_>, total: &State, out: &Disjoint<'_, f32>) {
        let v_dim = self.layer.layout.v_dim;
        let group = self.group();
        let sinks = self.spec.sinks.as_ref().map(vector);
        for (query, acc) in total.acc.chunks_exact(v_dim).enumerate() {
            let row = tile.rows.start + query / group;
            let head = tile.kv_head * group + query % group;
            let (mut sum, mut factor) = (total.sum[query], 1.0);
            if let Some(sinks) = sinks {
                let max = total.max[query].max(sinks[head]);
                factor = self.kernels.exp(total.max[query] - max);
                sum = sum * factor + self.kernels.exp(sinks[head] - max);
            }
            let start = (row * self.spec.n_heads + head) * v_dim;
            // SAFETY: one tile has this row and head, and a tile belongs to one thread.
            let target = unsafe { out.slice(start..start + v_dim) };
            target.copy_from_slice(acc);
            self.kernels.scale(target, factor / sum);
        }
    }
}
