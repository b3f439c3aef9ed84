//! What goes wrong is told in one shape: message, causes, hint, exit code.

use std::process::{Command, Stdio};

use snapbox::str;

use crate::command::{binary, mlxr};

#[test]
fn a_model_that_is_not_there() {
    mlxr(["run", "no/such.gguf", "Hi"]).assert().code(1).stdout_eq("").stderr_eq(str![[r#"
error: no model at no/such.gguf
hint: name a .gguf file, or a folder with config.json and *.safetensors; a prompt that looks like a path goes after `--`

"#]]);
}

#[test]
fn errors_are_json_when_json_is_asked_for() {
    mlxr(["show", "no/such.gguf", "--json"]).assert().code(1).stdout_eq("").stderr_eq(str![[r#"
{"error":{"message":"no model at no/such.gguf","causes":[],"hints":["name a .gguf file, or a folder with config.json and *.safetensors; a prompt that looks like a path goes after `--`"],"exit_code":1}}

"#]]);
    mlxr(["show", "--json", "--tensor"]).assert().code(2).stdout_eq("").stderr_eq(str![[r#"
{"error":{"message":"unexpected argument '--tensor' found","causes":[],"hints":["a similar argument exists: '--tensors'"],"exit_code":2}}

"#]]);
}

#[test]
fn a_file_that_is_no_model() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("x.gguf"), b"GGUF").unwrap();
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    let show = |model: &str| mlxr(["show", model]).current_dir(dir.path()).assert().code(1).stdout_eq("");
    show("x.gguf").stderr_eq(str![[r#"
error: cannot open the model x.gguf
  caused by: x.gguf: version at byte 4: found 0 bytes to the end of the file, expected 4 bytes
hint: the file is damaged or incomplete; fetch or convert it again

"#]]);
    show("empty").stderr_eq(str![[r#"
error: cannot open the model empty
  caused by: empty: config.json is missing
hint: name a GGUF file, or a folder with config.json and *.safetensors

"#]]);
}

#[test]
fn a_flag_that_is_almost_right_is_suggested() {
    mlxr(["run", "--temperatur", "1"]).assert().code(2).stdout_eq("").stderr_eq(str![[r#"
error: unexpected argument '--temperatur' found

  tip: a similar argument exists: '--temperature'
  tip: to pass '--temperatur' as a value, use '-- --temperatur'

Usage: mlxr run --temperature <T> [MODEL_OR_PROMPT]... [-- <PROMPT>...]

For more information, try '--help'.

"#]]);
}

#[test]
fn sampling_values_without_meaning_are_usage_errors() {
    mlxr(["run", "--top-p", "1.5", "Hi"]).assert().code(2).stdout_eq("").stderr_eq(str![[r#"
error: top_p is 1.5, but must be above 0 and at most 1
hint: `mlxr run --help` says what every sampling flag takes

"#]]);
}

#[test]
fn a_prompt_longer_than_the_context_names_both_numbers() {
    mlxr(["run", "--raw", "--ctx", "4", "one two three four five six"])
        .assert()
        .code(1)
        .stdout_eq("")
        .stderr_eq(str![[r#"
error: prompt has 6 tokens, but the context holds 4 with the answer
hint: shorten the prompt, or give --ctx a number above 4 if the model allows it

"#]]);
}

#[test]
fn a_context_beyond_the_model_is_refused() {
    mlxr(["run", "--ctx", "4096", "Hi"]).assert().code(1).stdout_eq("").stderr_eq(str![[r#"
error: cannot load the model mlxr-27m-q8_0.gguf
  caused by: mlxr-27m-q8_0.gguf: a context of 4096 tokens was asked for, the model can use at most 2048
hint: give --ctx at most 2048

"#]]);
}

#[test]
fn no_prompt_at_all_is_a_usage_error() {
    mlxr(["run"]).assert().code(2).stdout_eq("").stderr_eq(str![[r#"
error: no prompt, and standard input is empty
hint: mlxr run "Tell me a story."

"#]]);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = Command::new(binary())
        .args(["show", "--metadata", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
}
