//! Conversions of the tiny checkpoints: what is written opens as the same model, and equals llama.cpp's own files.

use std::ops::ControlFlow;
use std::path::Path;

use mlxr_checkpoint::convert::{
    FolderOptions, GgufOptions, MlxQuantisation, OnProgress, gguf_to_hf, hf_to_gguf, hf_to_mlx, mlx_to_hf,
};
use mlxr_checkpoint::{Checkpoint, CheckpointError, CheckpointFormat, MetaValue, TokenizerSource};
use mlxr_tensor::{DType, Format};

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
            let is_own = own.iter().any(|prefix| key.starts_with(prefix));
            if is_own && !key.starts_with("general.sampling.") {
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

#[test]
fn gguf_files_convert_back_to_the_same_folder() {
    for family in families() {
        let dir = tempfile::tempdir().unwrap();
        let made_path = dir.path().join("made");
        let result = gguf_to_hf(
            &family.join("model.gguf"),
            &made_path,
            &FolderOptions { max_shard_bytes: 20_000, ..FolderOptions::default() },
            &mut |_| ControlFlow::Continue(()),
        );
        result.unwrap();
        let (hf, made) = (open(&family.join("hf")), open(&made_path));
        assert!(made_path.join("model.safetensors.index.json").is_file());
        assert_eq!(names(&hf), names(&made));
        for name in names(&hf) {
            let ((_, a), (_, b)) = (values(&hf, &name), values(&made, &name));
            // Norms that mean 1 + w lose the last bits of w.
            let slack = if hf.arch.hf_norm_plus_one && name.ends_with("norm.weight") { 1e-6 } else { 0.0 };
            assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= slack), "{} {name}", family.display());
        }
        // The vocabulary is the original one.
        let vocab = |ckpt: &Checkpoint| match &ckpt.tokenizer {
            TokenizerSource::HfJson { tokenizer_json, .. } => {
                let json: serde_json::Value = serde_json::from_slice(tokenizer_json).unwrap();
                let mut all: Vec<_> =
                    json["model"]["vocab"].as_object().unwrap().clone().into_iter().collect();
                all.sort_by_key(|(_, id)| id.as_u64());
                let mut added: Vec<_> = json["added_tokens"].as_array().unwrap().clone();
                added.sort_by_key(|t| t["id"].as_u64());
                (all, added, json["model"]["merges"].clone())
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(vocab(&hf), vocab(&made), "{}", family.display());
    }
}

#[test]
fn folders_convert_to_mlx_and_back() {
    for family in families() {
        let dir = tempfile::tempdir().unwrap();
        let (mlx, back) = (dir.path().join("mlx"), dir.path().join("back"));
        let how = MlxQuantisation::Affine { bits: 8, group_size: 32 };
        let go: OnProgress<'_> = &mut |_| ControlFlow::Continue(());
        hf_to_mlx(&family.join("hf"), &mlx, Some(how), &FolderOptions::default(), go).unwrap();
        let made = open(&mlx);
        assert_eq!(made.format, CheckpointFormat::Mlx);
        let embed = made.tensor("embed_tokens.weight").unwrap();
        let expected = Format::MlxAffine { bits: 8, group_size: 32, scale: DType::BF16 };
        assert_eq!(embed.format(), expected, "{}", family.display());
        let options = FolderOptions { dtype: Some(DType::F32), ..FolderOptions::default() };
        mlx_to_hf(&mlx, &back, &options, &mut |_| ControlFlow::Continue(())).unwrap();
        let back = open(&back);
        assert!(!back.config.contains_key("quantization"));
        assert_eq!(names(&made), names(&back));
        for name in names(&made) {
            let ((_, a), (_, b)) = (values(&made, &name), values(&back, &name));
            assert!(
                a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-6 * (1.0 + a.abs())),
                "{} {name}",
                family.display()
            );
        }
    }
}

#[test]
fn a_folder_that_exists_is_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let src = families().remove(0).join("model.gguf");
    let result = gguf_to_hf(&src, dir.path(), &FolderOptions::default(), &mut |_| ControlFlow::Continue(()));
    assert!(result.unwrap_err().to_string().contains("choose a new folder"));
}
