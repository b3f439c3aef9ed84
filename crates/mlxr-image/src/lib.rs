//! Image files as models read them: decoded, resized, cropped and normalised as transformers' `CLIPImageProcessor` does
//! it with Pillow, level for level.
//!
//! Invariant: what is decoded takes a bounded amount of memory, whatever a file says of itself.

mod decode;
mod processor;
mod resample;

pub use decode::{MAX_FILE_BYTES, MAX_PIXELS};
pub use processor::{ImageProcessor, SettingError};

use std::io;
use std::path::PathBuf;

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("the file has {n_bytes} bytes, more than {MAX_FILE_BYTES}\nhint: give a smaller image")]
    FileTooLarge { n_bytes: u64 },
    #[error("not an image in PNG, JPEG, WebP or GIF\nhint: convert it to one of these")]
    UnknownFormat,
    #[error(
        "the image has {width} x {height} pixels, more than {MAX_PIXELS} in all\nhint: models see a few hundred pixels a \
         side; give a smaller image"
    )]
    TooManyPixels { width: u32, height: u32 },
    #[error(
        "the image has {width} x {height} pixels: far longer than it is wide\nhint: cut it to what matters"
    )]
    TooNarrow { width: usize, height: usize },
    #[error("the image is damaged: {reason}")]
    Damaged { reason: String },
    #[error(
        "the image becomes {width} x {height} pixels, of which {crop_width} x {crop_height} are to be cut out"
    )]
    TooSmall { width: usize, height: usize, crop_width: usize, crop_height: usize },
}
