//! Small files of the cache folder: what is found out once about a GPU is kept for the next start.

use std::io::{self, Write};
use std::path::Path;

/// What names of files that are still being written begin with, as everywhere in this program: what a process leaves that
/// ends meanwhile is swept by that.
const TEMPORARY: &str = ".mlxr-";

/// Writes a file and the folders above it. Others see the old content or the new one, also where several processes write.
///
/// # Errors
/// What the system says.
pub fn keep(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(folder)?;
    file.write_all(content)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}
