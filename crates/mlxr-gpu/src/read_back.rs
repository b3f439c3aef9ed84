//! What leaves the device and is more than an activation: the largest values of rows, and blocks of keys and values.

use mlxr_tensor::{Act, MAX_LARGEST, Ranked, TensorError};

use crate::backend::{GpuBackend, NO_COLUMN, act};
use crate::buffers::Pooled;
use crate::kernels::{ExpSum, Largest};
use crate::kv::GpuKv;
use crate::recorder::Grid;

impl GpuBackend {
    /// See `Backend::largest`.
    pub(crate) fn largest_of(&self, x: &Act, n: usize) -> Result<Vec<Vec<(u32, f32)>>, TensorError> {
        let n = n.min(x.cols());
        let n_bytes = x.rows() * n * 8;
        let found = self.record_largest(x, n, n_bytes)?;
        let bytes = self.record().read(self.gpu(), self.buffers(), found.buffer(), n_bytes)?;
        Ok(ranked_rows(&bytes, n))
    }

    /// See `Backend::ranked`.
    pub(crate) fn ranked_of(&self, x: &Act, n: usize) -> Result<Vec<Ranked>, TensorError> {
        let n = n.min(x.cols());
        let n_bytes = x.rows() * n * 8;
        // The sums lie behind the values, so that there is one read.
        let n_all = n_bytes + x.rows() * 4;
        let found = self.record_largest(x, n, n_all)?;
        let lanes = self.max_lanes();
        let kernel = ExpSum { lanes, n_subgroups: lanes / self.subgroup() };
        let params = [x.rows() as u32, x.cols() as u32, (n_bytes / 4) as u32];
        self.run(&kernel, &[act(x), found.bound()], &params, Grid::flat(x.rows()))?;
        let bytes = self.record().read(self.gpu(), self.buffers(), found.buffer(), n_all)?;
        let (values, sums) = bytes.split_at(n_bytes);
        let sums: Vec<f32> = bytemuck::pod_collect_to_vec(sums);
        let rows = ranked_rows(values, n).into_iter().zip(sums);
        Ok(rows.map(|(largest, exp_sum)| Ranked { largest, exp_sum }).collect())
    }

    /// Records the search for the `n` largest values of each row, into a buffer of `n_bytes`.
    fn record_largest(&self, x: &Act, n: usize, n_bytes: usize) -> Result<Pooled, TensorError> {
        assert!((1..=MAX_LARGEST).contains(&n), "{n} values of a row");
        self.gpu().check()?;
        let found = self.take(n_bytes)?;
        let params = [x.rows() as u32, x.cols() as u32, n as u32];
        self.run(&Largest {}, &[act(x), found.bound()], &params, Grid::flat(x.rows()))?;
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
            self.gpu().queue.submit([encoder.finish()]);
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
