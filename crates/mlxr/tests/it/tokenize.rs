//! `mlxr tokenize`.

use serde_json::json;
use snapbox::str;

use crate::command::{json, mlxr};

#[test]
fn pieces_are_listed_with_their_ids() {
    mlxr(["tokenize", "Once upon a time<|im_end|>"]).assert().success().stderr_eq("").stdout_eq(str![[r#"
    850  "Once"
    745  " upon"
    264  " a"
    533  " time"
      2  "<|im_end|>"  special
5 tokens

"#]]);
}

#[test]
fn control_tokens_can_be_read_as_text() {
    let plain = json(mlxr(["tokenize", "--plain", "--json", "<|im_end|>"]));
    assert!(plain["count"].as_u64().unwrap() > 1);
    assert_eq!(json(mlxr(["tokenize", "--json", "<|im_end|>"]))["ids"], json!([2]));
}

#[test]
fn text_comes_from_standard_input_too() {
    mlxr(["tokenize", "--ids"]).stdin("Once upon a time").assert().success().stdout_eq("850 745 264 533\n");
    mlxr(["tokenize", "--count"]).stdin("Once upon a time").assert().success().stdout_eq("4\n");
}

#[test]
fn ids_become_the_text_again() {
    mlxr(["tokenize", "--decode", "850", "745", "264", "533"])
        .assert()
        .success()
        .stdout_eq("Once upon a time\n");
    mlxr(["tokenize", "--decode"]).stdin("[850, 745]").assert().success().stdout_eq("Once upon\n");
    mlxr(["tokenize", "--decode", "9999"]).assert().code(1).stderr_eq(str![[r#"
error: token id 9999 is outside the vocabulary of 4096
hint: ids go from 0 to 4095

"#]]);
}
