//! Attention over the paged cache, in segments whose softmax states are merged (Milakov and Gimelshein, arXiv 1805.02867).
//!
//! Segments of [`SEGMENT_TOKENS`] start at fixed positions. A query meets the keys of one, turns their scores into
//! weights, and adds up the values; the states of its segments are merged in order. Nothing in that order depends on the
//! batch, on chunking or on the number of threads, so a row's result never does either.

use std::cell::RefCell;
use std::mem::take;
use std::ops::Range;

use mlxr_tensor::{AttentionSpec, Batch, DType, Format, Reach, RopePairing, Span};

use crate::aligned::{as_bytes, prefetch};
use crate::disjoint::Disjoint;
use crate::kernels::{
    AttendKernels, DotFloats, Kernels, Scores, Seen, Softened, TILE, UNIT_TOKENS, UNITS_AHEAD, Units,
    WIDE_COLS, WIDE_QUERIES, WideAttend, WideKernels,
};
use crate::kv::{LayerKv, decode};
use crate::linear::wide::WideLines;
use crate::pool::ThreadPool;
use crate::rope::Angles;
use crate::weight::vector;

/// Tokens whose softmax state is kept apart.
const SEGMENT_TOKENS: usize = 256;

/// Units of a segment, where blocks hold whole units: a result then does not depend on the size of the blocks.
const SEGMENT_UNITS: usize = SEGMENT_TOKENS / UNIT_TOKENS;

/// Queries (rows times heads of one KV head) that share one pass over the keys.
const TILE_QUERIES: usize = 32;

/// As [`TILE_QUERIES`], where they meet in bf16: keys and values are rounded and turned once for as many.
const WIDE_TILE_QUERIES: usize = 128;

/// Rows of a tile at most: it meets the keys that its last row sees with all of them.
const TILE_ROWS: usize = 64;

/// Queries that one call of a kernel takes at most.
const MAX_QUERIES: usize = 128;

/// One attention op.
pub(crate) struct Attention<'a> {
    pub(crate) kernels: &'a Kernels,
    /// `[rows, n_heads * k_dim]`
    pub(crate) q: &'a [f32],
    pub(crate) layer: &'a LayerKv,
    pub(crate) batch: &'a Batch,
    pub(crate) spec: &'a AttentionSpec,
    /// What queries are still to be rotated by.
    pub(crate) rotation: Option<(&'a Angles, RopePairing)>,
}

/// Where results go.
pub(crate) enum Target<'a> {
    /// `[rows, n_heads * v_dim]`
    Rows(Disjoint<'a, f32>),
    /// As products take them in bf16; the heads of a KV head are to have whole steps of columns.
    Wide(&'a WideKernels, WideLines<'a>),
}

/// Kernels that take units.
enum UnitKernels {
    Exact(AttendKernels),
    Wide(WideAttend),
}

impl UnitKernels {
    fn scores(&self) -> Scores {
        match self {
            UnitKernels::Exact(kernels) => kernels.scores,
            UnitKernels::Wide(kernels) => kernels.scores,
        }
    }
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
    /// `[queries, positions of a segment]`: scores, then weights.
    scores: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Those of a tile, if they had to be rotated.
    queries: Vec<f32>,
    /// A kernel's own.
    floats: Vec<f32>,
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
    /// Fills `out`.
    pub(crate) fn run(&self, pool: &ThreadPool, out: Target<'_>) {
        if pool.is_idle() {
            return;
        }
        let tiles = self.tiles();
        if tiles.len() < pool.n_threads() && tiles.iter().any(|tile| self.segments(tile).len() > 1) {
            return self.run_by_segments(pool, &tiles, &out);
        }
        pool.share(tiles.len(), 1, |range| {
            SCRATCH.with_borrow_mut(|scratch| {
                for i in range {
                    tiles.get(i + 1).inspect(|next| self.fetch_first_keys(next));
                    self.tile(&tiles[i], scratch);
                    self.finish(&tiles[i], &mut scratch.total, &out);
                }
            });
        });
    }

    /// Few tiles over long contexts: segments are computed by any thread, then merged in the order `tile` has.
    fn run_by_segments(&self, pool: &ThreadPool, tiles: &[Tile<'_>], out: &Target<'_>) {
        let work = tiles.iter().flat_map(|tile| self.segments(tile).into_iter().map(move |s| (tile, s)));
        let work: Vec<(&Tile<'_>, Range<usize>)> = work.collect();
        let mut states: Vec<State> = work.iter().map(|_| State::default()).collect();
        let shared = Disjoint::new(&mut states);
        pool.share(work.len(), 1, |range| {
            SCRATCH.with_borrow_mut(|scratch| {
                for i in range {
                    let (tile, segment) = &work[i];
                    self.rotate(tile, scratch);
                    self.segment(tile, segment, scratch);
                    // SAFETY: each segment is given to one thread only.
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
            self.finish(tile, &mut total, out);
        }
    }

    fn group(&self) -> usize {
        self.spec.n_heads / self.layer.layout.n_kv_heads
    }

    fn tiles(&self) -> Vec<Tile<'_>> {
        let n_queries = if self.kernels.wide.is_some() { WIDE_TILE_QUERIES } else { TILE_QUERIES };
        let rows_per_tile = (n_queries / self.group()).clamp(1, TILE_ROWS);
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

    /// Has the keys that a tile begins with fetched: kernels look ahead from there on.
    fn fetch_first_keys(&self, tile: &Tile<'_>) {
        let seen = self.seen(tile);
        let start = seen.start / self.unit_tokens() * self.unit_tokens();
        for (first, n) in self.units(start..seen.end).take(UNITS_AHEAD) {
            prefetch(self.stored(tile, first, n).0);
        }
    }

    /// Computes the state of all queries of a tile into `scratch.total`.
    fn tile(&self, tile: &Tile<'_>, scratch: &mut Scratch) {
        scratch.total.reset(tile.rows.len() * self.group(), self.layer.layout.v_dim);
        self.rotate(tile, scratch);
        for segment in self.segments(tile) {
            self.segment(tile, &segment, scratch);
            self.merge(&mut scratch.total, &scratch.segment);
        }
    }

    /// Rotates a copy of a tile's queries, if that is still to be done.
    fn rotate(&self, tile: &Tile<'_>, scratch: &mut Scratch) {
        let Some((angles, pairing)) = self.rotation else { return };
        let (k_dim, group) = (self.layer.layout.k_dim, self.group());
        scratch.queries.clear();
        for row in tile.rows.clone() {
            let first = (row * self.spec.n_heads + tile.kv_head * group) * k_dim;
            let start = scratch.queries.len();
            scratch.queries.extend_from_slice(&self.q[first..first + group * k_dim]);
            angles.rotate(self.kernels, pairing, row, k_dim, &mut scratch.queries[start..]);
        }
    }

    /// Computes the state of all queries of a tile over some units into `scratch.segment`.
    fn segment(&self, tile: &Tile<'_>, units: &Range<usize>, scratch: &mut Scratch) {
        let n_queries = tile.rows.len() * self.group();
        let (first, end) = (units.start * self.unit_tokens(), units.end * self.unit_tokens());
        let positions = first..end.min(self.seen(tile).end);
        scratch.segment.reset(n_queries, self.layer.layout.v_dim);
        scratch.scores.resize(n_queries * (end - first), 0.0);
        match self.attend(n_queries) {
            Some(kernels) => self.segment_by_units(&kernels, tile, positions, scratch),
            None => {
                self.scores(tile, positions.clone(), scratch);
                self.soften(tile, first..end, scratch);
                self.add_values(tile, positions, scratch);
            }
        }
    }

    /// Turns the scores of a segment into weights, which are zero for positions that a query does not see.
    fn soften(&self, tile: &Tile<'_>, positions: Range<usize>, scratch: &mut Scratch) {
        for (query, scores) in scratch.scores.chunks_exact_mut(positions.len()).enumerate() {
            let Range { start: from, end: to } = self.seen_of(tile, query, &positions);
            scores[..from].fill(0.0);
            scores[to..].fill(0.0);
            if from < to {
                let state = (&mut scratch.segment.max[query], &mut scratch.segment.sum[query]);
                let scores = &mut scores[from..to];
                (*state.0, *state.1) = self.kernels.soften(scores, self.spec.scale, self.spec.softcap);
            }
        }
    }

    /// Which of some positions a query of a tile sees.
    fn seen_of(&self, tile: &Tile<'_>, query: usize, positions: &Range<usize>) -> Range<usize> {
        let visible = self.visible(tile.span, tile.rows.start + query / self.group());
        let to = visible.end.clamp(positions.start, positions.end) - positions.start;
        visible.start.saturating_sub(positions.start).min(to)..to
    }

    /// Caps scores, if they are to be; returns what they are still to be multiplied by.
    fn capped(&self, scores: &mut [f32]) -> f32 {
        let Some(cap) = self.spec.softcap else { return self.spec.scale };
        self.kernels.scale(scores, self.spec.scale);
        self.kernels.softcap(scores, cap);
        1.0
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

    /// The units that `positions` are cut into, each with its first position and how many it has.
    fn units(&self, positions: Range<usize>) -> impl Iterator<Item = (usize, usize)> {
        let n = self.unit_tokens();
        positions.clone().step_by(n).map(move |first| (first, n.min(positions.end - first)))
    }

    /// The kernels that take units, where there are some for these shapes.
    fn attend(&self, n_queries: usize) -> Option<UnitKernels> {
        let layout = &self.layer.layout;
        let fits = self.unit_tokens() == UNIT_TOKENS
            && layout.k_dim.is_multiple_of(UNIT_TOKENS)
            && layout.v_dim.is_multiple_of(UNIT_TOKENS);
        let wide = self.kernels.wide.filter(|_| WIDE_QUERIES <= n_queries && layout.k_dim <= WIDE_COLS);
        let exact = self.kernels.attend.map(UnitKernels::Exact);
        wide.map(|wide| UnitKernels::Wide(wide.attend)).or(exact).filter(|_| fits)
    }

    /// [`Self::segment`] by kernels that take units.
    fn segment_by_units(
        &self,
        kernels: &UnitKernels,
        tile: &Tile<'_>,
        positions: Range<usize>,
        scratch: &mut Scratch,
    ) {
        let layout = &self.layer.layout;
        let n_units = positions.len().div_ceil(UNIT_TOKENS);
        let n_positions = n_units * UNIT_TOKENS;
        let (mut keys, mut values): ([&[u8]; SEGMENT_UNITS], _) =
            ([&[]; SEGMENT_UNITS], [&[][..]; SEGMENT_UNITS]);
        for (i, (first, n)) in self.units(positions.clone()).enumerate() {
            (keys[i], values[i]) = self.stored(tile, first, n);
        }
        let (mut key_floats, mut value_floats) = (take(&mut scratch.keys), take(&mut scratch.values));
        let keys = self.as_units(&mut keys[..n_units], layout.k_dim, &mut key_floats);
        let values = self.as_units(&mut values[..n_units], layout.v_dim, &mut value_floats);
        values.units.iter().take(UNITS_AHEAD).for_each(|unit| prefetch(unit));
        let n_queries = tile.rows.len() * self.group();
        for start in (0..n_queries).step_by(MAX_QUERIES) {
            let mut queries: [&[f32]; MAX_QUERIES] = [&[]; MAX_QUERIES];
            let n = MAX_QUERIES.min(n_queries - start);
            queries[..n]
                .iter_mut()
                .enumerate()
                .for_each(|(i, query)| *query = self.query(tile, start + i, &scratch.queries));
            let out = &mut scratch.scores[start * n_positions..(start + n) * n_positions];
            // SAFETY: a table is only handed out where the CPU has its features (`Kernels::available`).
            unsafe { kernels.scores()(&keys, &queries[..n], &mut scratch.floats, out) };
        }
        let positions = positions.start..positions.start + n_positions;
        match kernels {
            UnitKernels::Exact(kernels) => {
                self.soften(tile, positions, scratch);
                let acc = &mut scratch.segment.acc;
                // SAFETY: as above.
                unsafe { (kernels.add_values)(&values, &scratch.scores, &mut scratch.floats, acc) };
            }
            UnitKernels::Wide(kernels) => {
                let scale = self.capped(&mut scratch.scores);
                let visible = |query: usize| self.seen_of(tile, query, &positions);
                let seen = Seen { scores: &scratch.scores, visible: &visible, scale };
                let State { max, sum, acc } = &mut scratch.segment;
                // SAFETY: as above.
                unsafe {
                    (kernels.add_softened)(&values, seen, &mut scratch.floats, Softened { max, sum, acc })
                };
            }
        }
        (scratch.keys, scratch.values) = (key_floats, value_floats);
    }

    /// Stored units in a form that kernels take: those of a byte or less become floats.
    fn as_units<'u>(&self, stored: &'u mut [&'u [u8]], dim: usize, floats: &'u mut Vec<f32>) -> Units<'u> {
        let dtype = self.layer.layout.dtype;
        if matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Units { dtype, units: stored, dim };
        }
        floats.resize(stored.len() * UNIT_TOKENS * dim, 0.0);
        for (unit, out) in stored.iter().zip(floats.chunks_exact_mut(UNIT_TOKENS * dim)) {
            decode(self.kernels, dtype, unit, out);
        }
        let row_bytes = dim / dtype.block_len() * dtype.block_bytes();
        for (unit, floats) in stored.iter_mut().zip(floats.chunks_exact(UNIT_TOKENS * dim)) {
            *unit = as_bytes(&floats[..unit.len() / row_bytes * dim]);
        }
        Units { dtype: DType::F32, units: stored, dim }
    }

    /// Dot products of all queries of a tile with the stored keys of `positions`.
    fn scores(&self, tile: &Tile<'_>, positions: Range<usize>, scratch: &mut Scratch) {
        let layout = &self.layer.layout;
        let n_queries = tile.rows.len() * self.group();
        let stride = scratch.scores.len() / n_queries;
        for (first, n_keys) in self.units(positions.clone()) {
            let (keys, _) = self.stored(tile, first, n_keys);
            let (dot, keys, key_bytes): (DotFloats, &[u8], usize) = match self
                .kernels
                .dot_floats(Format::Plain(layout.dtype))
            {
                Some(dot) => (dot, keys, layout.k_bytes),
                None => {
                    scratch.keys.resize(n_keys * layout.k_dim, 0.0);
                    decode(self.kernels, layout.dtype, keys, &mut scratch.keys);
                    (self.kernels.dot_f32, as_bytes(&scratch.keys), layout.k_dim * DType::F32.block_bytes())
                }
            };
            for first_query in (0..n_queries).step_by(TILE) {
                let n = TILE.min(n_queries - first_query);
                let queries: [&[f32]; TILE] = std::array::from_fn(|i| {
                    self.query(tile, (first_query + i).min(n_queries - 1), &scratch.queries)
                });
                for (k, tile_keys) in keys.chunks(TILE * key_bytes).enumerate() {
                    let n_tile = tile_keys.len() / key_bytes;
                    let rows: [&[u8]; TILE] =
                        std::array::from_fn(|i| &tile_keys[i.min(n_tile - 1) * key_bytes..][..key_bytes]);
                    let mut out = [0f32; TILE * TILE];
                    // SAFETY: a table is only handed out where the CPU has its features (`Kernels::available`).
                    unsafe { dot(&rows[..n_tile], &queries[..n], &mut out) };
                    let at = first - positions.start + k * TILE;
                    for (i, out) in out.chunks_exact(TILE).enumerate().take(n) {
                        scratch.scores[(first_query + i) * stride + at..][..n_tile]
                            .copy_from_slice(&out[..n_tile]);
                    }
                }
            }
        }
    }

    /// Adds the weighted values of `positions` to the segment's states.
    fn add_values(&self, tile: &Tile<'_>, positions: Range<usize>, scratch: &mut Scratch) {
        let layout = &self.layer.layout;
        let stride = scratch.scores.len() / (tile.rows.len() * self.group());
        for (first, n) in self.units(positions.clone()) {
            let (_, values) = self.stored(tile, first, n);
            scratch.values.resize(n * layout.v_dim, 0.0);
            decode(self.kernels, layout.dtype, values, &mut scratch.values);
            let weights = scratch.scores.chunks_exact(stride);
            for (acc, weights) in scratch.segment.acc.chunks_exact_mut(layout.v_dim).zip(weights) {
                let weights = &weights[first - positions.start..][..n];
                self.kernels.weighted_sum(acc, weights, &scratch.values);
            }
        }
    }

    /// The vector of query `query` of a tile: queries of a row are the heads of the KV head's group.
    fn query<'q>(&'q self, tile: &Tile<'_>, query: usize, rotated: &'q [f32]) -> &'q [f32] {
        let (group, k_dim) = (self.group(), self.layer.layout.k_dim);
        if self.rotation.is_some() {
            return &rotated[query * k_dim..][..k_dim];
        }
        let row = tile.rows.start + query / group;
        let head = tile.kv_head * group + query % group;
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
            if total.sum[query] == 0.0 {
                (total.max[query], total.sum[query]) = (segment.max[query], segment.sum[query]);
                acc.copy_from_slice(added);
                continue;
            }
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
    fn finish(&self, tile: &Tile<'_>, total: &mut State, out: &Target<'_>) {
        let v_dim = self.layer.layout.v_dim;
        let group = self.group();
        let sinks = self.spec.sinks.as_ref().map(vector);
        for (query, acc) in total.acc.chunks_exact_mut(v_dim).enumerate() {
            let row = tile.rows.start + query / group;
            let head = tile.kv_head * group + query % group;
            let (mut sum, mut factor) = (total.sum[query], 1.0);
            if let Some(sinks) = sinks {
                let max = total.max[query].max(sinks[head]);
                factor = self.kernels.exp(total.max[query] - max);
                sum = sum * factor + self.kernels.exp(sinks[head] - max);
            }
            let Target::Rows(out) = out else {
                self.kernels.scale(acc, factor / sum);
                continue;
            };
            let start = (row * self.spec.n_heads + head) * v_dim;
            // SAFETY: one tile has this row and head, and a tile belongs to one thread.
            let target = unsafe { out.slice(start..start + v_dim) };
            target.copy_from_slice(acc);
            self.kernels.scale(target, factor / sum);
        }
        let Target::Wide(wide, lines) = out else { return };
        // The heads of a KV head are columns side by side.
        let cols = group * v_dim;
        for (row, values) in tile.rows.clone().zip(total.acc.chunks_exact(cols)) {
            // SAFETY: one tile has this row and these heads; the table is this CPU's.
            unsafe { (wide.pack_row)(values, lines.at(row, tile.kv_head * cols..(tile.kv_head + 1) * cols)) };
        }
    }
}
