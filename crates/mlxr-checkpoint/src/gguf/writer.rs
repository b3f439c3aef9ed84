//! Writes GGUF version 3: the directory first, from a plan, then each tensor's bytes as they are made.

use std::path::Path;

use mlxr_tensor::DType;

use super::metadata::{GgufMetadata, MetaArray, MetaValue};
use super::{DEFAULT_ALIGNMENT, MAGIC};
use crate::CheckpointError;
use crate::atomic::AtomicFile;

const VERSION: u32 = 3;

/// A tensor to come: its place in the file follows from the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorPlan {
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    pub dtype: DType,
}

impl TensorPlan {
    /// Bytes of the tensor, or `None` when the shape does not fit the type.
    pub fn n_bytes(&self) -> Option<u64> {
        let cols = self.shape.last().copied().unwrap_or(1);
        let rows = self.shape.iter().rev().skip(1).try_fold(1usize, |n, &d| n.checked_mul(d))?;
        rows.checked_mul(self.dtype.bytes_for(cols)?).map(|n| n as u64)
    }
}

/// A GGUF file under construction. Tensors follow in the order of the plan.
#[derive(Debug)]
pub struct GgufWriter {
    file: AtomicFile,
    alignment: u64,
    plan: std::vec::IntoIter<TensorPlan>,
}

impl GgufWriter {
    /// Writes header, metadata and directory; `general.alignment` among the metadata is honoured.
    ///
    /// # Errors
    /// When the file cannot be written, or a type or shape of the plan cannot be stored.
    pub fn create(
        path: &Path,
        metadata: &GgufMetadata,
        plan: Vec<TensorPlan>,
    ) -> Result<Self, CheckpointError> {
        let alignment = metadata.u64("general.alignment").filter(|n| n.is_power_of_two());
        let alignment = alignment.unwrap_or(DEFAULT_ALIGNMENT);
        let mut head = Vec::new();
        head.extend(MAGIC);
        head.extend(VERSION.to_le_bytes());
        head.extend((plan.len() as u64).to_le_bytes());
        head.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata.iter() {
            put_string(&mut head, key.as_bytes());
            head.extend((value.meta_type() as u32).to_le_bytes());
            put_value(&mut head, value);
        }
        let mut offset = 0u64;
        for tensor in &plan {
            let refuse = || {
                let what = format!("tensor {:?} of {} {:?}", tensor.name, tensor.dtype, tensor.shape);
                CheckpointError::unsupported(path, what, "choose a type whose blocks fit the rows")
            };
            let n_bytes = tensor.n_bytes().ok_or_else(refuse)?;
            put_string(&mut head, tensor.name.as_bytes());
            head.extend((tensor.shape.len() as u32).to_le_bytes());
            for &dim in tensor.shape.iter().rev() {
                head.extend((dim as u64).to_le_bytes());
            }
            head.extend(tensor.dtype.ggml_id().ok_or_else(refuse)?.to_le_bytes());
            head.extend(offset.to_le_bytes());
            offset = (offset + n_bytes).next_multiple_of(alignment);
        }
        let mut file = AtomicFile::create(path)?;
        file.write(&head)?;
        file.pad_to(alignment)?;
        Ok(Self { file, alignment, plan: plan.into_iter() })
    }

    /// Writes the next tensor of the plan.
    ///
    /// # Errors
    /// When the file cannot be written (a full disk, say).
    ///
    /// # Panics
    /// When the bytes are not those of the next planned tensor: a fault of the caller.
    pub fn tensor(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        let next = self.plan.next();
        let expected = next.as_ref().and_then(TensorPlan::n_bytes);
        assert_eq!(Some(bytes.len() as u64), expected, "bytes of {next:?}");
        self.file.write(bytes)?;
        self.file.pad_to(self.alignment)
    }

    /// Puts the finished file in its place.
    ///
    /// # Errors
    /// When the last bytes cannot be written.
    ///
    /// # Panics
    /// When tensors of the plan are missing: a fault of the caller.
    pub fn finish(self) -> Result<u64, CheckpointError> {
        assert_eq!(self.plan.len(), 0, "tensors of the plan were not written");
        let n_bytes = self.file.n_written();
        self.file.commit()?;
        Ok(n_bytes)
    }
}

fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
}

fn put_value(out: &mut Vec<u8>, value: &MetaValue) {
    match value {
        MetaValue::U8(v) => out.extend(v.to_le_bytes()),
        MetaValue::I8(v) => out.extend(v.to_le_bytes()),
        MetaValue::U16(v) => out.extend(v.to_le_bytes()),
        MetaValue::I16(v) => out.extend(v.to_le_bytes()),
        MetaValue::U32(v) => out.extend(v.to_le_bytes()),
        MetaValue::I32(v) => out.extend(v.to_le_bytes()),
        MetaValue::F32(v) => out.extend(v.to_le_bytes()),
        MetaValue::U64(v) => out.extend(v.to_le_bytes()),
        MetaValue::I64(v) => out.extend(v.to_le_bytes()),
        MetaValue::F64(v) => out.extend(v.to_le_bytes()),
        MetaValue::Bool(v) => out.push(u8::from(*v)),
        MetaValue::String(v) => put_string(out, v.as_bytes()),
        MetaValue::Array(array) => put_array(out, array),
    }
}

fn put_array(out: &mut Vec<u8>, array: &MetaArray) {
    out.extend((array.element_type() as u32).to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        MetaArray::Numbers { bytes, .. } => out.extend_from_slice(bytes),
        MetaArray::Strings(strings) => strings.iter().for_each(|s| put_string(out, s)),
        MetaArray::Nested(items) => items.iter().for_each(|item| put_array(out, item)),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::super::{GgufFile, StringArray};
    use super::*;

    fn every_kind() -> GgufMetadata {
        let nested = MetaArray::Nested(vec![MetaArray::of_i32(&[-1]), MetaArray::of_f32(&[])]);
        let pairs = [
            ("general.architecture", MetaValue::from("llama")),
            ("u8", MetaValue::U8(200)),
            ("i8", MetaValue::I8(-3)),
            ("u16", MetaValue::U16(60_000)),
            ("i16", MetaValue::I16(-30_000)),
            ("u32", MetaValue::U32(4_000_000_000)),
            ("i32", MetaValue::I32(-2_000_000_000)),
            ("f32", MetaValue::F32(1.5)),
            ("u64", MetaValue::U64(u64::MAX)),
            ("i64", MetaValue::I64(i64::MIN)),
            ("f64", MetaValue::F64(-0.1)),
            ("bool", MetaValue::Bool(true)),
            ("strings", MetaValue::Array(MetaArray::Strings(StringArray::from_strings(["a", "", "žluť"])))),
            ("bools", MetaValue::Array(MetaArray::of_bool(&[true, false]))),
            ("nested", MetaValue::Array(nested)),
        ];
        GgufMetadata::from_entries(pairs.map(|(k, v)| (k.to_owned(), v)))
    }

    fn tiny_file() -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.gguf");
        let plan = [("a.weight", vec![2, 32], DType::Q8_0), ("b", vec![3], DType::F32)];
        let plan = plan.map(|(n, shape, dtype)| TensorPlan { name: n.to_owned(), shape, dtype }).to_vec();
        let mut writer = GgufWriter::create(&path, &every_kind(), plan).unwrap();
        writer.tensor(&[7; 68]).unwrap();
        writer.tensor(&[1; 12]).unwrap();
        writer.finish().unwrap();
        std::fs::read(&path).unwrap()
    }

    fn parse(bytes: Vec<u8>) -> Result<GgufFile, CheckpointError> {
        GgufFile::parse(Path::new("t.gguf"), &Bytes::from(bytes))
    }

    #[test]
    fn what_is_written_is_read_back() {
        let file = parse(tiny_file()).unwrap();
        assert!(file.metadata.iter().eq(every_kind().iter()));
        let tensors: Vec<_> =
            file.tensors.iter().map(|t| (t.tensor.name(), t.tensor.shape().to_vec())).collect();
        assert_eq!(tensors, [("a.weight", vec![2, 32]), ("b", vec![3])]);
        assert_eq!(file.tensors[0].tensor.data()[..], [7; 68]);
        assert_eq!(file.tensors[1].tensor.data()[..], [1; 12]);
    }

    #[test]
    fn every_truncation_is_an_error_that_names_the_file() {
        let whole = tiny_file();
        // The last tensor is padded; its own bytes end 20 before the end.
        for n in 0..whole.len() - 20 {
            let error = parse(whole[..n].to_vec()).unwrap_err().to_string();
            assert!(error.starts_with("t.gguf: ") && error.contains("\nhint: "), "{n}: {error}");
        }
    }

    proptest! {
        #[test]
        fn flipped_bytes_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
            let mut bytes = tiny_file();
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] ^= value;
            }
            if let Ok(file) = parse(bytes) {
                for raw in file.tensors {
                    let _ = raw.tensor.to_f32();
                }
            }
        }

        #[test]
        fn random_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..200), version in 2u32..4) {
            let bytes = [&MAGIC[..], &version.to_le_bytes(), &tail].concat();
            prop_assert!(parse(bytes).is_err() || tail.len() >= 16);
        }
    }
}
