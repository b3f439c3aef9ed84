//! Writes safetensors files, in shards with an index when they would be too large for one.

use std::path::Path;

use mlxr_tensor::DType;
use serde_json::{Map, Value, json};

use super::DTYPES;
use crate::CheckpointError;
use crate::atomic::AtomicFile;

/// A tensor to write: its bytes are made when its turn comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub n_bytes: u64,
}

/// Writes `entries` into `dir`, at most `max_shard_bytes` of data to a file; `bytes_of` makes entry `i`.
pub(crate) fn write_dir(
    dir: &Path,
    entries: &[Entry],
    metadata: &Map<String, Value>,
    max_shard_bytes: u64,
    bytes_of: &mut dyn FnMut(usize) -> Result<Vec<u8>, CheckpointError>,
) -> Result<u64, CheckpointError> {
    let shards = cut_into_shards(entries, max_shard_bytes);
    let n_shards = shards.len();
    let mut weight_map = Map::new();
    let mut n_written = 0;
    for (i, shard) in shards.into_iter().enumerate() {
        let file = match n_shards {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{n_shards:05}.safetensors", i + 1),
        };
        n_written += write_file(&dir.join(&file), entries, shard.clone(), metadata, bytes_of)?;
        weight_map.extend(entries[shard].iter().map(|e| (e.name.clone(), json!(file))));
    }
    if n_shards > 1 {
        let total: u64 = entries.iter().map(|e| e.n_bytes).sum();
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        let path = dir.join("model.safetensors.index.json");
        crate::atomic::write(&path, format!("{index:#}\n").as_bytes())?;
    }
    Ok(n_written)
}

fn cut_into_shards(entries: &[Entry], max_bytes: u64) -> Vec<std::ops::Range<usize>> {
    let mut shards = Vec::new();
    let mut start = 0;
    let mut n_bytes = 0;
    for (i, entry) in entries.iter().enumerate() {
        if i > start && n_bytes + entry.n_bytes > max_bytes {
            shards.push(start..i);
            (start, n_bytes) = (i, 0);
        }
        n_bytes += entry.n_bytes;
    }
    shards.push(start..entries.len());
    shards
}

fn write_file(
    path: &Path,
    entries: &[Entry],
    shard: std::ops::Range<usize>,
    metadata: &Map<String, Value>,
    bytes_of: &mut dyn FnMut(usize) -> Result<Vec<u8>, CheckpointError>,
) -> Result<u64, CheckpointError> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), Value::Object(metadata.clone()));
    let mut offset = 0;
    for entry in &entries[shard.clone()] {
        let Some((dtype, _)) = DTYPES.iter().find(|(_, d)| *d == entry.dtype) else {
            let what = format!("tensor {:?} of type {}", entry.name, entry.dtype);
            return Err(CheckpointError::unsupported(path, what, "write it to GGUF, or in a plain type"));
        };
        let end = offset + entry.n_bytes;
        let value = json!({"dtype": dtype, "shape": entry.shape, "data_offsets": [offset, end]});
        header.insert(entry.name.clone(), value);
        offset = end;
    }
    // Spaces behind the header bring the data to a multiple of eight.
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = AtomicFile::create(path)?;
    file.write(&(header.len() as u64).to_le_bytes())?;
    file.write(&header)?;
    for i in shard {
        let bytes = bytes_of(i)?;
        assert_eq!(bytes.len() as u64, entries[i].n_bytes, "bytes of {}", entries[i].name);
        file.write(&bytes)?;
    }
    let n_written = file.n_written();
    file.commit()?;
    Ok(n_written)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mapping::LoadOptions;

    fn entries() -> Vec<Entry> {
        let entry = |name: &str, dtype: DType, shape: &[usize]| Entry {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
            n_bytes: dtype.bytes_for(shape.iter().product()).unwrap() as u64,
        };
        vec![entry("a", DType::F32, &[2, 3]), entry("b", DType::BF16, &[5]), entry("c", DType::U8, &[0])]
    }

    fn write(dir: &Path, max_shard_bytes: u64) {
        let metadata = json!({"format": "pt"}).as_object().unwrap().clone();
        let all = entries();
        write_dir(dir, &all, &metadata, max_shard_bytes, &mut |i| Ok(vec![i as u8; all[i].n_bytes as usize]))
            .unwrap();
    }

    #[test]
    fn shards_read_back_as_one_model() {
        for max_shard_bytes in [1, 30, 1000] {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), max_shard_bytes);
            let found = super::super::open_dir(dir.path(), LoadOptions::default()).unwrap();
            let tensors: Vec<_> =
                found.tensors.iter().map(|t| (t.tensor.name(), t.tensor.data().to_vec())).collect();
            assert_eq!(tensors, [("a", vec![0; 24]), ("b", vec![1; 10]), ("c", vec![])]);
            assert_eq!(found.metadata.get("format").map(String::as_str), Some("pt"));
        }
    }

    fn file() -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 1000);
        std::fs::read(dir.path().join("model.safetensors")).unwrap()
    }

    fn parse(bytes: Vec<u8>) -> Result<Vec<mlxr_tensor::HostTensor>, CheckpointError> {
        super::super::read_safetensors(Path::new("t.safetensors"), &bytes.into())
    }

    #[test]
    fn every_truncation_is_an_error() {
        let whole = file();
        assert!(parse(whole.clone()).is_ok());
        for n in 0..whole.len() {
            assert!(parse(whole[..n].to_vec()).is_err(), "{n}");
        }
    }

    proptest! {
        #[test]
        fn flipped_bytes_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
            let mut bytes = file();
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] ^= value;
            }
            let _ = parse(bytes);
        }
    }
}
