//! Files from the reference writers, and files that lie: each must give the error it deserves.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use mlxr_checkpoint::gguf::{GgufWriter, TensorPlan};
use mlxr_checkpoint::{Checkpoint, CheckpointError, MetaArray, MetaValue, read_safetensors};
use mlxr_tensor::{Format, HostTensor};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn golden(name: &str) -> PathBuf {
    root().join("golden/checkpoint").join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&fs::read(golden(name)).unwrap()).unwrap()
}

/// Opens every seed of a kind and compares the errors with `bad.json`.
fn check_seeds(kind: &str, open: impl Fn(&Path) -> Result<(), CheckpointError>) {
    let expected = json("bad.json");
    let expected: BTreeMap<String, Option<String>> = serde_json::from_value(expected[kind].clone()).unwrap();
    let mut files: Vec<_> =
        fs::read_dir(root().join("fuzz/seeds").join(kind)).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= expected.len(), "seeds of {kind} are missing");
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap();
        match (open(&path), expected.get(name)) {
            (Ok(()), Some(Some(words))) => panic!("{kind}/{name} opened, expected an error about {words:?}"),
            (Err(error), Some(Some(words))) => {
                let text = error.to_string();
                assert!(text.contains(words.as_str()), "{kind}/{name}: {text:?} does not say {words:?}");
            }
            // What a fuzzer found must only not panic.
            _ => {}
        }
    }
}

#[test]
fn lying_gguf_files_give_the_error_they_deserve() {
    check_seeds("gguf", |path| {
        let result = Checkpoint::open(path).map(|_| ());
        if let Err(error) = &result {
            let text = error.to_string();
            assert!(text.starts_with(path.to_str().unwrap()) && text.contains("\nhint: "), "{text}");
        }
        result
    });
}

#[test]
fn lying_safetensors_files_give_the_error_they_deserve() {
    check_seeds("safetensors", |path| read_safetensors(path, &fs::read(path).unwrap().into()).map(|_| ()));
}

#[test]
fn lying_configs_give_the_error_they_deserve() {
    check_seeds("config", |path| {
        let dir = tempfile::tempdir().unwrap();
        fs::copy(path, dir.path().join("config.json")).unwrap();
        fs::write(dir.path().join("model.safetensors"), b"\x02\0\0\0\0\0\0\0{}").unwrap();
        Checkpoint::open(dir.path()).map(|_| ())
    });
}

/// The seeds of the fuzz target `published`: a byte that picks the settings, and a file whose weights join.
#[test]
fn quantised_seeds_join_or_say_why_not() {
    let target = fs::read_to_string(root().join("fuzz/fuzz_targets/published.rs")).unwrap();
    let settings: Vec<&str> =
        target.split("r#\"").skip(1).take(7).map(|rest| rest.split("\"#").next().unwrap()).collect();
    let mut n_joined = 0;
    for entry in fs::read_dir(root().join("fuzz/seeds/published")).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        let (choice, file) = bytes.split_first().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let settings = settings[usize::from(*choice) % settings.len()];
        let config = format!(r#"{{"model_type": "llama", "quantization_config": {settings}}}"#);
        fs::write(dir.path().join("config.json"), config).unwrap();
        fs::write(dir.path().join("model.safetensors"), file).unwrap();
        let Ok(ckpt) = Checkpoint::open(dir.path()) else { continue };
        ckpt.tensors().for_each(|tensor| drop(tensor.to_f32().unwrap()));
        n_joined += usize::from(ckpt.tensor("layers.0.mlp.up.weight").is_some());
    }
    assert!(n_joined >= 8, "{n_joined} joined");
}

#[test]
fn files_of_the_gguf_package_read_as_it_reads_them() {
    let ckpt = Checkpoint::open(&golden("python.gguf")).unwrap();
    let expected = json("python.json");
    for (name, values) in expected["gguf"].as_object().unwrap() {
        let found = ckpt.unknown.iter().find(|t| t.name() == name).unwrap().to_f32().unwrap();
        let values: Vec<f32> = serde_json::from_value(values.clone()).unwrap();
        assert_eq!(found, values, "{name}");
    }
    let cube = ckpt.unknown.iter().find(|t| t.name() == "cube").unwrap();
    assert_eq!(cube.shape(), [2, 3, 4]);
    let metadata = ckpt.metadata.as_ref().unwrap();
    assert_eq!(metadata.get("t.u64"), Some(&MetaValue::U64(u64::MAX)));
    assert_eq!(metadata.get("t.i64"), Some(&MetaValue::I64(i64::MIN)));
    assert_eq!(metadata.str("t.string"), Some("žluť 🦙"));
    assert_eq!(metadata.i32s("t.ints"), Some(vec![1, -2, 3]));
    assert_eq!(metadata.f32s("t.floats"), Some(vec![0.5, -0.25]));
    assert_eq!(metadata.array("t.bools").and_then(MetaArray::to_bools), Some(vec![true, false, true]));
    let strings: Vec<_> = metadata.strings("t.strings").unwrap().iter().map(<[u8]>::to_vec).collect();
    assert_eq!(strings, [b"a".to_vec(), b"bc".to_vec(), vec![]]);
}

#[test]
fn a_file_of_the_gguf_package_is_written_again_byte_for_byte() {
    let ckpt = Checkpoint::open(&golden("python.gguf")).unwrap();
    let dtype = |t: &HostTensor| match t.format() {
        Format::Plain(dtype) => dtype,
        other => panic!("{other:?}"),
    };
    let plan = ckpt.unknown.iter().map(|t| TensorPlan {
        name: t.name().to_owned(),
        shape: t.shape().to_vec(),
        dtype: dtype(t),
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("again.gguf");
    let mut writer = GgufWriter::create(&path, ckpt.metadata.as_ref().unwrap(), plan.collect()).unwrap();
    for tensor in &ckpt.unknown {
        writer.tensor(tensor.data()).unwrap();
    }
    writer.finish().unwrap();
    assert!(fs::read(&path).unwrap() == fs::read(golden("python.gguf")).unwrap());
}

#[test]
fn files_of_the_safetensors_package_read_as_it_wrote_them() {
    let path = golden("python.safetensors");
    let tensors = read_safetensors(&path, &fs::read(&path).unwrap().into()).unwrap();
    let expected = json("python.json");
    for (name, entry) in expected["safetensors"].as_object().unwrap() {
        let found = tensors.iter().find(|t| t.name() == name).unwrap();
        let values: Vec<f32> = serde_json::from_value(entry["values"].clone()).unwrap();
        assert_eq!(serde_json::json!(found.shape()), entry["shape"]);
        assert_eq!(found.to_f32().unwrap(), values, "{name}");
    }
}
