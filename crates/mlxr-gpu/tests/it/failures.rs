//! What a device does that fails: it says so where results are read, and panics nowhere.

use mlxr_gpu::{AdapterChoice, GpuBackend};
use mlxr_tensor::{Backend, Batch, DType, KvLayerSpec, KvSpec, TensorError};

use crate::backend;

/// A device of its own, for tests that end it.
fn own() -> Option<GpuBackend> {
    backend()?;
    Some(GpuBackend::new(AdapterChoice::BestOrSoftware).unwrap())
}

#[test]
fn a_device_that_was_taken_away_says_so_at_every_read() {
    let Some(gpu) = own() else { return };
    let x = gpu.act(2, 4, &[1.0, 5.0, 2.0, 3.0, 4.0, 3.0, 2.0, 1.0]);
    assert_eq!(gpu.argmax(&x).unwrap(), [Some(1), Some(0)]);
    assert_eq!(gpu.failure(), None);
    let mut recorded = gpu.act(2, 4, &[1.0; 8]);
    gpu.add(&mut recorded, &x, 2.0);
    gpu.destroy();
    let lost = gpu.read(&recorded).unwrap_err();
    assert!(matches!(&lost, TensorError::DeviceLost { .. }), "{lost}");
    assert!(gpu.failure().is_some());
    // What comes later does nothing and panics nowhere.
    let mut later = gpu.act(2, 4, &[1.0; 8]);
    gpu.scale(&mut later, 2.0);
    let mut batch = Batch::new();
    batch.push(&[1, 2], 0, &[0], 16);
    assert!(matches!(gpu.read(&later), Err(TensorError::DeviceLost { .. })));
    assert!(matches!(gpu.argmax(&gpu.gather_rows(&later, &[0])), Err(TensorError::DeviceLost { .. })));
    drop((x, recorded, later, batch));
    // Another device of the same adapter works.
    let anew = own().unwrap();
    assert_eq!(anew.read(&anew.act(1, 2, &[1.0, 2.0])).unwrap(), [1.0, 2.0]);
}

#[test]
fn an_absurd_arena_is_refused_and_the_device_lives() {
    let Some(gpu) = own() else { return };
    let layer = KvLayerSpec { n_kv_heads: 8, k_dim: 128, v_dim: 128 };
    let spec = KvSpec { n_blocks: 1 << 40, block_tokens: 16, dtype: DType::F16, layers: vec![layer] };
    let refused = gpu.kv_cache(&spec).unwrap_err();
    let TensorError::OutOfMemory { needed_bytes, .. } = refused else { panic!("{refused}") };
    assert_eq!(needed_bytes, (1 << 40) * 16 * 8 * 128 * 2);
    assert_eq!(gpu.failure(), None);
    assert_eq!(gpu.read(&gpu.act(1, 2, &[1.0, 2.0])).unwrap(), [1.0, 2.0]);
}
