//! The model that ships inside the binary, so that the program says something wherever it is installed.

use std::path::Path;

use anyhow::Context;
use bytes::Bytes;
use mlxr_checkpoint::Checkpoint;

/// The file's name, for messages.
pub const NAME: &str = "mlxr-27m-q8_0.gguf";

/// The name it is served under.
pub const MODEL: &str = "mlxr-27m";

/// Bytes at an address every kernel and every page likes.
#[repr(C, align(4096))]
struct PageAligned<T: ?Sized>(T);

static FILE: &PageAligned<[u8]> =
    &PageAligned(*include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/mlxr-27m-q8_0.gguf")));

/// Opens the bundled model where it lies in the program.
pub fn open() -> anyhow::Result<Checkpoint> {
    Checkpoint::from_gguf_bytes(Path::new(NAME), &bytes()).context("cannot open the bundled model")
}

/// The bundled model's file.
pub fn bytes() -> Bytes {
    Bytes::from_static(&FILE.0)
}
