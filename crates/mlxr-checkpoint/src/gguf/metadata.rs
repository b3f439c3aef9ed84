//! The typed key-value part of a GGUF file; large arrays stay in the mapped file.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use bytes::Bytes;

use super::cursor::Cursor;
use crate::CheckpointError;

/// Arrays of arrays may nest this deep; no known file nests at all.
const MAX_NESTING: usize = 4;

/// The type tag of a value or of an array's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MetaType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl MetaType {
    const ALL: [MetaType; 13] = [
        MetaType::U8,
        MetaType::I8,
        MetaType::U16,
        MetaType::I16,
        MetaType::U32,
        MetaType::I32,
        MetaType::F32,
        MetaType::Bool,
        MetaType::String,
        MetaType::Array,
        MetaType::U64,
        MetaType::I64,
        MetaType::F64,
    ];

    fn from_id(id: u32) -> Option<MetaType> {
        Self::ALL.get(id as usize).copied()
    }

    /// Bytes of one number; `None` for strings and arrays.
    const fn n_bytes(self) -> Option<usize> {
        match self {
            MetaType::U8 | MetaType::I8 | MetaType::Bool => Some(1),
            MetaType::U16 | MetaType::I16 => Some(2),
            MetaType::U32 | MetaType::I32 | MetaType::F32 => Some(4),
            MetaType::U64 | MetaType::I64 | MetaType::F64 => Some(8),
            MetaType::String | MetaType::Array => None,
        }
    }
}

/// One metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum MetaValue {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(MetaArray),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl MetaValue {
    pub fn meta_type(&self) -> MetaType {
        match self {
            MetaValue::U8(_) => MetaType::U8,
            MetaValue::I8(_) => MetaType::I8,
            MetaValue::U16(_) => MetaType::U16,
            MetaValue::I16(_) => MetaType::I16,
            MetaValue::U32(_) => MetaType::U32,
            MetaValue::I32(_) => MetaType::I32,
            MetaValue::F32(_) => MetaType::F32,
            MetaValue::Bool(_) => MetaType::Bool,
            MetaValue::String(_) => MetaType::String,
            MetaValue::Array(_) => MetaType::Array,
            MetaValue::U64(_) => MetaType::U64,
            MetaValue::I64(_) => MetaType::I64,
            MetaValue::F64(_) => MetaType::F64,
        }
    }

    /// The value as an integer, whatever width it is stored in; `None` for everything else and out of range.
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            MetaValue::U8(v) => Some(v.into()),
            MetaValue::I8(v) => Some(v.into()),
            MetaValue::U16(v) => Some(v.into()),
            MetaValue::I16(v) => Some(v.into()),
            MetaValue::U32(v) => Some(v.into()),
            MetaValue::I32(v) => Some(v.into()),
            MetaValue::I64(v) => Some(v),
            MetaValue::U64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            MetaValue::U64(v) => Some(v),
            _ => self.as_i64()?.try_into().ok(),
        }
    }

    pub fn as_u32(&self) -> Option<u32> {
        self.as_i64()?.try_into().ok()
    }

    /// Any number as a float.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            MetaValue::F32(v) => Some(v.into()),
            MetaValue::F64(v) => Some(v),
            MetaValue::U64(v) => Some(v as f64),
            _ => self.as_i64().map(|v| v as f64),
        }
    }

    pub fn as_f32(&self) -> Option<f32> {
        self.as_f64().map(|v| v as f32)
    }

    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            MetaValue::Bool(v) => Some(v),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            MetaValue::String(v) => Some(v),
            _ => None,
        }
    }

    pub fn as_array(&self) -> Option<&MetaArray> {
        match self {
            MetaValue::Array(v) => Some(v),
            _ => None,
        }
    }
}

impl From<&str> for MetaValue {
    fn from(v: &str) -> Self {
        MetaValue::String(v.to_owned())
    }
}

/// A metadata array.
#[derive(Clone, Debug, PartialEq)]
pub enum MetaArray {
    /// Fixed-width elements, little-endian as in the file.
    Numbers {
        of: MetaType,
        bytes: Bytes,
    },
    Strings(StringArray),
    Nested(Vec<MetaArray>),
}

impl MetaArray {
    pub fn of_u32(values: &[u32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into();
        MetaArray::Numbers { of: MetaType::U32, bytes }
    }

    pub fn of_i32(values: &[i32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into();
        MetaArray::Numbers { of: MetaType::I32, bytes }
    }

    pub fn of_f32(values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into();
        MetaArray::Numbers { of: MetaType::F32, bytes }
    }

    pub fn of_bool(values: &[bool]) -> Self {
        let bytes = values.iter().map(|&v| u8::from(v)).collect::<Vec<u8>>().into();
        MetaArray::Numbers { of: MetaType::Bool, bytes }
    }

    pub fn len(&self) -> usize {
        match self {
            MetaArray::Numbers { of, bytes } => of.n_bytes().map_or(0, |n| bytes.len() / n),
            MetaArray::Strings(strings) => strings.len(),
            MetaArray::Nested(items) => items.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The type of the elements.
    pub fn element_type(&self) -> MetaType {
        match self {
            MetaArray::Numbers { of, .. } => *of,
            MetaArray::Strings(_) => MetaType::String,
            MetaArray::Nested(_) => MetaType::Array,
        }
    }

    /// Element `i` of an array of numbers or booleans.
    pub fn number(&self, i: usize) -> Option<MetaValue> {
        let MetaArray::Numbers { of, bytes } = self else { return None };
        let n = of.n_bytes()?;
        scalar(*of, bytes.get(i.checked_mul(n)?..i.checked_mul(n)?.checked_add(n)?)?)
    }

    /// Integers of any width, or `None` when an element is not an integer or does not fit.
    pub fn to_i64s(&self) -> Option<Vec<i64>> {
        (0..self.len()).map(|i| self.number(i)?.as_i64()).collect()
    }

    pub fn to_i32s(&self) -> Option<Vec<i32>> {
        (0..self.len()).map(|i| self.number(i)?.as_i64()?.try_into().ok()).collect()
    }

    pub fn to_u32s(&self) -> Option<Vec<u32>> {
        (0..self.len()).map(|i| self.number(i)?.as_u32()).collect()
    }

    pub fn to_f32s(&self) -> Option<Vec<f32>> {
        (0..self.len()).map(|i| self.number(i)?.as_f32()).collect()
    }

    pub fn to_bools(&self) -> Option<Vec<bool>> {
        (0..self.len()).map(|i| self.number(i)?.as_bool()).collect()
    }

    pub fn strings(&self) -> Option<&StringArray> {
        match self {
            MetaArray::Strings(strings) => Some(strings),
            _ => None,
        }
    }
}

fn scalar(of: MetaType, bytes: &[u8]) -> Option<MetaValue> {
    Some(match of {
        MetaType::U8 => MetaValue::U8(*bytes.first()?),
        MetaType::I8 => MetaValue::I8(i8::from_le_bytes(bytes.try_into().ok()?)),
        MetaType::U16 => MetaValue::U16(u16::from_le_bytes(bytes.try_into().ok()?)),
        MetaType::I16 => MetaValue::I16(i16::from_le_bytes(bytes.try_into().ok()?)),
        MetaType::U32 => MetaValue::U32(u32::from_le_bytes(bytes.try_into().ok()?)),
        MetaType::I32 => MetaValue::I32(i32::from_le_bytes(bytes.try_into().ok()?)),
        MetaType::F32 => MetaValue::F32(f32::from_le_bytes(bytes.try_into().ok()?)),
        MetaType::U64 => MetaValue::U64(u64::from_le_bytes(bytes.try_into().ok()?)),
        MetaType::I64 => MetaValue::I64(i64::from_le_bytes(bytes.try_into().ok()?)),
        MetaType::F64 => MetaValue::F64(f64::from_le_bytes(bytes.try_into().ok()?)),
        MetaType::Bool => MetaValue::Bool(*bytes.first()? != 0),
        MetaType::String | MetaType::Array => return None,
    })
}

/// Many strings in one buffer, as vocabularies are; cloning shares the buffer.
#[derive(Clone, Debug)]
pub struct StringArray {
    bytes: Bytes,
    spans: Arc<[(usize, usize)]>,
}

impl StringArray {
    pub fn from_strings<S: AsRef<[u8]>>(strings: impl IntoIterator<Item = S>) -> Self {
        let mut bytes = Vec::new();
        let mut spans = Vec::new();
        for string in strings {
            let start = bytes.len();
            bytes.extend_from_slice(string.as_ref());
            spans.push((start, bytes.len()));
        }
        Self { bytes: bytes.into(), spans: spans.into() }
    }

    pub fn len(&self) -> usize {
        self.spans.len()
    }

    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The bytes of string `i` as stored; a file does not promise UTF-8 here.
    pub fn bytes(&self, i: usize) -> Option<&[u8]> {
        let &(start, end) = self.spans.get(i)?;
        self.bytes.get(start..end)
    }

    /// String `i` as text, with the replacement character where it is not UTF-8.
    pub fn get(&self, i: usize) -> Option<Cow<'_, str>> {
        self.bytes(i).map(String::from_utf8_lossy)
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.spans.iter().map(|&(start, end)| &self.bytes[start..end])
    }
}

impl PartialEq for StringArray {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

/// All metadata of a GGUF file in file order; cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct GgufMetadata {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: Vec<(String, MetaValue)>,
    index: HashMap<String, usize>,
}

impl GgufMetadata {
    /// Metadata from pairs; a later pair replaces an earlier one of the same key.
    pub fn from_entries(pairs: impl IntoIterator<Item = (String, MetaValue)>) -> Self {
        let mut inner = Inner::default();
        for (key, value) in pairs {
            match inner.index.entry(key.clone()) {
                Entry::Occupied(at) => inner.entries[*at.get()].1 = value,
                Entry::Vacant(at) => {
                    at.insert(inner.entries.len());
                    inner.entries.push((key, value));
                }
            }
        }
        Self { inner: Arc::new(inner) }
    }

    pub fn get(&self, key: &str) -> Option<&MetaValue> {
        self.inner.index.get(key).map(|&i| &self.inner.entries[i].1)
    }

    pub fn contains(&self, key: &str) -> bool {
        self.inner.index.contains_key(key)
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &MetaValue)> {
        self.inner.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    pub fn len(&self) -> usize {
        self.inner.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.inner.entries.is_empty()
    }

    pub fn str(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    pub fn u32(&self, key: &str) -> Option<u32> {
        self.get(key)?.as_u32()
    }

    pub fn u64(&self, key: &str) -> Option<u64> {
        self.get(key)?.as_u64()
    }

    pub fn f32(&self, key: &str) -> Option<f32> {
        self.get(key)?.as_f32()
    }

    pub fn bool(&self, key: &str) -> Option<bool> {
        self.get(key)?.as_bool()
    }

    pub fn array(&self, key: &str) -> Option<&MetaArray> {
        self.get(key)?.as_array()
    }

    pub fn strings(&self, key: &str) -> Option<&StringArray> {
        self.array(key)?.strings()
    }

    pub fn f32s(&self, key: &str) -> Option<Vec<f32>> {
        self.array(key)?.to_f32s()
    }

    pub fn i32s(&self, key: &str) -> Option<Vec<i32>> {
        self.array(key)?.to_i32s()
    }

    /// `general.architecture`.
    pub fn architecture(&self) -> Option<&str> {
        self.str("general.architecture")
    }
}

/// Reads `n` key-value pairs.
pub(crate) fn read_entries(cursor: &mut Cursor<'_>, n: usize) -> Result<GgufMetadata, CheckpointError> {
    let mut inner = Inner::default();
    for _ in 0..n {
        let offset = cursor.pos();
        let key = cursor.string("metadata key")?;
        let what = format!("metadata {key:?}");
        let of = read_type(cursor, &what)?;
        let value = read_value(cursor, of, &what)?;
        if inner.index.insert(key.clone(), inner.entries.len()).is_some() {
            return Err(cursor.fault(what, offset, "the key a second time", "every key once"));
        }
        inner.entries.push((key, value));
    }
    Ok(GgufMetadata { inner: Arc::new(inner) })
}

fn read_type(cursor: &mut Cursor<'_>, what: &str) -> Result<MetaType, CheckpointError> {
    let offset = cursor.pos();
    let id = cursor.u32(what)?;
    MetaType::from_id(id)
        .ok_or_else(|| cursor.fault(format!("{what}: value type"), offset, id, "a type from 0 to 12"))
}

fn read_value(cursor: &mut Cursor<'_>, of: MetaType, what: &str) -> Result<MetaValue, CheckpointError> {
    match of {
        MetaType::String => cursor.string(what).map(MetaValue::String),
        MetaType::Array => read_array(cursor, what, 1).map(MetaValue::Array),
        _ => {
            let offset = cursor.pos();
            let bytes = cursor.take(of.n_bytes().unwrap_or(0), what)?;
            if of == MetaType::Bool && bytes[0] > 1 {
                return Err(cursor.fault(what, offset, bytes[0], "0 or 1"));
            }
            scalar(of, &bytes).ok_or_else(|| cursor.fault(what, offset, "no number", "a number"))
        }
    }
}

fn read_array(cursor: &mut Cursor<'_>, what: &str, depth: usize) -> Result<MetaArray, CheckpointError> {
    let offset = cursor.pos();
    if depth > MAX_NESTING {
        return Err(cursor.fault(
            what,
            offset,
            "an array nested deeper",
            format!("at most {MAX_NESTING} levels"),
        ));
    }
    let of = read_type(cursor, what)?;
    let what_len = format!("{what}: array length");
    match of {
        MetaType::String => {
            let n = cursor.count(8, &what_len)?;
            read_strings(cursor, n, what).map(MetaArray::Strings)
        }
        MetaType::Array => {
            let n = cursor.count(12, &what_len)?;
            let items: Result<_, _> = (0..n).map(|_| read_array(cursor, what, depth + 1)).collect();
            items.map(MetaArray::Nested)
        }
        _ => {
            let n_bytes = of.n_bytes().unwrap_or(1);
            let n = cursor.count(n_bytes, &what_len)?;
            Ok(MetaArray::Numbers { of, bytes: cursor.take(n * n_bytes, what)? })
        }
    }
}

fn read_strings(cursor: &mut Cursor<'_>, n: usize, what: &str) -> Result<StringArray, CheckpointError> {
    let base = cursor.pos();
    let mut spans = Vec::new();
    for _ in 0..n {
        let string = cursor.bytes(what)?;
        let end = cursor.pos() - base;
        spans.push((end - string.len(), end));
    }
    Ok(StringArray { bytes: cursor.since(base), spans: spans.into() })
}
