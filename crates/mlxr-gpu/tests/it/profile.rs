//! The time of each kernel.

use mlxr_gpu::{AdapterChoice, GpuBackend};
use mlxr_tensor::{Backend, HostTensor, TensorError};

use crate::backend;

#[test]
fn every_dispatch_is_counted_and_changes_nothing() {
    if backend().is_none() {
        return;
    }
    let gpu = GpuBackend::new(AdapterChoice::BestOrSoftware).unwrap();
    assert!(gpu.kernel_times().is_empty());
    let values: Vec<f32> = (0..64 * 32).map(|i| (i % 7) as f32 - 3.0).collect();
    let weight = gpu.upload(&HostTensor::from_f32("w", &[64, 32], &values).unwrap()).unwrap();
    // More dispatches than are measured at a time.
    const N_ROUNDS: u64 = 1500;
    let run = || {
        let mut x = gpu.act(1, 32, &values[..32]);
        for _ in 0..N_ROUNDS {
            gpu.scale(&mut x, -1.0);
        }
        gpu.read(&gpu.linear(&x, &weight, None)).unwrap()
    };
    let plain = run();
    match gpu.start_profile() {
        Ok(()) => {}
        Err(error @ TensorError::NoProfile { .. }) => return eprintln!("skipped: {error}"),
        Err(error) => panic!("{error}"),
    }
    assert_eq!(run(), plain);
    let times = gpu.kernel_times();
    let calls = |kernel: &str| times.iter().find(|time| time.kernel == kernel).map(|time| time.n_calls);
    assert_eq!((calls("scale"), calls("matvec_floats")), (Some(N_ROUNDS), Some(1)), "{times:?}");
    assert!(times.is_sorted_by(|a, b| a.time >= b.time), "{times:?}");
    gpu.stop_profile();
    assert_eq!(run(), plain);
    assert!(gpu.kernel_times().is_empty());
}
