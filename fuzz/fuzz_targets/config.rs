//! config.json of a model folder, beside weights that are what they should be.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use mlxr_checkpoint::Checkpoint;

/// An empty safetensors file.
const NO_TENSORS: &[u8] = b"\x02\0\0\0\0\0\0\0{}";

fuzz_target!(|data: &[u8]| {
    let dir = tempfile::tempdir().expect("a folder for the files");
    fs::write(dir.path().join("config.json"), data).expect("room for the files");
    fs::write(dir.path().join("generation_config.json"), data).expect("room for the files");
    fs::write(dir.path().join("model.safetensors"), NO_TENSORS).expect("room for the files");
    let _ = Checkpoint::open(dir.path());
});
