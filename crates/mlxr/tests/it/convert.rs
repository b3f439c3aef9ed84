//! `mlxr convert` and `mlxr quantize`: there and back, on the bundled model and a tiny one.

use std::path::Path;

use snapbox::cmd::Command;
use snapbox::str;

use crate::command::{json, mlxr, repo};

const QUESTION: &str = "What is the capital of Mongolia?";
const ANSWER: &str = "The capital of Mongolia is Ulaanbaatar.\n";

fn inside(dir: &Path, args: &[&str]) -> Command {
    mlxr(args).current_dir(dir)
}

fn assert_answers(dir: &Path, model: &str) {
    inside(dir, &["run", model, "--greedy", QUESTION]).assert().success().stdout_eq(ANSWER);
}

#[test]
fn the_bundled_model_goes_through_every_format_and_still_answers() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::copy(repo("models/mlxr-27m-q8_0.gguf"), dir.join("q8.gguf")).unwrap();
    inside(dir, &["convert", "q8.gguf", "hf", "--to", "hf", "--type", "bf16"]).assert().success();
    assert_answers(dir, "./hf");
    inside(dir, &["convert", "hf", "f16.gguf", "--to", "gguf", "--name", "Round trip"]).assert().success();
    assert_answers(dir, "f16.gguf");
    let facts = json(inside(dir, &["show", "f16.gguf", "--metadata", "--json"]));
    assert_eq!(facts["general.name"], "Round trip");
    assert_eq!(facts["general.sampling.temp"], 0.7, "the maker's settings survive the way through a folder");
    inside(dir, &["convert", "hf", "mlx", "--to", "mlx", "--bits", "8"]).assert().success();
    assert_answers(dir, "./mlx");
    inside(dir, &["quantize", "f16.gguf", "q4.gguf", "q4_k_m"]).assert().success().stderr_eq("").stdout_eq(
        str![[r#"
q4.gguf: 52.0 MiB -> 16.2 MiB, 17 F32, 48 Q4_K, 9 Q6_K

"#]],
    );
    assert_answers(dir, "q4.gguf");
    let report = json(inside(dir, &["quantize", "hf", "q6.gguf", "Q6_K", "--output-type", "q8_0", "--json"]));
    assert_eq!(report["tensors"]["Q8_0"], 1, "the tied embedding is the output");
    assert_answers(dir, "q6.gguf");
    let left: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 6, "nothing temporary stays: {left:?}");
}

#[test]
fn nothing_is_overwritten_or_requantised_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::copy(repo("models/mlxr-27m-q8_0.gguf"), dir.join("q8.gguf")).unwrap();
    std::fs::write(dir.join("there.gguf"), b"precious").unwrap();
    let refused = |args: &[&str]| inside(dir, args).assert().code(1).stdout_eq("");
    refused(&["quantize", "q8.gguf", "there.gguf", "Q4_0"]).stderr_eq(str![[r#"
error: there.gguf exists already
hint: --force replaces it

"#]]);
    refused(&["quantize", "q8.gguf", "q8.gguf", "Q4_0", "--force"]).stderr_eq(str![[r#"
error: source and destination are the same
hint: write to another place

"#]]);
    refused(&["quantize", "q8.gguf", "new.gguf", "Q4_0"]).stderr_eq(str![[r#"
error: the model is quantised already
  caused by: q8.gguf: quantising "token_embd.weight", which is Q8_0 already, to Q6_K is not supported
hint: --allow-requantize accepts the loss of precision
hint: start from an F16, BF16 or F32 file, or allow requantising

"#]]);
    refused(&["convert", "q8.gguf", "new.gguf", "--to", "gguf"]).stderr_eq(str![[r#"
error: q8.gguf: converting GGUF to GGUF is not supported
hint: use quantize to change the type of its tensors

"#]]);
    assert!(!dir.join("new.gguf").exists());
    assert_eq!(std::fs::read(dir.join("there.gguf")).unwrap(), b"precious");
    inside(dir, &["quantize", "q8.gguf", "there.gguf", "Q4_0", "--force", "--allow-requantize"])
        .assert()
        .success();
    assert_answers(dir, "there.gguf");
}

#[test]
fn unknown_types_are_told_from_known_ones() {
    mlxr(["quantize", "a", "b", "Q4_K_X"]).assert().code(2).stdout_eq("").stderr_eq(str![[r#"
error: invalid value 'Q4_K_X' for '<TYPE>': unknown quantisation "Q4_K_X", known are F32, F16, Q4_0, Q4_1, Q8_0, Q5_0, Q5_1, Q2_K, Q3_K_S, Q3_K_M, Q3_K_L, Q4_K_S, Q4_K_M, Q5_K_S, Q5_K_M, Q6_K, IQ2_XXS, IQ2_XS, Q2_K_S, IQ3_XS, IQ3_XXS, IQ1_S, IQ4_NL, IQ3_S, IQ3_M, IQ2_S, IQ2_M, IQ4_XS, IQ1_M, BF16, TQ1_0, TQ2_0, MXFP4_MOE

For more information, try '--help'.

"#]]);
    mlxr(["convert", "a", "b", "--to", "gguf", "--bits", "4"]).assert().code(2).stdout_eq("").stderr_eq(
        str![[r#"
error: --bits and --float-mode belong to --to mlx
hint: for GGUF, convert first and then use `mlxr quantize`

"#]],
    );
}
