//! Weights on the device.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use mlxr_tensor::{Format, HostTensor, TensorError, codec};

use crate::bindings::Bound;
use crate::buffers::Buffers;
use crate::device::{BACKEND, Gpu};
use crate::layout::Layout;
use crate::repack::{Planes, repack_rows};
use crate::unified;
use crate::uploads::Matrix;

/// A buffer with its number.
pub(crate) struct Numbered {
    buffer: wgpu::Buffer,
    id: u64,
    /// Where in it the contents begin.
    start: u64,
    /// What it takes of the device's own memory.
    size: u64,
    buffers: Arc<Buffers>,
}

impl Drop for Numbered {
    fn drop(&mut self) {
        self.buffers.groups.forget(self.id);
        self.buffers.freed(self.size);
    }
}

impl Numbered {
    pub(crate) fn new(
        gpu: &Gpu,
        buffers: &Arc<Buffers>,
        what: &str,
        bytes: &[u8],
    ) -> Result<Self, TensorError> {
        let numbered = Self::empty(gpu, buffers, what, bytes.len() as u64)?;
        if !buffers.are_counted() {
            gpu.write(&numbered.buffer, 0, bytes);
        }
        Ok(numbered)
    }

    pub(crate) fn empty(
        gpu: &Gpu,
        buffers: &Arc<Buffers>,
        what: &str,
        n_bytes: u64,
    ) -> Result<Self, TensorError> {
        let (buffer, size) = buffers.allocate(gpu, what, n_bytes)?;
        Ok(Self { buffer, id: buffers.new_id(), start: 0, size, buffers: buffers.clone() })
    }

    /// A buffer over memory that is there already, whose contents begin at `start`.
    fn of(buffer: wgpu::Buffer, start: u64, buffers: &Arc<Buffers>) -> Self {
        Self { buffer, id: buffers.new_id(), start, size: 0, buffers: buffers.clone() }
    }

    pub(crate) fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    pub(crate) fn bound(&self) -> Bound<'_> {
        Bound { buffer: &self.buffer, id: self.id, start: self.start }
    }
}

/// Rows of a weight that fit in one binding.
pub(crate) struct Part {
    pub(crate) first_row: usize,
    pub(crate) n_rows: usize,
    pub(crate) codes: Numbered,
    pub(crate) high: Numbered,
    pub(crate) scales: Numbered,
}

impl Part {
    /// The rows of tensors one after the other, the first of them row `first_row` of the weight.
    fn new(
        gpu: &Gpu,
        buffers: &Arc<Buffers>,
        tensors: &[HostTensor],
        first_row: usize,
        layout: &Layout,
        row: &Planes,
    ) -> Result<Self, TensorError> {
        let n_rows = tensors.iter().map(HostTensor::rows).sum();
        let planes = if gpu.is_unified && !buffers.are_counted() {
            Self::shared(gpu, buffers, tensors, layout, row)
        } else {
            None
        };
        let planes = planes.unwrap_or_else(|| Self::copied(gpu, buffers, tensors, n_rows, layout, row));
        let [codes, high, scales] = planes?;
        Ok(Self { first_row, n_rows, codes, high, scales })
    }

    /// Planes in the device's own memory.
    fn copied(
        gpu: &Gpu,
        buffers: &Arc<Buffers>,
        tensors: &[HostTensor],
        n_rows: usize,
        layout: &Layout,
        row: &Planes,
    ) -> Result<[Numbered; 3], TensorError> {
        let name = tensors[0].name();
        let [codes, high, scales] =
            row.each().map(|plane| Numbered::empty(gpu, buffers, name, (plane.len() * n_rows) as u64));
        let planes = [codes?, high?, scales?];
        let [n_codes, n_high, n_scales] = row.each().map(<[u8]>::len);
        let mut first_row = 0;
        for tensor in tensors {
            if buffers.are_counted() {
                break;
            }
            let [codes, high, scales] = planes.each_ref().map(|plane| plane.buffer().clone());
            let planes = [(codes, n_codes), (high, n_high), (scales, n_scales)];
            gpu.uploads.add(Matrix { tensor: tensor.clone(), layout: *layout, planes, first_row });
            first_row += tensor.rows();
        }
        Ok(planes)
    }

    /// Planes in memory that the host shares; `None` where there is none to be had.
    fn shared(
        gpu: &Gpu,
        buffers: &Arc<Buffers>,
        tensors: &[HostTensor],
        layout: &Layout,
        row: &Planes,
    ) -> Option<Result<[Numbered; 3], TensorError>> {
        let name = tensors[0].name();
        if let Some((buffer, start)) = unified::stored(gpu, tensors, layout) {
            let none = || Numbered::empty(gpu, buffers, name, 0);
            let codes = Numbered::of(buffer, start, buffers);
            return Some(none().and_then(|high| Ok([codes, high, none()?])));
        }
        let planes = unified::planes(tensors, layout, row).ok()?.map(Bytes::from_owner);
        let [codes, high, scales] = planes.map(|memory| match unified::own(gpu, name, &memory) {
            Some(buffer) => Ok(Numbered::of(buffer, 0, buffers)),
            None => Numbered::new(gpu, buffers, name, &memory),
        });
        Some(codes.and_then(|codes| Ok([codes, high?, scales?])))
    }

    /// Codes, high bits and scales.
    pub(crate) fn planes(&self) -> [Bound<'_>; 3] {
        [self.codes.bound(), self.high.bound(), self.scales.bound()]
    }
}

/// Bytes a kernel sees of one buffer.
fn binding_limit(gpu: &Gpu) -> u64 {
    gpu.limits.max_storage_buffer_binding_size.min(gpu.limits.max_buffer_size)
}

/// A matrix, or the matrices of all experts one after the other; or a vector.
pub(crate) struct GpuWeight {
    pub(crate) layout: Layout,
    pub(crate) cols: usize,
    /// Rows of one matrix.
    pub(crate) n_out: usize,
    pub(crate) parts: Vec<Part>,
    /// The file's form, for values that are needed as plain f32.
    host: Vec<HostTensor>,
    values: OnceLock<Numbered>,
}

impl GpuWeight {
    /// A matrix or vector.
    ///
    /// # Errors
    /// [`TensorError::Unsupported`] when the format is not of numbers, [`TensorError::OutOfMemory`].
    pub(crate) fn new(gpu: &Gpu, buffers: &Arc<Buffers>, tensor: &HostTensor) -> Result<Self, TensorError> {
        let mut weight = Self::described(std::slice::from_ref(tensor))?;
        // Vectors are only ever read as plain values.
        if tensor.shape().len() > 1 {
            weight.add_parts(gpu, buffers, tensor)?;
        }
        Ok(weight)
    }

    /// The matrices of experts, which are alike.
    ///
    /// # Errors
    /// As [`Self::new`]; all of them must fit in one binding.
    pub(crate) fn stack(
        gpu: &Gpu,
        buffers: &Arc<Buffers>,
        tensors: &[HostTensor],
    ) -> Result<Self, TensorError> {
        let mut weight = Self::described(tensors)?;
        let row = weight.row(&tensors[0]);
        let n_rows = weight.n_out * tensors.len();
        let n_bytes = (row.codes.len() * n_rows) as u64;
        if n_bytes > binding_limit(gpu) {
            let what = "the experts of a layer (the device binds less at a time)".to_owned();
            return Err(TensorError::OutOfMemory { backend: BACKEND, what, needed_bytes: n_bytes });
        }
        weight.parts.push(Part::new(gpu, buffers, tensors, 0, &weight.layout, &row)?);
        Ok(weight)
    }

    /// Everything but the buffers.
    fn described(tensors: &[HostTensor]) -> Result<Self, TensorError> {
        let first = &tensors[0];
        let cols = first.cols();
        if !has_numbers(first.format()) {
            return Err(TensorError::Unsupported {
                name: first.name().to_owned(),
                backend: BACKEND,
                reason: format!("type {} cannot be converted to numbers", first.format().name()),
            });
        }
        let known = known_layout(first);
        let is_vector = first.shape().len() < 2;
        if known.is_none() && !is_vector {
            say_dequantised(first.format());
        }
        let layout = known.unwrap_or_else(|| Layout::dequantised(first.format()));
        let n_out = first.rows();
        Ok(Self { layout, cols, n_out, parts: Vec::new(), host: tensors.to_vec(), values: OnceLock::new() })
    }

    fn add_parts(
        &mut self,
        gpu: &Gpu,
        buffers: &Arc<Buffers>,
        tensor: &HostTensor,
    ) -> Result<(), TensorError> {
        let row = self.row(tensor);
        let row_bytes = row.codes.len().max(1) as u64;
        let max_rows = usize::try_from(binding_limit(gpu) / row_bytes).unwrap_or(usize::MAX).max(1);
        for start in (0..tensor.rows()).step_by(max_rows) {
            let n_rows = max_rows.min(tensor.rows() - start);
            let rows = tensor.row_slice(start..start + n_rows);
            self.parts.push(Part::new(gpu, buffers, &[rows], start, &self.layout, &row)?);
        }
        Ok(())
    }

    /// A row as it lies on the device; nothing of a tensor without rows.
    fn row(&self, tensor: &HostTensor) -> Planes {
        repack_rows(&tensor.row_slice(0..tensor.rows().min(1)), &self.layout)
    }

    /// All elements as f32, row-major: for norms, biases and sinks.
    ///
    /// # Errors
    /// [`TensorError::OutOfMemory`].
    pub(crate) fn values(&self, gpu: &Gpu, buffers: &Arc<Buffers>) -> Result<Bound<'_>, TensorError> {
        if self.values.get().is_none() {
            let mut values = Vec::new();
            for tensor in &self.host {
                values.extend(codec::dequantise(tensor)?);
            }
            let numbered = Numbered::new(gpu, buffers, "vector", bytemuck::cast_slice(&values))?;
            // When another thread was faster its buffer serves as well.
            let _ = self.values.set(numbered);
        }
        Ok(self.values.get().expect("just set").bound())
    }
}

/// The layout of a tensor, if there is one for its format and columns.
fn known_layout(tensor: &HostTensor) -> Option<Layout> {
    Layout::of(tensor.format()).filter(|layout| match layout {
        Layout::Codes(codes) => tensor.cols().is_multiple_of(codes.block()),
        Layout::Floats(_) => true,
    })
}

/// Bytes that a weight takes once it is on a device: not those of its file where its type has no kernel and becomes floats,
/// or its scales are laid out in another way.
pub fn weight_bytes(tensor: &HostTensor) -> usize {
    if tensor.shape().len() < 2 {
        return tensor.shape().iter().product::<usize>() * size_of::<f32>();
    }
    if tensor.rows() == 0 || !has_numbers(tensor.format()) {
        return tensor.n_bytes();
    }
    let layout = known_layout(tensor).unwrap_or_else(|| Layout::dequantised(tensor.format()));
    let row = repack_rows(&tensor.row_slice(0..1), &layout);
    row.each().iter().map(|plane| plane.len()).sum::<usize>() * tensor.rows()
}

/// Says, once a type, that its matrices take more of the device's memory than of the file.
fn say_dequantised(format: Format) {
    static SAID: Mutex<Vec<Format>> = Mutex::new(Vec::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if !said.contains(&format) {
        said.push(format);
        tracing::warn!(
            "no kernel of the GPU's has type {}: its matrices become floats of 16 bits or more as they are uploaded",
            format.name()
        );
    }
}

/// Whether a vector or matrix of `format` can be read as numbers at all.
fn has_numbers(format: Format) -> bool {
    match format {
        Format::Plain(dtype) => codec::row_decoder(dtype).is_some(),
        _ => true,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that meets an unexpected None or Err should stop there")]
mod tests {
    use mlxr_tensor::conformance::data::{self, Noise};
    use mlxr_tensor::{Backend, DType, Weight};

    use super::*;
    use crate::{AdapterChoice, GpuBackend};

    #[test]
    fn weights_take_what_is_said_before_they_are_there() {
        let Ok(gpu) = GpuBackend::new(AdapterChoice::BestOrSoftware) else {
            assert!(std::env::var_os("MLXR_REQUIRE_GPU").is_none(), "no GPU");
            return;
        };
        let mut n_wider = 0;
        for format in data::formats().into_iter().chain([Format::Plain(DType::IQ3_S)]) {
            let tensor = data::tensor(format, &[40, 512], &mut Noise::new(3));
            let weight = gpu.upload(&tensor).unwrap();
            let parts = &weight.handle::<GpuWeight>().parts;
            let planes = parts.iter().flat_map(|part| [&part.codes, &part.high, &part.scales]);
            let taken: u64 = planes.map(|plane| plane.buffer().size()).sum();
            let said = weight_bytes(&tensor) as u64;
            // Buffers are whole vectors of 16 bytes, one of them where there is nothing.
            assert!((said..said + 48).contains(&taken), "{}: {said} for {taken}", format.name());
            n_wider += usize::from(said > tensor.n_bytes() as u64 * 3 / 2);
        }
        assert!(n_wider > 0, "every type has a kernel");
    }

    #[test]
    fn weights_that_the_host_shares_and_those_behind_an_offset_give_the_same_products() {
        let Ok(gpu) = GpuBackend::new(AdapterChoice::BestOrSoftware) else { return };
        let mut noise = Noise::new(7);
        let (x, cols) = (noise.values(3 * 512), 512);
        for dtype in [DType::F16, DType::Q4_K, DType::Q6_K] {
            let tensor = data::tensor(Format::Plain(dtype), &[40, cols], &mut noise);
            let usual = || GpuWeight::new(gpu.gpu(), gpu.buffers(), &tensor).unwrap();
            let product = |weight: GpuWeight| {
                let weight = Weight::new(tensor.shape(), tensor.format(), weight);
                gpu.read(&gpu.linear(&gpu.act(3, cols, &x), &weight, None)).unwrap()
            };
            let expected = product(usual());

            let mut shared = usual();
            let tensors = std::slice::from_ref(&tensor);
            let (layout, row) = (shared.layout, shared.row(&tensor));
            let planes = Part::shared(gpu.gpu(), gpu.buffers(), tensors, &layout, &row);
            let [codes, high, scales] = planes.unwrap().unwrap();
            shared.parts = vec![Part { first_row: 0, n_rows: 40, codes, high, scales }];
            assert_eq!(product(shared), expected, "{dtype}, shared");

            let mut moved = usual();
            let alignment = gpu.gpu().limits.min_storage_buffer_offset_alignment.max(16) as usize;
            let codes = [vec![0xff; alignment], repack_rows(&tensor, &layout).codes].concat();
            let mut moved_codes = Numbered::new(gpu.gpu(), gpu.buffers(), "moved", &codes).unwrap();
            moved_codes.start = alignment as u64;
            moved.parts[0].codes = moved_codes;
            assert_eq!(product(moved), expected, "{dtype}, behind an offset");
        }
    }
}
