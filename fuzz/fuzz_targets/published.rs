//! Weights in the layouts of other people's tools: the first byte picks the settings, the rest is the safetensors file.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use mlxr_checkpoint::Checkpoint;

const SETTINGS: [&str; 7] = [
    r#"{"quant_method": "fp8", "weight_block_size": [32, 32]}"#,
    r#"{"quant_method": "fp8"}"#,
    r#"{"quant_method": "compressed-tensors", "format": "pack-quantized"}"#,
    r#"{"quant_method": "gptq", "bits": 4, "group_size": 32}"#,
    r#"{"quant_method": "gptq", "bits": 3, "group_size": -1, "checkpoint_format": "gptq_v2"}"#,
    r#"{"quant_method": "awq", "bits": 4, "group_size": 32}"#,
    r#"{"quant_method": "bitsandbytes"}"#,
];

fuzz_target!(|data: &[u8]| {
    let Some((choice, file)) = data.split_first() else { return };
    let settings = SETTINGS[usize::from(*choice) % SETTINGS.len()];
    let dir = tempfile::tempdir().expect("a folder for the files");
    let config = format!(r#"{{"model_type": "llama", "quantization_config": {settings}}}"#);
    fs::write(dir.path().join("config.json"), config).expect("room for the files");
    fs::write(dir.path().join("model.safetensors"), file).expect("room for the files");
    if let Ok(ckpt) = Checkpoint::open(dir.path()) {
        for tensor in ckpt.tensors().chain(&ckpt.unknown) {
            let _ = tensor.to_f32();
        }
    }
});
