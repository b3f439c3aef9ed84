//! Weights in memory that the host and the device share, as on Apple Silicon: the device reads them where they are.
//!
//! Metal makes a buffer of whole pages of a process without copying them. Floats whose rows are whole chunks stay in the
//! file's map; all other weights are repacked into pages of their own. Nothing is staged.
//!
//! Invariant: such a buffer owns what keeps its memory, so that goes after the device's last use.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use memmap2::MmapMut;
use mlxr_tensor::HostTensor;

use crate::device::{AdapterInfo, Gpu};
use crate::layout::{Element, FLOATS_CHUNK, Layout};
use crate::repack::{Planes, piece_rows, repack};

/// Bytes of a page: every process on Apple Silicon has pages of this size.
const PAGE_BYTES: usize = 16 << 10;

/// Whether a device takes weights where they lie in the host's memory.
pub(crate) fn is_unified(info: &AdapterInfo) -> bool {
    let has_pages = cfg!(all(target_vendor = "apple", target_arch = "aarch64"));
    has_pages && info.api == "metal" && info.memory.is_some_and(|memory| memory.is_shared)
}

/// Whole pages, and what lies in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// The address of the first page.
    start: usize,
    /// Of all pages.
    n_bytes: usize,
    /// Where in them the contents begin.
    pub(crate) offset: usize,
}

impl Span {
    /// The pages of the memory at `addresses`. `None` where a kernel cannot begin to read there: bindings begin at
    /// multiples of `alignment`, and lanes load 16 bytes at a time.
    fn of(addresses: Range<usize>, alignment: usize) -> Option<Span> {
        const LOAD: usize = 16;
        let start = addresses.start / PAGE_BYTES * PAGE_BYTES;
        let n_bytes = addresses.end.next_multiple_of(PAGE_BYTES) - start;
        let offset = addresses.start - start;
        let fits = !addresses.is_empty() && offset.is_multiple_of(alignment.max(LOAD));
        fits.then_some(Span { start, n_bytes, offset })
    }
}

/// Where the bytes of tensors are that follow each other in memory, as the matrices of experts do in a GGUF file.
fn addresses(tensors: &[HostTensor]) -> Option<Range<usize>> {
    let mut ranges = tensors.iter().map(|tensor| {
        let start = tensor.data().as_ptr().addr();
        start..start + tensor.data().len()
    });
    let first = ranges.next()?;
    ranges.try_fold(first, |all, next| (all.end == next.start).then_some(all.start..next.end))
}

/// Whether a tensor lies on the device as it does in the file.
fn is_as_stored(tensor: &HostTensor, layout: &Layout) -> bool {
    let Layout::Floats(floats) = layout else { return false };
    Layout::of(tensor.format()) == Some(*layout)
        && !floats.has_scales
        && floats.element != Element::Table
        && tensor.cols().is_multiple_of(FLOATS_CHUNK)
}

/// A buffer over the file's map, and where in it the tensors begin; `None` where they cannot stay there.
pub(crate) fn stored(gpu: &Gpu, tensors: &[HostTensor], layout: &Layout) -> Option<(wgpu::Buffer, u64)> {
    if !tensors.iter().all(|tensor| is_as_stored(tensor, layout)) {
        return None;
    }
    let span = Span::of(addresses(tensors)?, gpu.limits.min_storage_buffer_offset_alignment as usize)?;
    let owners: Vec<Bytes> = tensors.iter().map(|tensor| tensor.data().clone()).collect();
    Some((no_copy(gpu, tensors[0].name(), span, owners)?, span.offset as u64))
}

/// A buffer over memory that begins with a page; `None` where the device takes none.
pub(crate) fn own(gpu: &Gpu, what: &str, memory: &Bytes) -> Option<wgpu::Buffer> {
    let start = memory.as_ptr().addr();
    let span = Span::of(start..start + memory.len(), PAGE_BYTES)?;
    no_copy(gpu, what, span, vec![memory.clone()])
}

/// Tensors one after the other as the device has them, in memory of their own.
///
/// # Errors
/// When there is no such memory.
pub(crate) fn planes(tensors: &[HostTensor], layout: &Layout, row: &Planes) -> io::Result<[MmapMut; 3]> {
    let n_rows: usize = tensors.iter().map(HostTensor::rows).sum();
    let [codes, high, scales] = row.each().map(|row| {
        // A buffer is never empty, and ends with a vector.
        MmapMut::map_anon((row.len() * n_rows).next_multiple_of(16).max(16))
    });
    let mut planes = [codes?, high?, scales?];
    let mut first_row = 0;
    for tensor in tensors {
        let rows = first_row..first_row + tensor.rows();
        let n_piece = piece_rows(tensor);
        let mut parts = planes.iter_mut().zip(row.each()).map(|(plane, row)| {
            let part = &mut plane[rows.start * row.len()..rows.end * row.len()];
            part.chunks_mut((n_piece * row.len()).max(1)).map(Mutex::new).collect::<Vec<_>>()
        });
        let parts: [Vec<Mutex<&mut [u8]>>; 3] = std::array::from_fn(|_| parts.next().expect("three planes"));
        repack(tensor, layout, |first, repacked| {
            for (part, bytes) in parts.iter().zip(repacked.each()) {
                if let Some(piece) = part.get(first / n_piece) {
                    piece.lock().unwrap_or_else(PoisonError::into_inner).copy_from_slice(bytes);
                }
            }
        });
        first_row = rows.end;
    }
    Ok(planes)
}

#[cfg(not(all(target_vendor = "apple", target_arch = "aarch64")))]
fn no_copy(_: &Gpu, _: &str, _: Span, _: Vec<Bytes>) -> Option<wgpu::Buffer> {
    None
}

/// A buffer of pages that are there already, which goes on to own what keeps them.
#[cfg(all(target_vendor = "apple", target_arch = "aarch64"))]
fn no_copy(gpu: &Gpu, what: &str, span: Span, owners: Vec<Bytes>) -> Option<wgpu::Buffer> {
    use std::ffi::c_void;
    use std::ptr::{NonNull, with_exposed_provenance_mut};

    use objc2_metal::{MTLDevice, MTLResourceOptions};
    use wgpu::hal::{api::Metal, metal};

    let n_bytes = span.n_bytes as u64;
    if n_bytes - span.offset as u64 > gpu.limits.max_storage_buffer_binding_size
        || n_bytes > gpu.limits.max_buffer_size
    {
        return None;
    }
    let pages = NonNull::new(with_exposed_provenance_mut::<c_void>(span.start))?;
    // Metal calls it once, when the device is done with the buffer; what it holds goes with it.
    let release = block2::RcBlock::new(move |_: NonNull<c_void>, _: usize| {
        let _ = &owners;
    });
    // SAFETY: the handle is only used to make the buffer below, and the device is not destroyed by it.
    let device = unsafe { gpu.device.as_hal::<Metal>() }?;
    // SAFETY: the pages hold bytes of `owners`, so all of them are mapped as long as those live, which the block keeps: it
    // lives as long as the buffer, and `Bytes` may be dropped on any thread. Kernels only read them, and so does the host.
    let buffer = unsafe {
        device.raw_device().newBufferWithBytesNoCopy_length_options_deallocator(
            pages,
            span.n_bytes,
            MTLResourceOptions::StorageModeShared,
            Some(&release),
        )
    }?;
    drop(device);
    // SAFETY: the buffer has this size.
    let buffer = unsafe { metal::Device::buffer_from_raw(buffer, n_bytes) };
    let descriptor = wgpu::BufferDescriptor {
        label: Some(what),
        size: n_bytes,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    };
    // SAFETY: it was made from this device's own handle, of that size, and is never empty or unwritten.
    Some(unsafe { gpu.device.create_buffer_from_hal::<Metal>(buffer, &descriptor) })
}

#[cfg(test)]
mod tests {
    use mlxr_tensor::conformance::data::{self, Noise};
    use mlxr_tensor::{DType, Format};

    use super::*;
    use crate::repack::repack_rows;

    #[test]
    fn a_span_is_the_pages_of_what_lies_in_it() {
        const PAGE: usize = PAGE_BYTES;
        let span = |addresses, alignment| {
            Span::of(addresses, alignment).map(|span| (span.start, span.n_bytes, span.offset))
        };
        assert_eq!(span(PAGE..PAGE + 1, 32), Some((PAGE, PAGE, 0)));
        assert_eq!(span(PAGE + 64..2 * PAGE, 32), Some((PAGE, PAGE, 64)));
        assert_eq!(span(PAGE + 64..2 * PAGE + 1, 32), Some((PAGE, 2 * PAGE, 64)));
        assert_eq!(span(2 * PAGE - 32..2 * PAGE + 32, 32), Some((PAGE, 2 * PAGE, PAGE - 32)));
        // Where bindings or vectors do not begin.
        assert_eq!(span(PAGE + 16..2 * PAGE, 32), None);
        assert_eq!(span(PAGE + 8..2 * PAGE, 4), None);
        assert_eq!(span(PAGE + 16..2 * PAGE, 4), Some((PAGE, PAGE, 16)));
        assert_eq!(span(PAGE..PAGE, 32), None);
    }

    #[test]
    fn tensors_that_follow_each_other_have_one_range() {
        let stack = data::tensor(Format::Plain(DType::F16), &[3, 4, 64], &mut Noise::new(1));
        let items = [0, 1, 2].map(|i| stack.stack_item(i));
        let start = stack.data().as_ptr().addr();
        assert_eq!(addresses(&items), Some(start..start + 3 * 4 * 64 * 2));
        assert_eq!(addresses(&items[1..2]), Some(start + 512..start + 1024));
        let [first, second, third] = items;
        assert_eq!(addresses(&[first.clone(), third]), None);
        assert_eq!(addresses(&[second, first]), None);
        assert_eq!(addresses(&[]), None);
    }

    #[test]
    fn floats_in_whole_chunks_are_as_stored_and_nothing_else_is() {
        let mut noise = Noise::new(2);
        let mut n_stored = 0;
        for format in data::formats() {
            let tensor = data::tensor(format, &[4, 512], &mut noise);
            let Some(layout) = Layout::of(format) else { continue };
            let repacked = repack_rows(&tensor, &layout);
            let is_same =
                repacked.codes == **tensor.data() && repacked.high.is_empty() && repacked.scales.is_empty();
            assert_eq!(is_as_stored(&tensor, &layout), is_same, "{}", format.name());
            n_stored += usize::from(is_same);
        }
        // F32, F16, BF16 and the two kinds of FP8.
        assert_eq!(n_stored, 5);
        let ragged = data::tensor(Format::Plain(DType::F16), &[4, 12], &mut noise);
        assert!(!is_as_stored(&ragged, &Layout::of(ragged.format()).unwrap()));
    }

    #[test]
    fn planes_are_filled_as_rows_are_repacked() {
        for dtype in [DType::Q4_0, DType::Q6_K, DType::F16, DType::Q8_0] {
            // More rows than a thread takes at a time.
            let stack = data::tensor(Format::Plain(dtype), &[2, 2100, 1024], &mut Noise::new(4));
            let items = [0, 1].map(|i| stack.stack_item(i));
            let layout = Layout::of(stack.format()).unwrap();
            let row = repack_rows(&stack.stack_item(0).row_slice(0..1), &layout);
            let got = planes(&items, &layout, &row).unwrap();
            let expected = items.each_ref().map(|item| repack_rows(item, &layout));
            for (i, plane) in got.iter().enumerate() {
                let joined = [expected[0].each()[i], expected[1].each()[i]].concat();
                assert!(plane[..joined.len()] == joined, "{dtype}, plane {i}");
                assert!(plane.len() < joined.len() + 32, "{dtype}, plane {i}");
            }
        }
    }
}
