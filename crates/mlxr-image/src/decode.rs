//! From a file to pixels.

use std::fs::{self, File};
use std::io::{Cursor, Read};
use std::path::Path;

use image::error::ImageError as CodecError;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits, RgbImage};

use crate::ImageError;

/// Longest file that is read.
pub const MAX_FILE_BYTES: u64 = 64 << 20;
/// Most pixels that are decoded: 8192 by 8192.
pub const MAX_PIXELS: u64 = 1 << 26;
/// What a decoder may take: four channels of 16 bits and as much again.
const MAX_DECODED_BYTES: u64 = MAX_PIXELS * 16;

/// The bytes of a file.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>, ImageError> {
    let failed = |source| ImageError::Io { path: path.to_owned(), source };
    let n_bytes = fs::metadata(path).map_err(failed)?.len();
    let mut bytes = Vec::new();
    // What is no regular file may be longer than it says.
    File::open(path).map_err(failed)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(ImageError::FileTooLarge { n_bytes: n_bytes.max(bytes.len() as u64) });
    }
    Ok(bytes)
}

/// An image in any of the formats, upright; of several frames the first. Transparency is left out, as Pillow's
/// conversion does.
pub(crate) fn decode(bytes: &[u8]) -> Result<RgbImage, ImageError> {
    let n_bytes = bytes.len() as u64;
    if n_bytes > MAX_FILE_BYTES {
        return Err(ImageError::FileTooLarge { n_bytes });
    }
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(damaged)?;
    if reader.format().is_none() {
        return Err(ImageError::UnknownFormat);
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODED_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(refusal)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(ImageError::TooManyPixels { width, height });
    }
    if width == 0 || height == 0 {
        return Err(ImageError::Damaged { reason: format!("it has {width} x {height} pixels") });
    }
    let orientation = decoder.orientation().map_err(refusal)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(refusal)?;
    image.apply_orientation(orientation);
    Ok(image.into_rgb8())
}

fn refusal(error: CodecError) -> ImageError {
    match error {
        CodecError::Unsupported(_) => ImageError::UnknownFormat,
        error => damaged(error),
    }
}

fn damaged(error: impl std::error::Error) -> ImageError {
    ImageError::Damaged { reason: error.to_string() }
}
