//! The header of a safetensors file.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use mlxr_checkpoint::read_safetensors;

fuzz_target!(|data: &[u8]| {
    if let Ok(tensors) = read_safetensors(Path::new("fuzz.safetensors"), &data.to_vec().into()) {
        for tensor in tensors {
            let _ = tensor.to_f32();
        }
    }
});
