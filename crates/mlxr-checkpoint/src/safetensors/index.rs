//! All safetensors files of a model folder: one file, or shards listed in `model.safetensors.index.json`.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::header;
use crate::CheckpointError;
use crate::gguf::RawTensor;
use crate::json;
use crate::mapping::{LoadOptions, MappedFile};

/// The tensors of a folder and the `__metadata__` of its files (later files win).
#[derive(Debug, Default)]
pub(crate) struct SafetensorsDir {
    pub tensors: Vec<RawTensor>,
    pub metadata: HashMap<String, String>,
}

const INDEX: &str = "model.safetensors.index.json";

pub(crate) fn open_dir(dir: &Path, options: LoadOptions) -> Result<SafetensorsDir, CheckpointError> {
    let index_path = dir.join(INDEX);
    let (files, listed) = if index_path.is_file() {
        let listed = read_index(&index_path)?;
        let files: BTreeSet<PathBuf> = listed.values().map(|file| dir.join(file)).collect();
        (files.into_iter().collect(), Some(listed))
    } else {
        (find_files(dir)?, None)
    };
    let mut found = SafetensorsDir::default();
    let mut names = HashSet::new();
    for path in files {
        if !path.is_file() {
            let what = format!("shard {}", path.display());
            return Err(CheckpointError::missing(&index_path, what, "fetch the missing file"));
        }
        let file = MappedFile::open(&path, options)?;
        let file = header::parse(&file.path, &file.bytes)?;
        for raw in file.tensors {
            if !names.insert(raw.tensor.name().to_owned()) {
                let what = format!("tensor {:?}", raw.tensor.name());
                return Err(CheckpointError::malformed(
                    &path,
                    what,
                    8,
                    "it again",
                    "every tensor in one shard",
                ));
            }
            found.tensors.push(raw);
        }
        found.metadata.extend(file.metadata);
    }
    if let Some(listed) = listed {
        check_index(&index_path, &listed, &names)?;
    }
    Ok(found)
}

fn check_index(
    index_path: &Path,
    listed: &HashMap<String, String>,
    names: &HashSet<String>,
) -> Result<(), CheckpointError> {
    match listed.iter().find(|(name, _)| !names.contains(*name)) {
        Some((name, file)) => {
            let what = format!("tensor {name:?}, listed for {file},");
            Err(CheckpointError::missing(index_path, what, "fetch the shards and the index again"))
        }
        None => Ok(()),
    }
}

/// `weight_map`: tensor name -> file name, every file name a plain one.
fn read_index(path: &Path) -> Result<HashMap<String, String>, CheckpointError> {
    let index = json::read_object(path)?;
    let Some(map) = index.get("weight_map").and_then(|v| v.as_object()) else {
        return Err(CheckpointError::missing(path, "\"weight_map\"", "fetch the index again"));
    };
    map.iter()
        .map(|(name, file)| match file.as_str() {
            Some(file) if is_plain_name(file) => Ok((name.clone(), file.to_owned())),
            _ => Err(CheckpointError::unsupported(
                path,
                format!("the file name {file} for tensor {name:?}"),
                "shards lie in the folder of the index and are named without a path",
            )),
        })
        .collect()
}

fn is_plain_name(file: &str) -> bool {
    let mut parts = Path::new(file).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) && !file.contains(['\\', '\0'])
}

/// `model.safetensors`, or every safetensors file of the folder.
fn find_files(dir: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let single = dir.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(CheckpointError::io(dir, "list the folder"))? {
        let path = entry.map_err(CheckpointError::io(dir, "list the folder"))?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(CheckpointError::missing(
            dir,
            "a safetensors file",
            "name a GGUF file, or a folder with config.json and *.safetensors",
        ));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_name_cannot_leave_the_folder() {
        assert!(is_plain_name("model-00001-of-00002.safetensors"));
        for bad in ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", "./a/b"] {
            assert!(!is_plain_name(bad), "{bad:?}");
        }
    }
}
