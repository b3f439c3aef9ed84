//! Tells the crate whether the bundled model is there to be embedded.

use std::path::Path;

fn main() {
    let model = Path::new("../../models/mlxr-27m-q8_0.gguf");
    println!("cargo::rustc-check-cfg=cfg(bundled_model)");
    println!("cargo::rerun-if-changed={}", model.display());
    if model.is_file() {
        println!("cargo::rustc-cfg=bundled_model");
    }
}
