//! One GGUF file: header, metadata, tensor directory, and the tensors' places in the mapped bytes.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use mlxr_tensor::{DType, HostTensor};

use super::cursor::Cursor;
use super::metadata::{self, GgufMetadata};
use super::{DEFAULT_ALIGNMENT, MAGIC};
use crate::CheckpointError;
use crate::mapping::{LoadOptions, MappedFile};

/// GGML tensors have at most this many dimensions.
const MAX_DIMS: u32 = 4;
/// Larger alignments than this only occur in damaged files.
const MAX_ALIGNMENT: u64 = 1 << 20;
/// Bytes of the shortest possible metadata entry: empty key, type, one byte.
const MIN_ENTRY_BYTES: usize = 8 + 4 + 1;
/// Bytes of the shortest possible tensor entry: empty name, dimension count, type, offset.
const MIN_TENSOR_BYTES: usize = 8 + 4 + 4 + 8;

/// A GGUF file with its tensors under the names the file gives them.
#[derive(Debug)]
pub(crate) struct GgufFile {
    pub metadata: GgufMetadata,
    pub tensors: Vec<RawTensor>,
}

/// A tensor as found in a file, before its name is translated.
#[derive(Clone, Debug)]
pub(crate) struct RawTensor {
    pub tensor: HostTensor,
    /// The file it came from.
    pub path: PathBuf,
}

/// A tensor directory entry.
struct TensorInfo {
    name: String,
    shape: Vec<usize>,
    dtype: DType,
    /// Bytes from the start of the data part.
    offset: u64,
    n_bytes: u64,
    /// Where the offset field stands, for errors.
    offset_at: usize,
}

impl GgufFile {
    pub fn open(path: &Path, options: LoadOptions) -> Result<Self, CheckpointError> {
        let file = MappedFile::open(path, options)?;
        Self::parse(path, &file.bytes)
    }

    /// Reads a GGUF file that is already in memory; `path` is for messages.
    pub fn parse(path: &Path, bytes: &Bytes) -> Result<Self, CheckpointError> {
        let mut cursor = Cursor::new(path, bytes);
        check_version(&mut cursor, path)?;
        let n_tensors = cursor.count(MIN_TENSOR_BYTES, "tensor count")?;
        let n_entries = cursor.count(MIN_ENTRY_BYTES, "metadata count")?;
        let metadata = metadata::read_entries(&mut cursor, n_entries)?;
        let mut names = HashSet::new();
        let mut infos = Vec::new();
        for _ in 0..n_tensors {
            let at = cursor.pos();
            let info = read_tensor_info(&mut cursor)?;
            if !names.insert(info.name.clone()) {
                let what = format!("tensor {:?}", info.name);
                return Err(cursor.fault(what, at, "the name a second time", "every tensor once"));
            }
            infos.push(info);
        }
        let alignment = read_alignment(&metadata, path)?;
        let data_start = (cursor.pos() as u64).next_multiple_of(alignment);
        check_layout(&cursor, &infos, data_start, alignment, bytes.len() as u64)?;
        let tensors = infos
            .into_iter()
            .map(|info| {
                // `check_layout` has shown that both ends lie inside the file.
                let start = (data_start + info.offset) as usize;
                let data = bytes.slice(start..start + info.n_bytes as usize);
                let tensor = HostTensor::new(info.name, &info.shape, info.dtype, data)
                    .map_err(CheckpointError::tensor(path))?;
                Ok(RawTensor { tensor, path: path.to_owned() })
            })
            .collect::<Result<_, CheckpointError>>()?;
        Ok(Self { metadata, tensors })
    }
}

fn check_version(cursor: &mut Cursor<'_>, path: &Path) -> Result<(), CheckpointError> {
    let magic = cursor.take(4, "magic")?;
    if magic != MAGIC[..] {
        return Err(cursor
            .fault("magic", 0, format!("{:?}", magic.escape_ascii().to_string()), "\"GGUF\"")
            .hinting("this is not a GGUF file"));
    }
    let version = cursor.u32("version")?;
    match version {
        2 | 3 => Ok(()),
        1 => Err(cursor
            .fault("version", 4, 1, "2 or 3")
            .hinting("version 1 files were never in wide use; convert the model again")),
        v if matches!(v.swap_bytes(), 1..=3) => Err(CheckpointError::unsupported(
            path,
            format!("a big-endian GGUF file (version {})", v.swap_bytes()),
            "convert it to little-endian with gguf-convert-endian",
        )),
        v => Err(cursor
            .fault("version", 4, v, "2 or 3")
            .hinting("the file is damaged or newer than this program")),
    }
}

fn read_tensor_info(cursor: &mut Cursor<'_>) -> Result<TensorInfo, CheckpointError> {
    let name = cursor.string("tensor name")?;
    let what = |part: &str| format!("tensor {name:?}: {part}");
    let at = cursor.pos();
    let n_dims = cursor.u32(&what("dimension count"))?;
    if n_dims > MAX_DIMS {
        return Err(cursor.fault(what("dimension count"), at, n_dims, format!("at most {MAX_DIMS}")));
    }
    let mut shape = Vec::new();
    for _ in 0..n_dims {
        let at = cursor.pos();
        let dim = cursor.u64(&what("dimension"))?;
        match usize::try_from(dim) {
            Ok(dim) if dim > 0 => shape.push(dim),
            _ => return Err(cursor.fault(what("dimension"), at, dim, "a size of at least 1")),
        }
    }
    // The file lists the innermost dimension first.
    shape.reverse();
    let type_at = cursor.pos();
    let type_id = cursor.u32(&what("type"))?;
    let Some(dtype) = DType::from_ggml_id(type_id) else {
        return Err(cursor
            .fault(what("type"), type_at, type_id, "a known tensor type")
            .hinting("the file is damaged, or uses a type that was retired or is newer than this program"));
    };
    let offset_at = cursor.pos();
    let offset = cursor.u64(&what("offset"))?;
    let cols = shape.last().copied().unwrap_or(1);
    let rows = shape.iter().rev().skip(1).try_fold(1usize, |n, &d| n.checked_mul(d));
    let n_bytes = rows.zip(dtype.bytes_for(cols)).and_then(|(rows, row)| rows.checked_mul(row));
    let Some(n_bytes) = n_bytes else {
        let expected = format!("rows of whole {dtype} blocks ({} elements)", dtype.block_len());
        return Err(cursor.fault(what("shape"), at, format!("{shape:?}"), expected));
    };
    Ok(TensorInfo { name, shape, dtype, offset, n_bytes: n_bytes as u64, offset_at })
}

fn read_alignment(metadata: &GgufMetadata, path: &Path) -> Result<u64, CheckpointError> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(DEFAULT_ALIGNMENT) };
    match value.as_u64() {
        Some(n) if n.is_power_of_two() && n <= MAX_ALIGNMENT => Ok(n),
        _ => {
            let expected = format!("a power of two up to {MAX_ALIGNMENT}");
            let found = format!("{value:?}");
            Err(CheckpointError::malformed(path, "metadata \"general.alignment\"", 0, found, expected))
        }
    }
}

/// Every tensor is aligned, inside the file and apart from its neighbours.
fn check_layout(
    cursor: &Cursor<'_>,
    infos: &[TensorInfo],
    data_start: u64,
    alignment: u64,
    file_len: u64,
) -> Result<(), CheckpointError> {
    let mut by_offset: Vec<&TensorInfo> = infos.iter().collect();
    by_offset.sort_by_key(|info| info.offset);
    let mut previous: Option<(&TensorInfo, u64)> = None;
    for info in by_offset {
        let what = format!("tensor {:?}: offset", info.name);
        if !info.offset.is_multiple_of(alignment) {
            return Err(cursor.fault(
                what,
                info.offset_at,
                info.offset,
                format!("a multiple of {alignment}"),
            ));
        }
        if let Some((before, end)) = previous
            && info.offset < end
        {
            let expected = format!("at least {end}, where tensor {:?} ends", before.name);
            return Err(cursor.fault(what, info.offset_at, info.offset, expected));
        }
        let end = info.offset.checked_add(info.n_bytes);
        let file_end = end.and_then(|end| end.checked_add(data_start));
        match (end, file_end) {
            (Some(end), Some(file_end)) if file_end <= file_len => previous = Some((info, end)),
            _ => {
                let found = format!("{} bytes from data offset {}", info.n_bytes, info.offset);
                let expected = format!("data that ends within the file's {file_len} bytes");
                let what = format!("tensor {:?}", info.name);
                return Err(cursor.fault(what, info.offset_at, found, expected));
            }
        }
    }
    Ok(())
}
