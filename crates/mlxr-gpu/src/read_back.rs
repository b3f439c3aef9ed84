//! What leaves the device and is more than an activation: the largest values of rows, tokens, and blocks of keys and
//! values.

use mlxr_tensor::{
    Act, Ahead, Batch, DRAW_TOLERANCE, DeviceTokens, Guess, GuessStage, GuessedToken, LogitChange,
    MAX_LARGEST, MAX_LEFT_OUT, Ranked, Rows, RowsWanted, StartedRows, TensorError,
};

use crate::backend::{GpuBackend, NO_COLUMN};
use crate::batch::BatchTables;
use crate::bindings::Bound;
use crate::buffers::Pooled;
use crate::kernels::{Argmax, DrawTokens, ExpSum, FeedTokens, GuessTokens, Largest};
use crate::kv::GpuKv;
use crate::recorder::{Grid, ReadBack};

/// Rows on their way to the host, with the tokens guessed for them.
struct RowsRead {
    wanted: RowsWanted,
    n_rows: usize,
    /// Values of each row.
    n: usize,
    read: ReadBack,
}

impl Ahead for GpuBackend {
    fn start_rows(&self, x: &Act, wanted: RowsWanted, guesses: &[Guess]) -> Result<StartedRows, TensorError> {
        assert_eq!(guesses.len(), x.rows(), "a guess for each row");
        let n_rows = x.rows();
        if wanted == RowsWanted::Best {
            let best = self.record_best(x)?;
            let parts = [(best.buffer(), n_rows * 4)];
            let read = self.record().start_read(self.gpu(), self.buffers(), &parts);
            return Ok(StartedRows::new(DeviceTokens::new(best), RowsRead { wanted, n_rows, n: 1, read }));
        }
        let n = match wanted {
            RowsWanted::Largest(n) | RowsWanted::Ranked(n) => n.min(x.cols()),
            RowsWanted::Best | RowsWanted::All => MAX_LARGEST.min(x.cols()),
        };
        let n_values = n_rows * n * 8;
        let (found, n_bytes, first_sum) = if let RowsWanted::Largest(_) = wanted {
            (self.record_largest(x, n, n_values)?, n_values, 0)
        } else {
            let (found, n_bytes) = self.record_ranked(x, n)?;
            (found, n_bytes, n_values / 4)
        };
        let packed = self.buffers().take_with(self.gpu(), bytemuck::cast_slice(&pack(guesses)))?;
        // And whether they are sure.
        let tokens = self.take(n_rows * 8)?;
        let params = [n_rows as u32, n as u32, first_sum as u32];
        let bound = [found.bound(), packed.bound(), tokens.bound()];
        self.run(&GuessTokens {}, &bound, &params, Grid::flat(n_rows))?;
        if guesses.iter().any(|guess| guess.is_whole) {
            let lanes = self.max_lanes();
            let kernel = DrawTokens { lanes, subgroup: self.subgroup() };
            let params = [n_rows as u32, x.cols() as u32, DRAW_TOLERANCE.to_bits()];
            let bound = [self.floats(x), packed.bound(), tokens.bound()];
            self.run(&kernel, &bound, &params, Grid::flat(n_rows))?;
        }
        let values = match wanted {
            RowsWanted::All => (self.floats(x).buffer, n_rows * x.cols() * 4),
            _ => (found.buffer(), n_bytes),
        };
        let parts = [values, (tokens.buffer(), n_rows * 8)];
        let read = self.record().start_read(self.gpu(), self.buffers(), &parts);
        Ok(StartedRows::new(DeviceTokens::new(tokens), RowsRead { wanted, n_rows, n, read }))
    }

    fn finish_rows(&self, started: StartedRows) -> Result<(Rows, Vec<GuessedToken>), TensorError> {
        let RowsRead { wanted, n_rows, n, read } = started.into_handle();
        let bytes = read.wait(self.gpu())?;
        self.record().keep_staging(read);
        self.keep_compiled();
        if wanted == RowsWanted::Best {
            let best = columns(&bytes);
            let guessed = best.iter().map(|&id| GuessedToken { id, is_sure: false }).collect();
            return Ok((Rows::Best(best), guessed));
        }
        let (values, guessed) = bytes.split_at(bytes.len() - n_rows * 8);
        let (ids, sure) = guessed.split_at(n_rows * 4);
        let sure: Vec<u32> = bytemuck::pod_collect_to_vec(sure);
        let guessed = columns(ids).into_iter().zip(sure);
        let guessed = guessed.map(|(id, sure)| GuessedToken { id, is_sure: sure != 0 }).collect();
        let rows = match wanted {
            RowsWanted::Best => unreachable!("it is above"),
            RowsWanted::Largest(_) => Rows::Largest(ranked_rows(values, n)),
            RowsWanted::Ranked(_) => Rows::Ranked(rows_with_sums(values, n_rows, n)),
            RowsWanted::All => Rows::All(bytemuck::pod_collect_to_vec(values)),
        };
        Ok((rows, guessed))
    }
}

/// Guesses as `guess_rows.wgsl` describes them.
fn pack(guesses: &[Guess]) -> Vec<[u32; 4]> {
    const PER_ROW: usize = 3;
    let mut packed = vec![[0; 4]; guesses.len() * PER_ROW];
    for (row, guess) in guesses.iter().enumerate() {
        let (mut kinds, mut values) = (0, [0; 4]);
        for (i, stage) in guess.stages.iter().map_while(|stage| *stage).enumerate() {
            let kind;
            (kind, values[i]) = match stage {
                GuessStage::TopK(k) => (1, k),
                GuessStage::TopP(p) => (2, p.to_bits()),
                GuessStage::MinP(p) => (3, p.to_bits()),
                GuessStage::Temperature(t) => (4, t.to_bits()),
            };
            kinds |= kind << (8 * i);
        }
        assert!(!guess.is_whole || guess.changes.len() <= MAX_LEFT_OUT, "changes of a whole row");
        let flags = u32::from(guess.is_by_id) | u32::from(guess.is_whole) << 1;
        let changes = [packed.len() as u32, guess.changes.len() as u32, 0, 0];
        let own = [[kinds, flags, guess.u.to_bits(), 0], values, changes];
        packed[row * PER_ROW..][..PER_ROW].copy_from_slice(&own);
        packed.extend(guess.changes.iter().map(|change| {
            let LogitChange { id, bias, repeat, minus } = *change;
            [id, bias.to_bits(), repeat.to_bits(), minus.to_bits()]
        }));
    }
    packed
}

impl GpuBackend {
    /// Puts tokens that only the device knows into the tables of a batch.
    pub(crate) fn feed(&self, batch: &Batch, tables: BatchTables) -> Result<BatchTables, TensorError> {
        if let Some(fed) = &batch.fed {
            let pairs = self.buffers().take_with(self.gpu(), bytemuck::cast_slice(&fed.rows))?;
            let bound = [pairs.bound(), fed.tokens.handle::<Pooled>().bound(), tables.tokens.bound()];
            let grid = Grid::flat(fed.rows.len().div_ceil(64));
            self.run(&FeedTokens {}, &bound, &[fed.rows.len() as u32], grid)?;
        }
        Ok(tables)
    }

    /// See `Backend::argmax`.
    pub(crate) fn best_of(&self, x: &Act) -> Result<Vec<Option<u32>>, TensorError> {
        let best = self.record_best(x)?;
        let bytes = self.read_bytes(best.buffer(), x.rows() * 4)?;
        Ok(columns(&bytes))
    }

    /// Records the search for the largest value of each row.
    fn record_best(&self, x: &Act) -> Result<Pooled, TensorError> {
        self.gpu().check()?;
        let found = self.take(x.rows() * 4)?;
        let params = [x.rows() as u32, x.cols() as u32];
        let kernel = Argmax { lanes: self.max_lanes() };
        self.run(&kernel, &[self.floats(x), found.bound()], &params, Grid::flat(x.rows()))?;
        Ok(found)
    }

    /// See `Backend::largest`.
    pub(crate) fn largest_of(&self, x: &Act, n: usize) -> Result<Vec<Vec<(u32, f32)>>, TensorError> {
        let n = n.min(x.cols());
        let n_bytes = x.rows() * n * 8;
        let found = self.record_largest(x, n, n_bytes)?;
        let bytes = self.read_bytes(found.buffer(), n_bytes)?;
        Ok(ranked_rows(&bytes, n))
    }

    /// See `Backend::ranked`.
    pub(crate) fn ranked_of(&self, x: &Act, n: usize) -> Result<Vec<Ranked>, TensorError> {
        let n = n.min(x.cols());
        let (found, n_bytes) = self.record_ranked(x, n)?;
        let bytes = self.read_bytes(found.buffer(), n_bytes)?;
        Ok(rows_with_sums(&bytes, x.rows(), n))
    }

    /// Records the search for the `n` largest values of each row and the sums of exponentials, which lie behind the values,
    /// so that there is one read. Returns the bytes of both.
    fn record_ranked(&self, x: &Act, n: usize) -> Result<(Pooled, usize), TensorError> {
        let n_bytes = x.rows() * n * 8;
        let n_all = n_bytes + x.rows() * 4;
        let found = self.record_largest(x, n, n_all)?;
        let lanes = self.max_lanes();
        let kernel = ExpSum { lanes, subgroup: self.subgroup() };
        let params = [x.rows() as u32, x.cols() as u32, (n_bytes / 4) as u32];
        self.run(&kernel, &[self.floats(x), found.bound()], &params, Grid::flat(x.rows()))?;
        Ok((found, n_all))
    }

    /// Records the search for the `n` largest values of each row, into a buffer of `n_bytes`.
    fn record_largest(&self, x: &Act, n: usize, n_bytes: usize) -> Result<Pooled, TensorError> {
        assert!((1..=MAX_LARGEST).contains(&n), "{n} values of a row");
        self.gpu().check()?;
        let found = self.take(n_bytes)?;
        let params = [x.rows() as u32, x.cols() as u32, n as u32];
        let kernel = Largest { lanes: self.max_lanes() };
        self.run(&kernel, &[self.floats(x), found.bound()], &params, Grid::flat(x.rows()))?;
        Ok(found)
    }

    /// See `Backend::read_blocks`.
    pub(crate) fn copy_out(&self, kv: &GpuKv, blocks: &[u32]) -> Result<Vec<u8>, TensorError> {
        self.gpu().check()?;
        let mut bytes = Vec::new();
        for piece in blocks.chunks(kv.blocks_at_a_time()) {
            let gathered = self.take(piece.len() * kv.block_bytes())?;
            let mut record = self.record();
            // What has stored them comes first.
            record.submit(self.gpu(), self.buffers());
            let mut encoder =
                self.gpu().device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let mut at = 0;
            kv.each_region(piece, |buffer, from, n_bytes| {
                encoder.copy_buffer_to_buffer(buffer, from, gathered.buffer(), at, n_bytes);
                at += n_bytes;
            });
            self.gpu().submit(encoder.finish());
            bytes.extend(record.read(self.gpu(), self.buffers(), gathered.buffer(), at as usize)?);
        }
        Ok(bytes)
    }

    /// See `Backend::write_blocks`.
    pub(crate) fn copy_in(&self, kv: &GpuKv, blocks: &[u32], bytes: &[u8]) {
        assert_eq!(bytes.len(), blocks.len() * kv.block_bytes(), "bytes of {} blocks", blocks.len());
        // What still reads them comes first.
        self.record().submit(self.gpu(), self.buffers());
        let mut rest = bytes;
        kv.each_region(blocks, |buffer, at, n_bytes| {
            let own;
            (own, rest) = rest.split_at(n_bytes as usize);
            self.gpu().write(buffer, at, own);
        });
    }

    /// Waits, and copies the first `n` values of a buffer out.
    pub(crate) fn read_floats(&self, from: Bound<'_>, n: usize) -> Result<Vec<f32>, TensorError> {
        let runs = self.mode.runs();
        let bytes = self.read_bytes(from.buffer, if runs { n * 4 } else { 0 })?;
        self.keep_compiled();
        // Zeros that nobody has written take no memory.
        Ok(if runs { bytemuck::pod_collect_to_vec(&bytes) } else { vec![0.0; n] })
    }

    /// Waits, and copies the first bytes of a buffer out.
    fn read_bytes(&self, buffer: &wgpu::Buffer, n_bytes: usize) -> Result<Vec<u8>, TensorError> {
        self.gpu().check()?;
        if let Some(refused) = self.refused().take() {
            return Err(refused);
        }
        if !self.mode.runs() {
            self.buffers().submitted();
            return Ok(vec![0; n_bytes]);
        }
        self.record().read(self.gpu(), self.buffers(), buffer, n_bytes)
    }
}

/// Columns, where there are some.
fn columns(bytes: &[u8]) -> Vec<Option<u32>> {
    let columns: Vec<u32> = bytemuck::pod_collect_to_vec(bytes);
    columns.into_iter().map(|column| (column != NO_COLUMN).then_some(column)).collect()
}

/// What `largest.wgsl` and `exp_sum.wgsl` have found.
fn rows_with_sums(bytes: &[u8], n_rows: usize, n: usize) -> Vec<Ranked> {
    let (values, sums) = bytes.split_at(n_rows * n * 8);
    let sums: Vec<f32> = bytemuck::pod_collect_to_vec(sums);
    let rows = ranked_rows(values, n).into_iter().zip(sums);
    rows.map(|(largest, exp_sum)| Ranked { largest, exp_sum }).collect()
}

/// What `largest.wgsl` has found, `n` values of each row, by rank.
fn ranked_rows(bytes: &[u8], n: usize) -> Vec<Vec<(u32, f32)>> {
    let pairs: Vec<[u32; 2]> = bytemuck::pod_collect_to_vec(bytes);
    let of_row = |row: &[[u32; 2]]| -> Vec<(u32, f32)> {
        if row[0][0] == NO_COLUMN {
            return Vec::new();
        }
        let mut row: Vec<(u32, f32)> =
            row.iter().map(|&[column, bits]| (column, f32::from_bits(bits))).collect();
        row.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        row
    };
    pairs.chunks_exact(n).map(of_row).collect()
}
