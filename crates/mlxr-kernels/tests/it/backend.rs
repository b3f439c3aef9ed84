//! The conformance suite, for each table of kernels, on one thread and on several.

use mlxr_kernels::{CpuBackend, CpuOptions, Isa, Kernels};
use mlxr_tensor::conformance::{CHECKS, data, run, run_check};
use mlxr_tensor::{Backend, HostTensor};

fn backend(isa: Isa, n_threads: usize) -> CpuBackend {
    CpuBackend::new(CpuOptions { n_threads: Some(n_threads), isa: Some(isa) })
        .expect("a table of this machine")
}

#[test]
fn every_table_conforms_on_two_threads() {
    for kernels in Kernels::available() {
        run(&backend(kernels.isa(), 2));
    }
}

#[test]
fn the_best_table_conforms_on_one_and_on_five_threads() {
    for n_threads in [1, 5] {
        let backend = backend(Kernels::best().isa(), n_threads);
        CHECKS.iter().for_each(|check| run_check(&backend, check));
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let tensor = data::tensor(data::formats()[0], &[101, 512], &mut data::Noise::new(1));
    let x = data::Noise::new(2).values(6 * 512);
    let mut results = [1, 2, 3, 7].map(|n_threads| {
        let backend = backend(Kernels::best().isa(), n_threads);
        let weight = backend.upload(&tensor).unwrap();
        backend.read(&backend.linear(&backend.act(6, 512, &x), &weight, None)).unwrap()
    });
    let first = results[0].clone();
    results.iter_mut().for_each(|result| assert_eq!(*result, first));
}

#[test]
fn every_format_with_numbers_is_accepted() {
    let backend = backend(Isa::Scalar, 1);
    for format in data::formats() {
        let tensor = data::tensor(format, &[2, 512], &mut data::Noise::new(3));
        backend.upload(&tensor).unwrap_or_else(|e| panic!("{}: {e}", format.name()));
    }
}

#[test]
fn a_table_of_words_is_refused() {
    let words = HostTensor::new("ids", &[4], mlxr_tensor::DType::U32, vec![0; 16].into()).unwrap();
    let error = backend(Isa::Scalar, 1).upload(&words).unwrap_err().to_string();
    assert!(error.contains("\"ids\"") && error.contains("U32"), "{error}");
}
