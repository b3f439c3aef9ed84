//! A model cut into numbered files: `name-00001-of-00003.gguf`, ...

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::reader::GgufFile;
use crate::CheckpointError;
use crate::mapping::LoadOptions;

/// More parts than anyone makes; bounds the number of open maps.
const MAX_PARTS: u64 = 1000;

/// The prefix, number and count in `prefix-00001-of-00003.gguf`.
fn parse_part_name(name: &str) -> Option<(&str, u64, u64)> {
    let stem = name.strip_suffix(".gguf")?;
    let (head, n_parts) = stem.rsplit_once("-of-")?;
    let (prefix, number) = head.rsplit_once('-')?;
    let digits = |s: &str| (s.len() == 5).then(|| s.parse::<u64>().ok())?;
    Some((prefix, digits(number)?, digits(n_parts)?))
}

fn part_path(first: &Path, prefix: &str, number: u64, n_parts: u64) -> PathBuf {
    first.with_file_name(format!("{prefix}-{number:05}-of-{n_parts:05}.gguf"))
}

/// Opens a GGUF file and, when it is the first of a series, the others; their tensors are joined.
pub(crate) fn open_series(path: &Path, options: LoadOptions) -> Result<GgufFile, CheckpointError> {
    let mut first = GgufFile::open(path, options)?;
    let n_parts = first.metadata.u64("split.count").unwrap_or(1);
    if n_parts <= 1 {
        return Ok(first);
    }
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let Some((prefix, number, named_parts)) = parse_part_name(name) else {
        return Err(CheckpointError::missing(
            path,
            format!("the part number in the file name ({n_parts} parts)"),
            "keep the names the parts were made with: NAME-00001-of-0000N.gguf",
        ));
    };
    if number != 1 {
        let first = part_path(path, prefix, 1, named_parts);
        return Err(CheckpointError::unsupported(
            path,
            format!("opening part {number} of a split model"),
            format!("name the first part, {}", first.display()),
        ));
    }
    if named_parts != n_parts || n_parts > MAX_PARTS {
        let expected = format!("{named_parts}, as the file name says");
        return Err(CheckpointError::malformed(path, "metadata \"split.count\"", 0, n_parts, expected));
    }
    let mut names: HashSet<String> = first.tensors.iter().map(|t| t.tensor.name().to_owned()).collect();
    for number in 2..=n_parts {
        let part_path = part_path(path, prefix, number, n_parts);
        if !part_path.is_file() {
            let what = format!("part {} of {n_parts} ({})", number, part_path.display());
            return Err(CheckpointError::missing(path, what, "put all parts in one folder"));
        }
        let part = GgufFile::open(&part_path, options)?;
        let no = part.metadata.u64("split.no");
        if no != Some(number - 1) || part.metadata.u64("split.count") != Some(n_parts) {
            let found = format!("{no:?} of {:?}", part.metadata.u64("split.count"));
            let expected = format!("{} of {n_parts}", number - 1);
            return Err(CheckpointError::malformed(&part_path, "metadata \"split.no\"", 0, found, expected));
        }
        for raw in part.tensors {
            if !names.insert(raw.tensor.name().to_owned()) {
                let what = format!("tensor {:?}", raw.tensor.name());
                return Err(CheckpointError::malformed(
                    &part_path,
                    what,
                    0,
                    "it again",
                    "every tensor in one part",
                ));
            }
            first.tensors.push(raw);
        }
    }
    match first.metadata.u64("split.tensors.count") {
        Some(n) if n != first.tensors.len() as u64 => {
            Err(CheckpointError::malformed(path, "tensors in all parts", 0, first.tensors.len(), n))
        }
        _ => Ok(first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_names_have_five_digits() {
        assert_eq!(parse_part_name("m-Q4-00002-of-00007.gguf"), Some(("m-Q4", 2, 7)));
        assert_eq!(parse_part_name("m-2-of-7.gguf"), None);
        assert_eq!(parse_part_name("m.gguf"), None);
    }
}
