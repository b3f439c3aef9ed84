//! The header of one safetensors file, checked against the file before a tensor is handed out.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;

use bytes::Bytes;
use mlxr_tensor::HostTensor;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use super::dtype_from_name;
use crate::CheckpointError;
use crate::gguf::RawTensor;

/// The format's own limit on the header.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// What a safetensors file holds.
#[derive(Debug)]
pub(crate) struct SafetensorsFile {
    pub tensors: Vec<RawTensor>,
    /// `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header's pairs in order, so that a name given twice is seen.
struct Header {
    entries: Vec<(String, Entry)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header { entries: Vec::new(), metadata: BTreeMap::new() };
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        header.metadata = map.next_value()?;
                    } else {
                        header.entries.push((name, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// Reads a safetensors file that is already in memory; `path` is for messages.
pub(crate) fn parse(path: &Path, bytes: &Bytes) -> Result<SafetensorsFile, CheckpointError> {
    let Some(prefix) = bytes.first_chunk::<8>() else {
        return Err(CheckpointError::malformed(
            path,
            "file",
            0,
            format!("{} bytes", bytes.len()),
            "at least 8",
        ));
    };
    let n_header = u64::from_le_bytes(*prefix);
    let n_rest = bytes.len() as u64 - 8;
    if n_header > n_rest.min(MAX_HEADER_BYTES) {
        let expected = format!("at most {}", n_rest.min(MAX_HEADER_BYTES));
        return Err(CheckpointError::malformed(path, "header length", 0, n_header, expected));
    }
    let data_start = 8 + n_header as usize;
    let header: Header = serde_json::from_slice(&bytes[8..data_start]).map_err(|e| describe(path, &e))?;
    let data = bytes.slice(data_start..);
    check_coverage(path, &header.entries, data_start as u64, data.len() as u64)?;
    let mut tensors = Vec::new();
    for (name, entry) in header.entries {
        tensors.push(RawTensor { tensor: cut(path, name, &entry, &data)?, path: path.to_owned() });
    }
    Ok(SafetensorsFile { tensors, metadata: header.metadata })
}

fn describe(path: &Path, error: &serde_json::Error) -> CheckpointError {
    let offset = 8 + if error.line() == 1 { error.column() as u64 } else { 0 };
    CheckpointError::malformed(path, "header", offset, error, "a JSON object of tensors")
}

/// Names are unique and the tensors cover the data exactly, as the format demands.
fn check_coverage(
    path: &Path,
    entries: &[(String, Entry)],
    data_start: u64,
    n_data: u64,
) -> Result<(), CheckpointError> {
    let mut names = HashSet::new();
    let mut spans = Vec::new();
    for (name, entry) in entries {
        let [start, end] = entry.data_offsets;
        let what = || format!("tensor {name:?}");
        if !names.insert(name) {
            return Err(CheckpointError::malformed(
                path,
                what(),
                8,
                "the name a second time",
                "every tensor once",
            ));
        }
        if start > end || end > n_data {
            let expected = format!("offsets in order and within the {n_data} bytes of data");
            return Err(CheckpointError::malformed(
                path,
                what(),
                data_start,
                format!("{start}..{end}"),
                expected,
            ));
        }
        spans.push((start, end, name));
    }
    spans.sort_unstable();
    let mut covered = 0;
    for (start, end, name) in spans {
        if start != covered {
            let what = format!("tensor {name:?}: start of data");
            return Err(CheckpointError::malformed(
                path,
                what,
                data_start + start.min(covered),
                start,
                covered,
            ));
        }
        covered = end;
    }
    if covered != n_data {
        let found = format!("{n_data} bytes");
        return Err(CheckpointError::malformed(
            path,
            "data",
            data_start + covered,
            found,
            format!("{covered} bytes"),
        ));
    }
    Ok(())
}

fn cut(path: &Path, name: String, entry: &Entry, data: &Bytes) -> Result<HostTensor, CheckpointError> {
    let [start, end] = entry.data_offsets;
    let Some(dtype) = dtype_from_name(&entry.dtype) else {
        let what = format!("tensor type {:?} of {name:?}", entry.dtype);
        return Err(CheckpointError::unsupported(path, what, "convert the model to BF16, F16 or F32"));
    };
    let shape: Option<Vec<usize>> = entry.shape.iter().map(|&d| usize::try_from(d).ok()).collect();
    let n_bytes = entry
        .shape
        .iter()
        .try_fold(1u64, |n, &d| n.checked_mul(d))
        .and_then(|n| n.checked_mul(dtype.block_bytes() as u64));
    match shape {
        Some(shape) if n_bytes == Some(end - start) => {
            HostTensor::new(name, &shape, dtype, data.slice(start as usize..end as usize))
                .map_err(CheckpointError::tensor(path))
        }
        _ => {
            let what = format!("tensor {name:?}: {dtype} {:?}", entry.shape);
            let expected = n_bytes.map_or("a size that fits in memory".to_owned(), |n| format!("{n} bytes"));
            Err(CheckpointError::malformed(path, what, start, format!("{} bytes", end - start), expected))
        }
    }
}
