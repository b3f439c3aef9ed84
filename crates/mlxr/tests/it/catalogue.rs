//! `mlxr list`, `create`, `cp`, `rm` and `show` of the catalogue's models.

use std::path::Path;

use snapbox::cmd::Command;
use snapbox::str;

use crate::command::{json, mlxr, repo};

fn in_folder(folder: &Path, args: &[&str]) -> Command {
    mlxr(args).env("XDG_DATA_HOME", folder).env("XDG_CONFIG_HOME", folder)
}

#[test]
fn models_are_made_listed_shown_copied_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| in_folder(dir.path(), args);
    let from_bundled = ["create", "mario", "--from", "mlxr-27m", "--system", "You are Mario."];
    let mut args = from_bundled.to_vec();
    args.extend(["--parameter", "temperature=0.5", "--parameter", "stop=END"]);
    run(&args).assert().success().stdout_eq("created mario\n");
    run(&["cp", "mario", "me/luigi:7b"]).assert().success().stdout_eq("copied mario to me/luigi:7b\n");
    run(&["list"]).assert().success().stdout_eq(str![[r#"
name         size      type  note
mlxr-27m     [..] MiB  Q8_0  in the program
mario        [..] MiB  Q8_0  from mlxr-27m
me/luigi:7b  [..] MiB  Q8_0  from mlxr-27m

"#]]);
    run(&["show", "--modelfile", "ME/luigi:7b"]).assert().success().stdout_eq(str![[r#"
FROM me/luigi:7b
SYSTEM "You are Mario."
PARAMETER temperature 0.5
PARAMETER stop END

"#]]);
    let shown = json(run(&["show", "--json", "mario"]));
    assert_eq!(
        (&shown["catalogue"]["system"], &shown["catalogue"]["from"]),
        (&"You are Mario.".into(), &"mlxr-27m".into())
    );
    run(&["rm", "mario", "me/luigi:7b"]).assert().success().stdout_eq("removed mario\nremoved me/luigi:7b\n");
    let listed = json(run(&["list", "--json"]));
    assert_eq!(listed["models"].as_array().unwrap().len(), 1);
}

#[test]
fn a_modelfile_names_files_from_its_own_folder() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m/Modelfile");
    std::fs::create_dir_all(dir.path().join("m")).unwrap();
    std::fs::copy(repo("golden/tiny/llama/model.gguf"), dir.path().join("m/x.gguf")).unwrap();
    std::fs::write(&file, "FROM ./x.gguf\nSYSTEM \"\"\"Two\nlines\"\"\"\n").unwrap();
    let run = |args: &[&str]| in_folder(dir.path(), args);
    run(&["create", "x", "-f", file.to_str().unwrap()]).assert().success();
    // The file was copied: the model does not need it.
    std::fs::remove_file(dir.path().join("m/x.gguf")).unwrap();
    let blobs = || std::fs::read_dir(dir.path().join("mlxr/blobs")).unwrap().count();
    assert_eq!(
        (blobs(), json(run(&["show", "--json", "x"]))["catalogue"]["system"].clone()),
        (1, "Two\nlines".into())
    );
    run(&["rm", "x"]).assert().success();
    assert_eq!(blobs(), 0);
    let folder = repo("golden/tiny/llama/hf");
    run(&["create", "linked", "--link", "--from", folder.to_str().unwrap()]).assert().success();
    run(&["create", "small", "--quantize", "q8_0", "--from", "linked"]).assert().success();
    let listed = json(run(&["list", "--json"]));
    let types: Vec<&str> =
        listed["models"].as_array().unwrap().iter().map(|m| m["stored_as"].as_str().unwrap()).collect();
    assert_eq!(types[2], "Q8_0", "{listed}");
}

#[test]
fn mistakes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |args: &[&str], code: i32, expected: snapbox::data::Inline| {
        in_folder(dir.path(), args)
            .current_dir(dir.path())
            .assert()
            .code(code)
            .stdout_eq("")
            .stderr_eq(expected);
    };
    refused(
        &["create", "mlxr-27m", "--from", "x"],
        1,
        str![[r#"
error: mlxr-27m is the name of the model in the program
hint: choose another name

"#]],
    );
    refused(
        &["create", "a b", "--from", "x"],
        2,
        str![[r#"
error: "a b" is no name for a model: the model has ' ' in it
hint: a name looks like mario or me/mario:7b

"#]],
    );
    refused(
        &["create", "a"],
        2,
        str![[r#"
error: what is the model to be made from? there is no Modelfile in this folder
hint: name it with --from MODEL, or a Modelfile with -f FILE

"#]],
    );
    refused(
        &["create", "a", "--from", "nobody"],
        1,
        str![[r#"
error: there is no model and no file "nobody"
hint: `mlxr list` shows the models there are; files are named by their paths

"#]],
    );
    refused(
        &["create", "a", "--from", "mlxr-27m", "--parameter", "temprature=1"],
        2,
        str![[r#"
error: --parameter: there is no parameter "temprature"
hint: did you mean "temperature"?

"#]],
    );
    std::fs::write(dir.path().join("Modelfile"), "FROM mlxr-27m\nADAPTER x\n").unwrap();
    refused(
        &["create", "a"],
        1,
        str![[r#"
error: Modelfile:2:1: ADAPTER: adapters are not applied yet
hint: merge the adapter into the weights and name the result after FROM

"#]],
    );
    refused(
        &["rm", "nobody"],
        1,
        str![[r#"
error: there is no model "nobody"
hint: `mlxr list` shows the models there are

"#]],
    );
    refused(
        &["rm", "mlxr-27m"],
        1,
        str![[r#"
error: mlxr-27m is in the program and stays
hint: a server started with --model does not serve it

"#]],
    );
}
