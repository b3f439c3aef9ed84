//! Quantised files open, keep what must stay exact, and mix types as the recipe says.

use std::ops::ControlFlow;

use mlxr_checkpoint::convert::OnProgress;
use mlxr_checkpoint::gguf::{GgufWriter, TensorPlan};
use mlxr_checkpoint::quantize::{ImportanceMatrix, Quantised, QuantizeOptions, quantize_gguf};
use mlxr_checkpoint::{Checkpoint, CheckpointError, FileType, GgufMetadata, MetaValue};
use mlxr_tensor::codec::can_quantise;
use mlxr_tensor::{DType, Format};
use std::path::Path;

const N_LAYERS: usize = 8;

/// A llama of 8 layers whose rows are 256 or 288 wide, all F32.
fn write_model(path: &Path) {
    let mut plan =
        vec![("token_embd.weight".to_owned(), vec![8, 256]), ("output.weight".to_owned(), vec![8, 256])];
    for i in 0..N_LAYERS {
        for (part, shape) in [
            ("attn_norm", vec![256]),
            ("attn_q", vec![4, 256]),
            ("attn_v", vec![4, 256]),
            ("ffn_down", vec![4, 256]),
            ("ffn_up", vec![4, 288]),
        ] {
            plan.push((format!("blk.{i}.{part}.weight"), shape));
        }
    }
    let entries = [
        ("general.architecture", MetaValue::from("llama")),
        ("llama.block_count", MetaValue::U32(N_LAYERS as u32)),
        ("llama.attention.head_count", MetaValue::U32(4)),
        ("split.count", MetaValue::U32(1)),
    ];
    let metadata = GgufMetadata::from_entries(entries.map(|(k, v)| (k.to_owned(), v)));
    let plan: Vec<_> =
        plan.into_iter().map(|(name, shape)| TensorPlan { name, shape, dtype: DType::F32 }).collect();
    let mut writer = GgufWriter::create(path, &metadata, plan.clone()).unwrap();
    for tensor in plan {
        let n = tensor.shape.iter().product::<usize>();
        let values = (0..n).flat_map(|i| ((i as f32 * 0.7).sin()).to_le_bytes());
        writer.tensor(&values.collect::<Vec<u8>>()).unwrap();
    }
    writer.finish().unwrap();
}

fn quantize(
    recipe: FileType,
    importance: Option<&ImportanceMatrix>,
) -> Result<(Quantised, Checkpoint), CheckpointError> {
    let dir = tempfile::tempdir().unwrap();
    let (src, dst) = (dir.path().join("src.gguf"), dir.path().join("dst.gguf"));
    write_model(&src);
    let go: OnProgress<'_> = &mut |_| ControlFlow::Continue(());
    let done = quantize_gguf(&src, &dst, recipe, importance, &QuantizeOptions::default(), go)?;
    Ok((done, Checkpoint::open(&dst).unwrap()))
}

fn dtype(ckpt: &Checkpoint, name: &str) -> DType {
    match ckpt.tensor(name).unwrap().format() {
        Format::Plain(dtype) => dtype,
        other => panic!("{name} is {other:?}"),
    }
}

#[test]
fn q4_k_m_mixes_types_and_reports_rows_that_do_not_fit() {
    let (done, ckpt) = quantize(FileType::Q4_K_M, None).unwrap();
    assert_eq!(dtype(&ckpt, "layers.0.attn_norm.weight"), DType::F32);
    assert_eq!(dtype(&ckpt, "layers.0.attn.q.weight"), DType::Q4_K);
    assert_eq!(dtype(&ckpt, "layers.0.attn.v.weight"), DType::Q6_K);
    assert_eq!(dtype(&ckpt, "layers.1.attn.v.weight"), DType::Q4_K);
    assert_eq!(dtype(&ckpt, "layers.7.mlp.down.weight"), DType::Q6_K);
    assert_eq!(dtype(&ckpt, "lm_head.weight"), DType::Q6_K);
    assert_eq!(dtype(&ckpt, "layers.0.mlp.up.weight"), DType::Q5_0);
    assert_eq!(done.fallbacks.len(), N_LAYERS);
    let metadata = ckpt.metadata.as_ref().unwrap();
    assert_eq!(metadata.u32("general.file_type"), Some(15));
    assert!(!metadata.contains("split.count"));
}

#[test]
fn every_recipe_with_an_encoder_makes_a_file_close_to_the_source() {
    let importance = ImportanceMatrix {
        entries: (0..N_LAYERS)
            .flat_map(|i| {
                ["attn_q", "attn_v", "ffn_down"].map(|p| (format!("blk.{i}.{p}.weight"), vec![1.0; 256]))
            })
            .chain((0..N_LAYERS).map(|i| (format!("blk.{i}.ffn_up.weight"), vec![1.0; 288])))
            .collect(),
        ..ImportanceMatrix::default()
    };
    for &recipe in FileType::ALL.iter().filter(|r| can_quantise(r.base())) {
        let (_, ckpt) = quantize(recipe, Some(&importance)).unwrap_or_else(|e| panic!("{recipe}: {e}"));
        let found = ckpt.tensor("layers.3.attn.q.weight").unwrap().to_f32().unwrap();
        let (dot, norms) = found.iter().enumerate().fold((0.0, (0.0, 0.0)), |(dot, (a, b)), (i, &v)| {
            let x = (i as f32 * 0.7).sin();
            (dot + x * v, (a + x * x, b + v * v))
        });
        let cosine = dot / (norms.0 * norms.1).sqrt();
        assert!(cosine > 0.8, "{recipe}: cosine {cosine}");
    }
}

#[test]
fn recipes_of_two_bits_demand_importance() {
    let error = quantize(FileType::Q2_K_S, None).unwrap_err().to_string();
    assert!(error.contains("importance") && error.contains("hint:"), "{error}");
}

#[test]
fn quantising_twice_must_be_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    write_model(&path("a.gguf"));
    let run = |from: &str, to: &str, recipe, allow_requantise| {
        let options = QuantizeOptions { allow_requantise, ..QuantizeOptions::default() };
        quantize_gguf(&path(from), &path(to), recipe, None, &options, &mut |_| ControlFlow::Continue(()))
    };
    run("a.gguf", "b.gguf", FileType::Q8_0, false).unwrap();
    assert!(run("b.gguf", "c.gguf", FileType::Q4_0, false).is_err());
    assert!(!path("c.gguf").exists());
    run("b.gguf", "c.gguf", FileType::Q4_0, true).unwrap();
}
