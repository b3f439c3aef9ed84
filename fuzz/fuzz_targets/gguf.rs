//! A GGUF file: opened, its tensors decoded, its tokenizer built.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use mlxr_checkpoint::Checkpoint;
use mlxr_text::Tokenizer;

fuzz_target!(|data: &[u8]| {
    if let Ok(ckpt) = Checkpoint::from_gguf_bytes(Path::new("fuzz.gguf"), &data.to_vec().into()) {
        for tensor in ckpt.tensors().chain(&ckpt.unknown) {
            let _ = tensor.to_f32();
        }
        let _ = ckpt.summary();
        if let Ok(tokenizer) = Tokenizer::from_source(&ckpt.tokenizer) {
            let _ = tokenizer.decode(&[0, 1, u32::MAX], false);
        }
    }
});
