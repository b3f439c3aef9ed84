//! Vectors and scores against sentence-transformers (`golden/embeddings/make.py`), and in any company.

use std::fs;
use std::path::{Path, PathBuf};

use mlxr_checkpoint::convert::{GgufOptions, hf_to_gguf};
use mlxr_checkpoint::{Checkpoint, Pooling};
use mlxr_models::{Embedder, EmbedderHead, ModelOptions, Placement, ScoreActivation, Text, shorten};
use mlxr_tensor::DType;
use serde_json::Value;

use crate::harness::backend;

/// Largest difference of one element of a vector of length 1.
const TOLERANCE: f32 = 2e-5;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/embeddings").join(name)
}

fn golden(name: &str) -> Value {
    let path = folder(&format!("{name}.json"));
    serde_json::from_slice(&fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

fn open(path: &Path) -> Embedder {
    let ckpt = Checkpoint::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    Embedder::load(&ckpt, &Placement::whole(backend()), &ModelOptions::default())
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn run(model: &Embedder, texts: &[Text]) -> Vec<Vec<f32>> {
    let n_tokens = texts.iter().map(|t| t.tokens.len()).sum();
    let mut scratch = model.scratch(n_tokens, texts.len()).unwrap();
    model.run(texts, &mut scratch).unwrap()
}

fn numbers<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

fn texts(ids: &Value, types: Option<&Value>) -> Vec<Text> {
    let ids: Vec<Vec<u32>> = numbers(ids);
    let types: Vec<Vec<u32>> = types.map(numbers).unwrap_or_default();
    let text = |(i, tokens)| Text { tokens, types: types.get(i).cloned().unwrap_or_default() };
    ids.into_iter().enumerate().map(text).collect()
}

fn assert_close(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let distance = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(distance <= TOLERANCE, "{what}: an element differs by {distance}");
}

fn check_vectors(name: &str, path: &Path, pooling: Pooling) {
    let golden = golden(name);
    let model = open(path);
    let expected: Vec<Vec<f32>> = numbers(&golden["vectors"]);
    let n_dims = expected[0].len();
    assert_eq!(model.head(), EmbedderHead::Vectors { pooling, n_dims }, "{name}");
    let texts = texts(&golden["ids"], None);
    let together = run(&model, &texts);
    let shortened: Vec<Vec<f32>> = numbers(&golden["shortened"]["vectors"]);
    for (i, vector) in together.iter().enumerate() {
        assert_close(&shorten(vector, n_dims), &expected[i], &format!("{name}, text {i}"));
        assert_close(&shorten(vector, 8), &shortened[i], &format!("{name}, text {i} in 8 dimensions"));
        // Row results do not depend on the batch.
        let alone = run(&model, &texts[i..=i]);
        assert_eq!(alone[0], *vector, "{name}, text {i} alone");
    }
    let reversed: Vec<Text> = texts.iter().rev().cloned().collect();
    let backwards: Vec<Vec<f32>> = run(&model, &reversed).into_iter().rev().collect();
    assert_eq!(backwards, together, "{name} in another order");
}

const EMBEDDERS: [(&str, Pooling); 7] = [
    ("bert", Pooling::Mean),
    ("bert_cls", Pooling::Cls),
    ("xlm_roberta", Pooling::Mean),
    ("nomic_bert", Pooling::Mean),
    ("modernbert", Pooling::Cls),
    ("qwen3", Pooling::Last),
    ("gemma3", Pooling::Mean),
];

#[test]
fn vectors_are_those_of_sentence_transformers_alone_and_in_any_batch() {
    for (name, pooling) in EMBEDDERS {
        check_vectors(name, &folder(name), pooling);
    }
}

#[test]
fn scores_of_pairs_are_those_of_sentence_transformers() {
    for name in ["bert_rank", "modernbert_rank", "xlm_roberta_rank"] {
        let golden = golden(name);
        let model = open(&folder(name));
        let activation = ScoreActivation::Sigmoid;
        assert_eq!(model.head(), EmbedderHead::Scores { n_labels: 1, activation });
        let got = run(&model, &texts(&golden["ids"], Some(&golden["types"])));
        let expected: Vec<f32> = numbers(&golden["logits"]);
        let scores: Vec<f32> = numbers(&golden["scores"]);
        for ((got, expected), score) in got.iter().zip(&expected).zip(&scores) {
            let distance = (got[0] - expected).abs();
            assert!(distance <= 1e-4, "{name}: {} in place of {expected}", got[0]);
            assert!((activation.apply(got[0]) - score).abs() <= 1e-4, "{name}: {score}");
        }
    }
}

#[test]
fn a_gguf_file_gives_the_same_vectors_and_scores() {
    let dir = tempfile::tempdir().unwrap();
    let convert = |name: &str| {
        let path = dir.path().join(format!("{name}.gguf"));
        let options = GgufOptions { dtype: DType::F32, ..GgufOptions::default() };
        // A cut of the tests' own: these files are about tensors and keys.
        let options = GgufOptions { pre_tokenizer: Some("gpt-2".to_owned()), ..options };
        let result = hf_to_gguf(&folder(name), &path, &options, &mut |_| std::ops::ControlFlow::Continue(()));
        result.unwrap_or_else(|e| panic!("{name}: {e}"));
        path
    };
    for (name, pooling) in [
        ("bert", Pooling::Mean),
        ("nomic_bert", Pooling::Mean),
        ("modernbert", Pooling::Cls),
        ("qwen3", Pooling::Last),
    ] {
        check_vectors(name, &convert(name), pooling);
    }
    for name in ["bert_rank", "modernbert_rank"] {
        let golden = golden(name);
        let got = run(&open(&convert(name)), &texts(&golden["ids"], Some(&golden["types"])));
        let expected: Vec<f32> = numbers(&golden["logits"]);
        for (got, expected) in got.iter().zip(&expected) {
            assert!((got[0] - expected).abs() <= 1e-4, "{name}: {} in place of {expected}", got[0]);
        }
    }
}

#[test]
fn pooling_none_gives_every_token_its_vector() {
    let mut ckpt = Checkpoint::open(&folder("bert")).unwrap();
    let ids = texts(&golden("bert")["ids"], None);
    let mean = run(&open(&folder("bert")), &ids);
    ckpt.embedding.pooling = Some(Pooling::None);
    let model = Embedder::load(&ckpt, &Placement::whole(backend()), &ModelOptions::default()).unwrap();
    let all = run(&model, &ids);
    for ((text, rows), mean) in ids.iter().zip(&all).zip(&mean) {
        assert_eq!(rows.len(), text.tokens.len() * 32);
        for (i, &expected) in mean.iter().enumerate() {
            let sum: f64 = rows.iter().skip(i).step_by(32).map(|&v| f64::from(v)).sum();
            assert_eq!((sum / text.tokens.len() as f64) as f32, expected);
        }
    }
}

#[test]
fn a_model_s_limits_and_faults_are_named() {
    let ckpt = Checkpoint::open(&folder("bert")).unwrap();
    let long = ModelOptions { n_ctx: Some(129) };
    let error = Embedder::load(&ckpt, &Placement::whole(backend()), &long).unwrap_err().to_string();
    assert!(error.contains("129") && error.contains("128"), "{error}");
    let mut ckpt = Checkpoint::open(&folder("bert")).unwrap();
    ckpt.config.insert("position_embedding_type".to_owned(), "relative_key".into());
    let error = Embedder::load(&ckpt, &Placement::whole(backend()), &ModelOptions::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("position_embedding_type"), "{error}");
    let mut ckpt = Checkpoint::open(&folder("bert_rank")).unwrap();
    ckpt.embedding.score_activation = Some("torch.nn.modules.activation.Tanh".to_owned());
    let error = Embedder::load(&ckpt, &Placement::whole(backend()), &ModelOptions::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("Tanh"), "{error}");
    let mut ckpt = Checkpoint::open(&folder("gemma3")).unwrap();
    ckpt.embedding.dense[0].activation = "torch.nn.Softplus".to_owned();
    let error = Embedder::load(&ckpt, &Placement::whole(backend()), &ModelOptions::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("Softplus"), "{error}");
}
