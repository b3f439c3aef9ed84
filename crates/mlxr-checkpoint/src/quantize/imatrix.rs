//! Importance matrices: for every column of a weight, the mean square of the inputs that met it.
//!
//! Two file formats exist: a plain list (`.dat`) and GGUF with `NAME.in_sum2` and `NAME.counts`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use mlxr_tensor::{DType, HostTensor};

use crate::CheckpointError;
use crate::gguf::{
    Cursor, GgufFile, GgufMetadata, GgufWriter, MAGIC, MetaArray, MetaValue, StringArray, TensorPlan,
};
use crate::mapping::{LoadOptions, MappedFile};

/// Smallest entry of the plain format: name length, calls, values.
const MIN_ENTRY_BYTES: usize = 12;

/// Importance per column by tensor name; of a stack, one set of columns per matrix.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImportanceMatrix {
    pub path: PathBuf,
    pub entries: BTreeMap<String, Vec<f32>>,
    /// The texts it was made from, as the file names them.
    pub datasets: Vec<String>,
    pub n_chunks: Option<u32>,
}

impl ImportanceMatrix {
    /// Reads either format.
    ///
    /// # Errors
    /// When the file cannot be read or contradicts itself.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let file = MappedFile::open(path, LoadOptions::default())?;
        if file.bytes.starts_with(&MAGIC) {
            Self::parse_gguf(path, &file.bytes)
        } else {
            Self::parse_plain(path, &file.bytes)
        }
    }

    fn parse_gguf(path: &Path, bytes: &Bytes) -> Result<Self, CheckpointError> {
        let file = GgufFile::parse(path, bytes)?;
        if file.metadata.str("general.type") != Some("imatrix") {
            let hint = "make one with an imatrix tool from a calibration text";
            return Err(CheckpointError::missing(path, "metadata \"general.type\" = \"imatrix\"", hint));
        }
        let mut sums = BTreeMap::new();
        let mut counts = BTreeMap::new();
        for raw in &file.tensors {
            let values = raw.tensor.to_f32().map_err(CheckpointError::tensor(path))?;
            let name = raw.tensor.name();
            if let Some(name) = name.strip_suffix(".in_sum2") {
                sums.insert(name.to_owned(), values);
            } else if let Some(name) = name.strip_suffix(".counts") {
                counts.insert(name.to_owned(), values);
            }
        }
        let mut entries = BTreeMap::new();
        for (name, mut sums) in sums {
            let counts = counts.remove(&name).filter(|c| !c.is_empty() && sums.len().is_multiple_of(c.len()));
            let Some(counts) = counts else {
                return Err(CheckpointError::missing(
                    path,
                    format!("{name}.counts for {name}.in_sum2"),
                    crate::error::DAMAGED,
                ));
            };
            let n_cols = sums.len() / counts.len();
            for (columns, count) in sums.chunks_exact_mut(n_cols.max(1)).zip(counts) {
                // A matrix that no text reached weighs all its columns alike.
                columns.iter_mut().for_each(|v| *v = if count > 0.0 { *v / count } else { 1.0 });
            }
            entries.insert(name, sums);
        }
        let datasets = file.metadata.strings("imatrix.datasets");
        let datasets = datasets.map(|d| d.iter().map(|s| String::from_utf8_lossy(s).into_owned()).collect());
        let n_chunks = file.metadata.u32("imatrix.chunk_count");
        Ok(Self { path: path.to_owned(), entries, datasets: datasets.unwrap_or_default(), n_chunks })
    }

    fn parse_plain(path: &Path, bytes: &Bytes) -> Result<Self, CheckpointError> {
        let mut cursor = Cursor::new(path, bytes);
        let n_entries = count(&mut cursor, "entry count", MIN_ENTRY_BYTES)?;
        let mut entries = BTreeMap::new();
        for _ in 0..n_entries {
            let n_name = count(&mut cursor, "name length", 1)?;
            let name = String::from_utf8_lossy(&cursor.take(n_name, "name")?).into_owned();
            let n_calls = cursor.u32("number of calls")? as i32;
            let n_values = count(&mut cursor, "number of values", 4)?;
            let values = cursor.take(n_values * 4, "values")?;
            let scale = if n_calls > 0 { 1.0 / n_calls as f32 } else { 1.0 };
            let values = values.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b) * scale).collect();
            entries.insert(name, values);
        }
        // Newer files end with the number of chunks and the name of the text.
        let mut matrix = Self { path: path.to_owned(), entries, ..Self::default() };
        if cursor.remaining() >= 8 {
            matrix.n_chunks = Some(cursor.u32("number of chunks")?);
            let n_name = count(&mut cursor, "text name length", 1)?;
            matrix.datasets = vec![String::from_utf8_lossy(&cursor.take(n_name, "text name")?).into_owned()];
        }
        Ok(matrix)
    }

    /// Writes the GGUF format.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), CheckpointError> {
        let datasets = StringArray::from_strings(&self.datasets);
        let metadata = [
            ("general.type", MetaValue::from("imatrix")),
            ("imatrix.datasets", MetaValue::Array(MetaArray::Strings(datasets))),
            ("imatrix.chunk_count", MetaValue::U32(self.n_chunks.unwrap_or(0))),
            ("imatrix.chunk_size", MetaValue::U32(512)),
        ];
        let metadata = GgufMetadata::from_entries(metadata.map(|(k, v)| (k.to_owned(), v)));
        let mut tensors = Vec::new();
        for (name, values) in &self.entries {
            let sums = HostTensor::from_f32(format!("{name}.in_sum2"), &[1, values.len()], values);
            let counts = HostTensor::from_f32(format!("{name}.counts"), &[1, 1], &[1.0]);
            for tensor in [sums, counts] {
                tensors.push(tensor.map_err(CheckpointError::tensor(path))?);
            }
        }
        let plan = |t: &HostTensor| TensorPlan {
            name: t.name().to_owned(),
            shape: t.shape().to_vec(),
            dtype: DType::F32,
        };
        let mut writer = GgufWriter::create(path, &metadata, tensors.iter().map(plan).collect())?;
        for tensor in &tensors {
            writer.tensor(tensor.data())?;
        }
        writer.finish().map(|_| ())
    }

    /// The importance of a tensor's columns.
    ///
    /// # Errors
    /// When the file's entry is of another size than the tensor.
    pub fn for_tensor(&self, tensor: &HostTensor) -> Result<Option<&[f32]>, CheckpointError> {
        let Some(values) = self.entries.get(tensor.name()) else { return Ok(None) };
        let n_items = if tensor.shape().len() == 3 { tensor.shape()[0] } else { 1 };
        let per_item = tensor.cols().checked_mul(n_items);
        if Some(values.len()) != per_item && values.len() != tensor.cols() {
            let what = format!("importance of {:?}", tensor.name());
            let found = format!("{} values", values.len());
            let expected = format!("{} columns", tensor.cols());
            return Err(CheckpointError::malformed(&self.path, what, 0, found, expected)
                .hinting("the importance matrix belongs to another model"));
        }
        if let Some(bad) = values.iter().find(|v| !(v.is_finite() && **v >= 0.0)) {
            let what = format!("importance of {:?}", tensor.name());
            return Err(CheckpointError::malformed(&self.path, what, 0, bad, "finite numbers of at least 0"));
        }
        Ok(Some(values))
    }
}

/// A 32-bit count of things that take at least `min_bytes`.
fn count(cursor: &mut Cursor<'_>, what: &str, min_bytes: usize) -> Result<usize, CheckpointError> {
    let offset = cursor.pos();
    let n = cursor.u32(what)? as usize;
    let most = cursor.remaining() / min_bytes;
    if n > most {
        return Err(cursor.fault(
            what,
            offset,
            n,
            format!("at most {most}, as the file has no room for more"),
        ));
    }
    Ok(n)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain() -> Vec<u8> {
        let mut bytes = 1u32.to_le_bytes().to_vec();
        bytes.extend(1u32.to_le_bytes());
        bytes.push(b'x');
        bytes.extend(4u32.to_le_bytes());
        bytes.extend(2u32.to_le_bytes());
        bytes.extend([8.0f32, 4.0].iter().flat_map(|v| v.to_le_bytes()));
        bytes.extend(7u32.to_le_bytes());
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(b"txt");
        bytes
    }

    fn parse(bytes: Vec<u8>) -> Result<ImportanceMatrix, CheckpointError> {
        ImportanceMatrix::parse_plain(Path::new("m.dat"), &bytes.into())
    }

    #[test]
    fn the_plain_format_divides_by_the_calls() {
        let matrix = parse(plain()).unwrap();
        assert_eq!(matrix.entries["x"], [2.0, 1.0]);
        assert_eq!((matrix.n_chunks, &matrix.datasets[..]), (Some(7), &["txt".to_owned()][..]));
    }

    #[test]
    fn the_gguf_format_round_trips() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let matrix = ImportanceMatrix { path: path.clone(), ..parse(plain()).unwrap() };
        matrix.save(&path).unwrap();
        assert_eq!(ImportanceMatrix::open(&path).unwrap(), matrix);
    }

    #[test]
    fn an_entry_for_another_shape_is_refused() {
        let matrix = parse(plain()).unwrap();
        let tensor = |cols: usize| HostTensor::from_f32("x", &[1, cols], &vec![0.0; cols]).unwrap();
        assert_eq!(matrix.for_tensor(&tensor(2)).unwrap(), Some(&[2.0, 1.0][..]));
        assert!(matrix.for_tensor(&tensor(3)).unwrap_err().to_string().contains("another model"));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse(bytes);
        }
    }
}
