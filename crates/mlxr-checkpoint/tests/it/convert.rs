//! Conversions of the tiny checkpoints: what is written opens as the same model, and equals llama.cpp's own files.

use std::ops::ControlFlow;
use std::path::Path;

use mlxr_checkpoint::convert::{GgufOptions, hf_to_gguf};
use mlxr_checkpoint::{Checkpoint, CheckpointError, MetaValue};
use mlxr_tensor::DType;

use crate::formats::{families, names, open, values};

fn f32_options() -> GgufOptions {
    GgufOptions { dtype: DType::F32, pre_tokenizer: None, ..GgufOptions::default() }
}

fn assert_same_tensors(a: &Checkpoint, b: &Checkpoint) {
    assert_eq!(names(a), names(b), "{} {}", a.path.display(), b.path.display());
    for name in names(a) {
        assert!(values(a, &name) == values(b, &name), "{} {name}", a.path.display());
    }
}

#[test]
fn gguf_files_of_every_family_equal_llama_cpps_tensor_by_tensor_and_key_by_key() {
    // What a converter says about itself, and keys whose absence means the same.
    let own = ["general.", "tokenizer.ggml.pre", "tokenizer.ggml.merges", "tokenizer.chat_template"];
    for family in families() {
        let dir = tempfile::tempdir().unwrap();
        let made_path = dir.path().join("made.gguf");
        hf_to_gguf(&family.join("hf"), &made_path, &f32_options(), &mut |_| ControlFlow::Continue(()))
            .unwrap();
        let made = open(&made_path);
        let theirs = open(&family.join("model.gguf"));
        assert_same_tensors(&theirs, &made);
        let ours = made.metadata.as_ref().unwrap();
        for (key, value) in theirs.metadata.as_ref().unwrap().iter() {
            if own.iter().any(|prefix| key.starts_with(prefix)) {
                continue;
            }
            let found = ours.get(key);
            let same = match (value, found) {
                (MetaValue::F32(a), Some(MetaValue::F32(b))) => (a - b).abs() <= 1e-6 * a.abs(),
                (value, found) => found == Some(value),
            };
            assert!(same, "{}: {key}: {value:?} {found:?}", family.display());
        }
    }
}

#[test]
fn mlx_folders_convert_to_gguf_by_value() {
    for family in families() {
        let mlx = family.join("mlx-4bit");
        if !mlx.is_dir() {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made.gguf");
        hf_to_gguf(&mlx, &path, &f32_options(), &mut |_| ControlFlow::Continue(())).unwrap();
        let (a, b) = (open(&mlx), open(&path));
        assert_eq!(names(&a), names(&b));
        for name in names(&a) {
            let found = crate::formats::in_half_order(&b, &name);
            assert!(values(&a, &name) == found, "{} {name}", family.display());
        }
    }
}

#[test]
fn a_stopped_conversion_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made.gguf");
    let mut n = 0;
    let src = families().remove(0).join("hf");
    let result = hf_to_gguf(&src, &path, &f32_options(), &mut |_| {
        n += 1;
        if n < 4 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    assert!(matches!(result, Err(CheckpointError::Cancelled)));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_disk_that_refuses_is_an_error_with_the_path() {
    let src = families().remove(0).join("hf");
    let path = Path::new("/proc/mlxr-cannot-write-here/made.gguf");
    let error = hf_to_gguf(&src, path, &f32_options(), &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, CheckpointError::Io { .. }), "{error}");
}
