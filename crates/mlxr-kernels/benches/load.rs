//! Uploading the matrices of a model in TinyLlama's shape from a file in the page cache, beside reading that file.
//!
//! `cargo bench -p mlxr-kernels --bench load [-- FORMAT...]`, formats such as Q4_K or "MLX 4-bit g64". Every load asks the
//! system for its memory again, and drops the file's map.

#![expect(unsafe_code, reason = "the file is mapped")]

use std::fs::File;
use std::io::Write;
use std::time::Instant;

use bytes::Bytes;
use memmap2::Mmap;
use mlxr_kernels::{CpuBackend, CpuOptions};
use mlxr_tensor::conformance::data::{self, Noise};
use mlxr_tensor::{Backend, DType, Format, HostTensor, Weight};

const N_LAYERS: usize = 22;
/// Rows and columns of a layer's matrices.
const SHAPES: [[usize; 2]; 7] =
    [[2048, 2048], [256, 2048], [256, 2048], [2048, 2048], [5632, 2048], [5632, 2048], [2048, 5632]];
const N_ROUNDS: usize = 11;

/// Where a tensor's data, scales and biases end in the file.
struct Place {
    shape: [usize; 2],
    ends: [usize; 3],
}

fn write(format: Format, file: &mut File) -> std::io::Result<Vec<Place>> {
    let tensors = SHAPES.map(|shape| data::tensor(format, &shape, &mut Noise::new(1)));
    let (mut places, mut at) = (Vec::new(), 0);
    for tensor in (0..N_LAYERS).flat_map(|_| &tensors) {
        let mut ends = [0; 3];
        for (bytes, end) in [tensor.data(), tensor.scales(), tensor.biases()].into_iter().zip(&mut ends) {
            file.write_all(bytes)?;
            at += bytes.len();
            *end = at;
        }
        places.push(Place { shape: [tensor.rows(), tensor.cols()], ends });
    }
    Ok(places)
}

fn map(file: &File) -> std::io::Result<Bytes> {
    // SAFETY: nobody else has the file, which has no name.
    Ok(Bytes::from_owner(unsafe { Mmap::map(file)? }))
}

/// Seconds of mapping the file, reading all of it by two threads and unmapping it.
fn page_in(file: &File) -> std::io::Result<f64> {
    let begin = Instant::now();
    let bytes = map(file)?;
    let sum = |bytes: &[u8]| bytes.as_chunks::<8>().0.iter().fold(0, |sum, &b| sum ^ u64::from_le_bytes(b));
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let read = std::thread::scope(|scope| {
        let other = scope.spawn(|| sum(second));
        sum(first) ^ other.join().expect("a sum")
    });
    std::hint::black_box(read);
    drop(bytes);
    Ok(begin.elapsed().as_secs_f64())
}

/// Seconds of mapping the file, uploading what it holds and unmapping it.
fn load(file: &File, format: Format, places: &[Place], backend: &CpuBackend) -> std::io::Result<f64> {
    let begin = Instant::now();
    let bytes = map(file)?;
    let mut at = 0;
    let mut upload = |place: &Place| -> Weight {
        let parts = place.ends.map(|end| bytes.slice(std::mem::replace(&mut at, end)..end));
        let [data, scales, biases] = parts;
        let tensor = HostTensor::with_scales("w", &place.shape, format, data, scales, biases);
        backend.upload(&tensor.expect("sizes fit")).expect("a known format")
    };
    let weights: Vec<Weight> = places.iter().map(&mut upload).collect();
    drop(bytes);
    let seconds = begin.elapsed().as_secs_f64();
    drop(weights);
    Ok(seconds)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[expect(clippy::print_stdout, reason = "a benchmark reports on stdout")]
fn main() -> std::io::Result<()> {
    let named = |a: String| data::formats().into_iter().find(|f| f.name().eq_ignore_ascii_case(&a));
    let mut formats: Vec<Format> = std::env::args().skip(1).filter_map(named).collect();
    if formats.is_empty() {
        formats.push(Format::Plain(DType::Q4_0));
    }
    let backend = CpuBackend::new(CpuOptions::default()).expect("this CPU has its best kernels");
    println!("{}; medians of {N_ROUNDS} rounds", backend.describe());
    for format in formats {
        let mut file = tempfile::tempfile()?;
        let places = write(format, &mut file)?;
        let (mut reads, mut loads) = (Vec::new(), Vec::new());
        for _ in 0..N_ROUNDS {
            reads.push(page_in(&file)?);
            loads.push(load(&file, format, &places, &backend)?);
        }
        let (megabytes, read, load) = (file.metadata()?.len() >> 20, median(reads), median(loads));
        println!(
            "{:13} {megabytes:5} MiB: page-in {read:.3} s, load {load:.3} s, {:.2} times",
            format.name(),
            load / read
        );
    }
    Ok(())
}
