//! Types of settings: how each is read from text.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use mlxr_tensor::{DType, KvSpec};
use serde_json::{Value, json};

use crate::KeepAlive;

/// What stands for "nobody said".
pub const AUTO: &str = "auto";

/// A text and the folder that paths in it start from.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    pub text: &'a str,
    /// Of values in files: the file's folder.
    pub base: Option<&'a std::path::Path>,
}

/// A type of setting.
pub trait Setting: Sized {
    /// Whether several values may be given.
    const IS_LIST: bool = false;

    /// # Errors
    /// What was expected.
    fn read_one(text: Text<'_>) -> Result<Self, String>;

    /// Reads the values, of which there is one unless this is a list.
    ///
    /// # Errors
    /// What was expected.
    fn read(texts: &[Text<'_>]) -> Result<Self, String> {
        match texts {
            [text] => Self::read_one(*text),
            _ => Err(format!("expected one value, not {}", texts.len())),
        }
    }

    fn to_json(&self) -> Value;
}

impl<T: Setting> Setting for Vec<T> {
    const IS_LIST: bool = true;

    fn read_one(text: Text<'_>) -> Result<Self, String> {
        Ok(vec![T::read_one(text)?])
    }

    fn read(texts: &[Text<'_>]) -> Result<Self, String> {
        texts.iter().map(|text| T::read_one(*text)).collect()
    }

    fn to_json(&self) -> Value {
        self.iter().map(T::to_json).collect()
    }
}

impl<T: Setting> Setting for Option<T> {
    fn read_one(text: Text<'_>) -> Result<Self, String> {
        match text.text {
            AUTO => Ok(None),
            _ => T::read_one(text).map(Some).map_err(|expected| format!("{expected}, or {AUTO}")),
        }
    }

    fn to_json(&self) -> Value {
        self.as_ref().map_or(Value::Null, T::to_json)
    }
}

impl Setting for bool {
    fn read_one(text: Text<'_>) -> Result<Self, String> {
        text.text.parse().map_err(|_| "expected true or false".to_owned())
    }

    fn to_json(&self) -> Value {
        json!(self)
    }
}

impl Setting for String {
    fn read_one(text: Text<'_>) -> Result<Self, String> {
        Some(text.text.to_owned()).filter(|text| !text.is_empty()).ok_or_else(|| "expected a text".to_owned())
    }

    fn to_json(&self) -> Value {
        json!(self)
    }
}

impl Setting for IpAddr {
    fn read_one(text: Text<'_>) -> Result<Self, String> {
        text.text.parse().map_err(|_| "expected an IP address such as 127.0.0.1 or ::1".to_owned())
    }

    fn to_json(&self) -> Value {
        json!(self.to_string())
    }
}

impl Setting for u16 {
    fn read_one(text: Text<'_>) -> Result<Self, String> {
        text.text.parse().map_err(|_| format!("expected a number from 0 to {}", u16::MAX))
    }

    fn to_json(&self) -> Value {
        json!(self)
    }
}

/// Counts are above 0.
impl Setting for usize {
    fn read_one(text: Text<'_>) -> Result<Self, String> {
        text.text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "expected a number above 0".to_owned())
    }

    fn to_json(&self) -> Value {
        json!(self)
    }
}

/// Tokens of a context.
impl Setting for u32 {
    fn read_one(text: Text<'_>) -> Result<Self, String> {
        text.text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "expected a number above 0".to_owned())
    }

    fn to_json(&self) -> Value {
        json!(self)
    }
}

impl Setting for PathBuf {
    fn read_one(text: Text<'_>) -> Result<Self, String> {
        if text.text.is_empty() {
            return Err("expected a path".to_owned());
        }
        // Shells do this for arguments; in a file nobody else does.
        if let (Some(_), Some(rest)) = (text.base, text.text.strip_prefix("~/")) {
            let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
            return home
                .map(|home| PathBuf::from(home).join(rest))
                .ok_or_else(|| "HOME is not set".to_owned());
        }
        Ok(text.base.map_or_else(|| PathBuf::from(text.text), |base| base.join(text.text)))
    }

    fn to_json(&self) -> Value {
        json!(self.display().to_string())
    }
}

/// A number of bytes: `1500`, `64K`, `512M`, `12G`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl Setting for Bytes {
    fn read_one(text: Text<'_>) -> Result<Self, String> {
        let text = text.text;
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
            "" => Some(0),
            "K" => Some(10),
            "M" => Some(20),
            "G" => Some(30),
            "T" => Some(40),
            _ => None,
        };
        let parsed = digits.parse::<u64>().ok().zip(shift);
        let bytes = parsed.and_then(|(n, shift)| n.checked_mul(1 << shift)).filter(|n| *n > 0);
        bytes.map(Bytes).ok_or_else(|| "expected a number of bytes such as 1500, 64K, 512M or 12G".to_owned())
    }

    fn to_json(&self) -> Value {
        json!(self.0)
    }
}

/// Units of time in milliseconds, the largest first.
const TIMES: [(&str, u64); 6] =
    [("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// `90`, `90s`, `50ms`, `5m`, `1h`, `7d`, `2w`.
impl Setting for Duration {
    fn read_one(text: Text<'_>) -> Result<Self, String> {
        let text = text.text;
        let mut units = TIMES.iter().rev();
        let unit = units.find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
        let (digits, factor) = unit.unwrap_or((text, 1000));
        let parsed = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(factor));
        parsed
            .map(Duration::from_millis)
            .ok_or_else(|| "expected a time such as 90s, 5m, 1h or 7d".to_owned())
    }

    fn to_json(&self) -> Value {
        let ms = u64::try_from(self.as_millis()).unwrap_or(u64::MAX);
        let whole = TIMES.iter().find(|(_, factor)| ms > 0 && ms.is_multiple_of(*factor));
        json!(whole.map_or_else(|| "0s".to_owned(), |(unit, factor)| format!("{}{unit}", ms / factor)))
    }
}

/// A time above 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl Setting for Span {
    fn read_one(text: Text<'_>) -> Result<Self, String> {
        let time = Duration::read_one(text)?;
        Some(Span(time)).filter(|_| !time.is_zero()).ok_or_else(|| "expected a time above 0".to_owned())
    }

    fn to_json(&self) -> Value {
        self.0.to_json()
    }
}

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

impl Setting for LogFormat {
    fn read_one(text: Text<'_>) -> Result<Self, String> {
        match text.text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err("expected text or json".to_owned()),
        }
    }

    fn to_json(&self) -> Value {
        json!(if *self == LogFormat::Json { "json" } else { "text" })
    }
}

impl Setting for KeepAlive {
    fn read_one(text: Text<'_>) -> Result<Self, String> {
        match text.text {
            "forever" | "-1" => Ok(KeepAlive::Forever),
            _ => {
                Duration::read_one(text).map(KeepAlive::For).map_err(|reason| format!("{reason}, or forever"))
            }
        }
    }

    fn to_json(&self) -> Value {
        match self {
            KeepAlive::For(time) => time.to_json(),
            KeepAlive::Forever => json!("forever"),
        }
    }
}

/// Types the KV cache can hold.
impl Setting for DType {
    fn read_one(text: Text<'_>) -> Result<Self, String> {
        KvSpec::dtype_named(text.text).ok_or_else(|| format!("expected {}", KvSpec::DTYPE_NAMES))
    }

    fn to_json(&self) -> Value {
        json!(self.name().to_lowercase())
    }
}

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    Cpu,
    /// A GPU if there is one that can be used, else the CPU.
    #[default]
    Auto,
    /// The fastest GPU.
    Gpu,
    /// A GPU by its number.
    Index(usize),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cpu" => Ok(Device::Cpu),
            "auto" => Ok(Device::Auto),
            "gpu" => Ok(Device::Gpu),
            _ => text
                .parse()
                .map(Device::Index)
                .map_err(|_| "expected cpu, gpu, auto or a GPU's number".to_owned()),
        }
    }
}

impl Setting for Device {
    fn read_one(text: Text<'_>) -> Result<Self, String> {
        text.text.parse()
    }

    fn to_json(&self) -> Value {
        match self {
            Device::Cpu => json!("cpu"),
            Device::Auto => json!("auto"),
            Device::Gpu => json!("gpu"),
            Device::Index(index) => json!(index.to_string()),
        }
    }
}

/// Layers of a model that a GPU computes; the CPU has the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GpuLayers {
    /// As many as it has room for.
    #[default]
    Auto,
    All,
    /// The last ones, at most all.
    Count(usize),
}

impl FromStr for GpuLayers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            AUTO => Ok(GpuLayers::Auto),
            "all" => Ok(GpuLayers::All),
            _ => text
                .parse()
                .map(GpuLayers::Count)
                .map_err(|_| "expected a number of layers, auto or all".to_owned()),
        }
    }
}

impl Setting for GpuLayers {
    fn read_one(text: Text<'_>) -> Result<Self, String> {
        text.text.parse()
    }

    fn to_json(&self) -> Value {
        match self {
            GpuLayers::Auto => json!(AUTO),
            GpuLayers::All => json!("all"),
            GpuLayers::Count(n) => json!(n),
        }
    }
}

/// Where the Unix socket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Socket {
    /// In the user's runtime or state folder.
    Auto,
    Off,
    At(PathBuf),
}

impl Setting for Socket {
    fn read_one(text: Text<'_>) -> Result<Self, String> {
        match text.text {
            AUTO => Ok(Socket::Auto),
            "off" => Ok(Socket::Off),
            _ => PathBuf::read_one(text).map(Socket::At),
        }
    }

    fn to_json(&self) -> Value {
        match self {
            Socket::Auto => Value::Null,
            Socket::Off => json!("off"),
            Socket::At(path) => path.to_json(),
        }
    }
}

/// A model's files and the name they go by: `[NAME=]PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPath {
    pub name: String,
    pub path: PathBuf,
}

impl Setting for NamedPath {
    fn read_one(text: Text<'_>) -> Result<Self, String> {
        if let Some((name, path)) = text.text.split_once('=') {
            let name = crate::catalogue::ModelName::parse(name).map_err(|error| error.to_string())?;
            return Ok(NamedPath {
                name: name.to_string(),
                path: PathBuf::read_one(Text { text: path, ..text })?,
            });
        }
        let path = PathBuf::read_one(text)?;
        let stem = if path.is_dir() { path.file_name() } else { path.file_stem() };
        let name = stem.and_then(|stem| stem.to_str()).unwrap_or_default();
        match crate::catalogue::ModelName::parse(name) {
            Ok(name) => Ok(NamedPath { name: name.to_string(), path }),
            Err(_) => Err("the path gives no name for the model; write it as NAME=PATH".to_owned()),
        }
    }

    fn to_json(&self) -> Value {
        json!(format!("{}={}", self.name, self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: Setting>(text: &str) -> Result<T, String> {
        T::read_one(Text { text, base: None })
    }

    #[test]
    fn a_model_has_the_name_given_or_its_file_s() {
        let check = |text: &str, name: &str, path: &str| {
            assert_eq!(read(text), Ok(NamedPath { name: name.to_owned(), path: path.into() }), "{text}");
        };
        check("a=b/c.gguf", "a", "b/c.gguf");
        check("b/c.d.gguf", "c.d", "b/c.d.gguf");
        check("src", "src", "src");
        check("me/a:7b=x.gguf", "me/a:7b", "x.gguf");
        for bad in ["=x", "a=", "a b=c", "..", "a b.gguf", ""] {
            assert!(read::<NamedPath>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_and_times_have_units() {
        assert_eq!(read("1500"), Ok(Bytes(1500)));
        assert_eq!(read("2k"), Ok(Bytes(2048)));
        assert_eq!(read("12G"), Ok(Bytes(12 << 30)));
        for bad in ["", "G", "0", "-1", "1.5M", "99999999999G", "1KB"] {
            assert!(read::<Bytes>(bad).is_err(), "{bad}");
        }
        assert_eq!(read("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(read("0"), Ok(KeepAlive::For(Duration::ZERO)));
        assert_eq!([read("forever"), read("-1")], [Ok(KeepAlive::Forever), Ok(KeepAlive::Forever)]);
        assert_eq!(read("7d"), Ok(Duration::from_secs(604_800)));
        assert_eq!(read::<Duration>("7d").unwrap().to_json(), "1w");
        assert_eq!(read::<Duration>("90s").unwrap().to_json(), "90s");
        assert_eq!(read("50ms"), Ok(Duration::from_millis(50)));
        assert_eq!(read::<Duration>("1500ms").unwrap().to_json(), "1500ms");
        for bad in ["", "s", "ms", "5sm", "5y", "5\u{fc}", "-1s", "99999999999999999999d"] {
            assert!(read::<Duration>(bad).is_err(), "{bad}");
        }
        assert!(read::<KeepAlive>("soon").is_err() && read::<Span>("0s").is_err());
    }

    #[test]
    fn layers_of_a_gpu_may_be_none() {
        assert_eq!(read("0"), Ok(GpuLayers::Count(0)));
        assert_eq!([read("auto"), read("all")], [Ok(GpuLayers::Auto), Ok(GpuLayers::All)]);
        assert!(read::<GpuLayers>("-1").is_err() && read::<GpuLayers>("some").is_err());
    }

    #[test]
    fn kv_types_are_those_the_cache_can_hold() {
        assert_eq!(read("q8_0"), Ok(DType::Q8_0));
        assert_eq!(read("fp8"), Ok(DType::F8E4M3));
        assert_eq!(read(DType::F8E4M3.to_json().as_str().unwrap_or_default()), Ok(DType::F8E4M3));
        assert_eq!(read("q4_0"), Ok(DType::Q4_0));
        assert!(read::<DType>("q5_0").is_err());
    }

    #[test]
    fn paths_in_a_file_start_from_its_folder() {
        let base = Some(std::path::Path::new("/etc/mlxr"));
        assert_eq!(PathBuf::read_one(Text { text: "a/b", base }), Ok("/etc/mlxr/a/b".into()));
        assert_eq!(PathBuf::read_one(Text { text: "/a", base }), Ok("/a".into()));
        assert_eq!(read("a/b"), Ok(PathBuf::from("a/b")));
        assert_eq!(read::<Option<usize>>("auto"), Ok(None));
        assert_eq!(read::<Option<usize>>("0"), Err("expected a number above 0, or auto".to_owned()));
    }
}
