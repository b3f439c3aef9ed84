//! Attention over the paged cache, in segments whose softmax states are merged (Milakov and Gimelshein, arXiv 1805.02867).
//!
//! Segments of [`SEGMENT_TOKENS`] start at fixed positions. A query meets the keys of one, turns their scores into
//! weights, and adds up the values; the states of its segments are merged in order. Nothing in that order depends on the
//! batch, on chunking or on the number of threads, so a row's result never does either.

use std::cell::RefCell;
use std::mem::take;
use std::ops::Range;

use mlxr_tensor::{AttentionSpec, Batch, DType, Format, Reach, RopePairing, Span};

use crate::aligned::as_bytes;
use crate::disjoint::Disjoint;
use crate::kernels::{
    AttendKernels, DotFloats, Kernels, Scores, Seen, Softened, TILE, UNIT_TOKENS, UnitFloats, Units,
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

/// Floats of states that a thread keeps from one op to the next.
const KEPT_FLOATS: usize = 512 << 10;

/// Floats of the states of an op at most: what would take more goes through its segments one after the other.
const MOST_FLOATS: usize = 16 << 20;

/// What [`Attention::units_ahead`] is at most.
const MAX_UNITS_AHEAD: usize = 8;

/// Queries (rows times heads of one KV head) that share one pass over the keys.
const TILE_QUERIES: usize = 32;

/// As [`TILE_QUERIES`], where they meet in bf16: keys and values are rounded and turned once for as many.
const WIDE_TILE_QUERIES: usize = 128;

/// Rows of a tile at most: it meets the keys that its last row sees with all of them.
const TILE_ROWS: usize = 64;

/// Queries up to which a tile's segments are claimed one by one: so keys and values of all heads are read as they lie.
const SPLIT_QUERIES: usize = 16;

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

/// Some rows of one sequence and the query heads of one KV head.
struct Tile<'a> {
    span: &'a Span,
    rows: Range<usize>,
    kv_head: usize,
}

/// Softmax state of each query of a tile: largest score, sum of exponentials, weighted values.
struct State<'a> {
    max: &'a mut [f32],
    sum: &'a mut [f32],
    /// `[queries, v_dim]`
    acc: &'a mut [f32],
}

/// What a thread claims: some segments of a tile.
struct Work<'a> {
    tile: &'a Tile<'a>,
    /// Where the state of its one segment goes; without it all segments are met and the tile is finished.
    state: Option<usize>,
    units: Range<usize>,
}

/// One thread's buffers.
#[derive(Default)]
struct Scratch {
    /// A [`State`] each.
    total: Vec<f32>,
    segment: Vec<f32>,
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
    /// Of segments that are merged later.
    static STATES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl State<'_> {
    /// The one that lies in `floats`, as many as [`Attention::state_floats`].
    fn of(floats: &mut [f32], v_dim: usize) -> State<'_> {
        let n_queries = floats.len() / (2 + v_dim);
        let (max, rest) = floats.split_at_mut(n_queries);
        let (sum, acc) = rest.split_at_mut(n_queries);
        State { max, sum, acc }
    }

    fn clear(&mut self) {
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
        self.acc.fill(0.0);
    }
}

impl Attention<'_> {
    /// Fills `out`.
    pub(crate) fn run(&self, pool: &ThreadPool, out: Target<'_>) {
        if pool.is_idle() {
            return;
        }
        let tiles = self.tiles();
        let is_few = tiles.len() < pool.n_threads();
        let (mut work, mut n_floats, mut split) = (Vec::with_capacity(tiles.len()), 0, Vec::new());
        // Tiles of the same rows see the same positions.
        for tiles in tiles.chunks(self.layer.layout.n_kv_heads) {
            let segments = self.segments(&tiles[0]);
            let n = self.state_floats(&tiles[0]);
            let is_split = segments.len() > 1
                && (is_few || self.n_queries(&tiles[0]) <= SPLIT_QUERIES)
                && n_floats + tiles.len() * segments.len() * n <= MOST_FLOATS;
            if !is_split {
                let whole = segments.first().map_or(0, |s| s.start)..segments.last().map_or(0, |s| s.end);
                work.extend(tiles.iter().map(|tile| Work { tile, state: None, units: whole.clone() }));
                continue;
            }
            // The heads of a segment one after the other, as they lie in memory.
            for (i, units) in segments.iter().enumerate() {
                for (head, tile) in tiles.iter().enumerate() {
                    let state = Some(n_floats + (head * segments.len() + i) * n);
                    work.push(Work { tile, state, units: units.clone() });
                }
            }
            split.extend(tiles.iter().enumerate().map(|(head, tile)| {
                let start = n_floats + head * segments.len() * n;
                (tile, start..start + segments.len() * n)
            }));
            n_floats += tiles.len() * segments.len() * n;
        }
        STATES.with_borrow_mut(|states| {
            if states.len() < n_floats {
                // Pages that the system has yet to clear: the threads touch them, not this one alone.
                *states = vec![0.0; n_floats];
            }
            let states = &mut states[..n_floats];
            self.compute(pool, &work, states, &out);
            self.join(pool, &split, states, &out);
        });
        if KEPT_FLOATS < n_floats {
            STATES.take();
        }
    }

    /// Does all that is to be done before segments are merged.
    fn compute(&self, pool: &ThreadPool, work: &[Work<'_>], states: &mut [f32], out: &Target<'_>) {
        let v_dim = self.layer.layout.v_dim;
        let states = Disjoint::new(states);
        pool.share(work.len(), 1, |range| {
            SCRATCH.with_borrow_mut(|scratch| {
                for i in range {
                    let Work { tile, state, units } = &work[i];
                    let next = work.get(i + 1).map(|next| (next.tile, next.units.start));
                    self.rotate(tile, scratch);
                    let Some(start) = *state else {
                        self.tile(tile, next, scratch);
                        let mut total = take(&mut scratch.total);
                        self.finish(tile, State::of(&mut total, v_dim), out);
                        scratch.total = total;
                        continue;
                    };
                    // SAFETY: each segment is given to one thread only.
                    let state = unsafe { states.slice(start..start + self.state_floats(tile)) };
                    self.segment((tile, units), next, scratch, State::of(state, v_dim));
                }
            });
        });
    }

    /// Merges the states of tiles whose segments any thread has computed, in the order that [`Self::tile`] has.
    fn join(
        &self,
        pool: &ThreadPool,
        split: &[(&Tile<'_>, Range<usize>)],
        states: &mut [f32],
        out: &Target<'_>,
    ) {
        let v_dim = self.layer.layout.v_dim;
        let states = Disjoint::new(states);
        pool.share(split.len(), 1, |range| {
            for (tile, range) in &split[range] {
                // SAFETY: the states of a tile are given to one thread only.
                let states = unsafe { states.slice(range.clone()) };
                let (first, rest) = states.split_at_mut(self.state_floats(tile));
                let mut total = State::of(first, v_dim);
                for state in rest.chunks_exact_mut(self.state_floats(tile)) {
                    self.merge(&mut total, &State::of(state, v_dim));
                }
                self.finish(tile, total, out);
            }
        });
    }

    fn n_queries(&self, tile: &Tile<'_>) -> usize {
        tile.rows.len() * self.group()
    }

    /// Floats of a [`State`] of a tile.
    fn state_floats(&self, tile: &Tile<'_>) -> usize {
        self.n_queries(tile) * (2 + self.layer.layout.v_dim)
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

    /// Computes the state of all queries of a tile into `scratch.total`.
    fn tile(&self, tile: &Tile<'_>, next: Option<(&Tile<'_>, usize)>, scratch: &mut Scratch) {
        let v_dim = self.layer.layout.v_dim;
        let (mut total, mut segment) = (take(&mut scratch.total), take(&mut scratch.segment));
        total.resize(self.state_floats(tile), 0.0);
        segment.resize(self.state_floats(tile), 0.0);
        State::of(&mut total, v_dim).clear();
        let segments = self.segments(tile);
        for (i, units) in segments.iter().enumerate() {
            let next = segments.get(i + 1).map(|units| (tile, units.start)).or(next);
            self.segment((tile, units), next, scratch, State::of(&mut segment, v_dim));
            self.merge(&mut State::of(&mut total, v_dim), &State::of(&mut segment, v_dim));
        }
        (scratch.total, scratch.segment) = (total, segment);
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

    /// Computes the state of all queries of a tile over some units; those of `next` come after them.
    fn segment(
        &self,
        (tile, units): (&Tile<'_>, &Range<usize>),
        next: Option<(&Tile<'_>, usize)>,
        scratch: &mut Scratch,
        mut state: State<'_>,
    ) {
        let n_queries = self.n_queries(tile);
        let (first, end) = (units.start * self.unit_tokens(), units.end * self.unit_tokens());
        let positions = first..end.min(self.seen(tile).end);
        state.clear();
        scratch.scores.resize(n_queries * (end - first), 0.0);
        match self.attend(n_queries) {
            Some(kernels) => self.segment_by_units(&kernels, (tile, positions), next, scratch, state),
            None => {
                self.scores(tile, positions.clone(), scratch);
                self.soften(tile, first..end, &mut scratch.scores, &mut state);
                self.add_values(tile, positions, scratch, state);
            }
        }
    }

    /// Turns the scores of a segment into weights, which are zero for positions that a query does not see.
    fn soften(&self, tile: &Tile<'_>, positions: Range<usize>, scores: &mut [f32], state: &mut State<'_>) {
        for (query, scores) in scores.chunks_exact_mut(positions.len()).enumerate() {
            let Range { start: from, end: to } = self.seen_of(tile, query, &positions);
            scores[..from].fill(0.0);
            scores[to..].fill(0.0);
            if from < to {
                let scores = &mut scores[from..to];
                let found = self.kernels.soften(scores, self.spec.scale, self.spec.softcap);
                (state.max[query], state.sum[query]) = found;
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

    /// The keys and values of `n` positions from `first` on, which are of one block; of keys in units a whole one.
    fn stored(&self, tile: &Tile<'_>, first: usize, n: usize) -> (&[u8], &[u8]) {
        let layout = &self.layer.layout;
        let block = tile.span.block_table[first / layout.block_tokens] as usize;
        let offset = first % layout.block_tokens;
        let keys = &self.layer.bytes()[layout.keys(block, tile.kv_head)];
        let values = &self.layer.bytes()[layout.values(block, tile.kv_head)];
        let rows = |n: usize, bytes: usize| offset * bytes..(offset + n) * bytes;
        let n_keys = if layout.has_units { UNIT_TOKENS } else { n };
        (&keys[rows(n_keys, layout.k_bytes)], &values[rows(n, layout.v_bytes)])
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

    /// Units that are asked for before they are needed: as many as are met in the time that memory takes, few enough
    /// not to drive out what is in use.
    fn units_ahead(&self) -> usize {
        const BYTES: usize = 16 << 10;
        let layout = &self.layer.layout;
        let unit_bytes = layout.k_bytes.max(layout.v_bytes) * UNIT_TOKENS;
        (BYTES / unit_bytes.max(1)).clamp(2, MAX_UNITS_AHEAD)
    }

    /// [`Self::segment`] by kernels that take units.
    fn segment_by_units(
        &self,
        kernels: &UnitKernels,
        (tile, positions): (&Tile<'_>, Range<usize>),
        next: Option<(&Tile<'_>, usize)>,
        scratch: &mut Scratch,
        mut state: State<'_>,
    ) {
        let layout = &self.layer.layout;
        let n_units = positions.len().div_ceil(UNIT_TOKENS);
        let n_positions = n_units * UNIT_TOKENS;
        // Keys, values, and the keys that come next, in the order in which they are met.
        let n_ahead = self.units_ahead();
        let mut stored: [&[u8]; 2 * SEGMENT_UNITS + MAX_UNITS_AHEAD] = [&[]; _];
        for (i, (first, n)) in self.units(positions.clone()).enumerate() {
            (stored[i], stored[n_units + i]) = self.stored(tile, first, n);
        }
        if let Some((tile, unit)) = next {
            let positions = unit * UNIT_TOKENS..self.seen(tile).end;
            let next = self.units(positions).map(|(first, n)| self.stored(tile, first, n).0);
            stored[2 * n_units..].iter_mut().zip(next.take(n_ahead)).for_each(|(to, from)| *to = from);
        }
        let (keys, values) = (&stored[..n_units], &stored[n_units..2 * n_units]);
        let keys = Units { dtype: layout.dtype, units: keys, dim: layout.k_dim, ahead: &stored[n_ahead..] };
        let ahead = &stored[n_units + n_ahead..];
        let values = Units { dtype: layout.dtype, units: values, dim: layout.v_dim, ahead };
        let n_queries = self.n_queries(tile);
        let scores = |kernel: Scores, keys: &Units<'_>, scratch: &mut Scratch| {
            for start in (0..n_queries).step_by(MAX_QUERIES) {
                let mut queries: [&[f32]; MAX_QUERIES] = [&[]; MAX_QUERIES];
                let n = MAX_QUERIES.min(n_queries - start);
                for (i, query) in queries[..n].iter_mut().enumerate() {
                    *query = self.query(tile, start + i, &scratch.queries);
                }
                let out = &mut scratch.scores[start * n_positions..(start + n) * n_positions];
                // SAFETY: a table is only handed out where the CPU has its features (`Kernels::available`).
                unsafe { kernel(keys, &queries[..n], &mut scratch.floats, out) };
            }
        };
        let positions = positions.start..positions.start + n_positions;
        match kernels {
            UnitKernels::Exact(kernels) => {
                scores(kernels.scores, &keys, scratch);
                self.soften(tile, positions, &mut scratch.scores, &mut state);
                // SAFETY: as above.
                unsafe { (kernels.add_values)(&values, &scratch.scores, &mut scratch.floats, state.acc) };
            }
            UnitKernels::Wide(kernels) => {
                let (mut key_floats, mut value_floats) = (take(&mut scratch.keys), take(&mut scratch.values));
                let mut floats: [&[u8]; 2 * SEGMENT_UNITS] = [&[]; _];
                let (key_units, value_units) = floats.split_at_mut(n_units);
                let key_kernel =
                    self.kernels.attend.filter(|_| layout.has_units).map(|attend| attend.key_floats);
                let value_kernel = self.kernels.attend.map(|attend| attend.value_floats);
                let keys = self.as_floats(keys, key_kernel, &mut key_floats, key_units);
                let values = self.as_floats(values, value_kernel, &mut value_floats, value_units);
                scores(kernels.scores, &keys, scratch);
                let scale = self.capped(&mut scratch.scores);
                let visible = |query: usize| self.seen_of(tile, query, &positions);
                let seen = Seen { scores: &scratch.scores, visible: &visible, scale };
                let State { max, sum, acc } = state;
                // SAFETY: as above.
                unsafe {
                    (kernels.add_softened)(&values, seen, &mut scratch.floats, Softened { max, sum, acc })
                };
                (scratch.keys, scratch.values) = (key_floats, value_floats);
            }
        }
    }

    /// Units in a form that kernels for bf16 take: those of a byte or less become floats.
    fn as_floats<'u>(
        &self,
        stored: Units<'u>,
        kernel: Option<UnitFloats>,
        floats: &'u mut Vec<f32>,
        units: &'u mut [&'u [u8]],
    ) -> Units<'u> {
        let Units { dtype, dim, .. } = stored;
        if matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return stored;
        }
        let unit_floats = UNIT_TOKENS * dim;
        floats.resize(stored.units.len() * unit_floats, 0.0);
        match kernel {
            // SAFETY: a table is only handed out where the CPU has its features (`Kernels::available`).
            Some(kernel) => unsafe { kernel(&stored, floats) },
            None => {
                let units = stored.units.iter().zip(floats.chunks_exact_mut(unit_floats));
                units.for_each(|(unit, out)| decode(self.kernels, dtype, unit, out));
            }
        }
        let row_bytes = stored.row_bytes();
        let units = &mut units[..stored.units.len()];
        for ((to, unit), floats) in units.iter_mut().zip(stored.units).zip(floats.chunks_exact(unit_floats)) {
            *to = as_bytes(&floats[..unit.len() / row_bytes * dim]);
        }
        Units { dtype: DType::F32, units, dim, ahead: &[] }
    }

    /// Dot products of all queries of a tile with the stored keys of `positions`.
    fn scores(&self, tile: &Tile<'_>, positions: Range<usize>, scratch: &mut Scratch) {
        let layout = &self.layer.layout;
        let n_queries = self.n_queries(tile);
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
    fn add_values(&self, tile: &Tile<'_>, positions: Range<usize>, scratch: &mut Scratch, state: State<'_>) {
        let layout = &self.layer.layout;
        let stride = scratch.scores.len() / self.n_queries(tile);
        for (first, n) in self.units(positions.clone()) {
            let (_, values) = self.stored(tile, first, n);
            scratch.values.resize(n * layout.v_dim, 0.0);
            decode(self.kernels, layout.dtype, values, &mut scratch.values);
            let weights = scratch.scores.chunks_exact(stride);
            for (acc, weights) in state.acc.chunks_exact_mut(layout.v_dim).zip(weights) {
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
    fn merge(&self, total: &mut State<'_>, segment: &State<'_>) {
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
            if keep != 1.0 {
                self.kernels.scale(acc, keep);
            }
            self.kernels.add_scaled(acc, added, add);
        }
    }

    /// Takes the sinks in, divides, and writes a tile's results.
    fn finish(&self, tile: &Tile<'_>, total: State<'_>, out: &Target<'_>) {
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
