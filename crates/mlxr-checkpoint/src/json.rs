//! JSON files of model folders.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use crate::CheckpointError;

/// Configuration files larger than this are not configuration files.
const MAX_JSON_BYTES: u64 = 256 << 20;

pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    let meta = fs::metadata(path).map_err(CheckpointError::io(path, "read the file size"))?;
    if meta.len() > MAX_JSON_BYTES {
        let found = format!("{} bytes", meta.len());
        let expected = format!("at most {MAX_JSON_BYTES} bytes");
        return Err(CheckpointError::malformed(path, "file", 0, found, expected));
    }
    fs::read(path).map_err(CheckpointError::io(path, "read the file"))
}

pub(crate) fn read_object(path: &Path) -> Result<Map<String, Value>, CheckpointError> {
    serde_json::from_slice(&read_bytes(path)?).map_err(CheckpointError::json(path))
}

/// The object in a file, or an empty one when there is no such file.
pub(crate) fn read_object_if_present(path: &Path) -> Result<Map<String, Value>, CheckpointError> {
    if path.is_file() { read_object(path) } else { Ok(Map::new()) }
}
