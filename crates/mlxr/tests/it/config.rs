//! `mlxr config`.

use std::path::Path;

use snapbox::cmd::Command;
use snapbox::str;

use crate::command::{json, mlxr};

fn config(folder: &Path, args: &[&str]) -> Command {
    let config = std::iter::once("config").chain(args.iter().copied());
    mlxr(config).env("XDG_CONFIG_HOME", folder).env("XDG_DATA_HOME", folder.join("data"))
}

#[test]
fn every_setting_is_shown_with_its_origin() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mlxr/server.yaml");
    config(dir.path(), &["set", "listen.port", "8080"]).assert().success().stdout_eq("").stderr_eq("");
    config(dir.path(), &["set", "models.preload", "a", "b"]).assert().success();
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        "listen:\n  port: 8080\nmodels:\n  preload: [a, b]\n"
    );

    let shown = json(config(dir.path(), &["show", "--json"]).env("MLXR_ENGINE_MAX_SEQS", "7"));
    assert_eq!(shown["file"], file.display().to_string());
    let setting = |key: &str| {
        let all = shown["settings"].as_array().unwrap();
        all.iter().find(|setting| setting["key"] == key).unwrap().clone()
    };
    assert_eq!(
        (&setting("listen.port")["value"], &setting("engine.max_seqs")["value"]),
        (&8080.into(), &7.into())
    );
    assert_eq!(setting("listen.port")["origin"], format!("{}:2", file.display()));
    assert_eq!(setting("engine.max_seqs")["origin"], "MLXR_ENGINE_MAX_SEQS");
    assert_eq!(
        (&setting("limits.grace")["origin"], &setting("limits.grace")["value"]),
        (&"default".into(), &"30s".into())
    );

    config(dir.path(), &["get", "models.preload"]).assert().success().stdout_eq("a, b\n");
    let text = config(dir.path(), &["show"]).assert().success().get_output().stdout.clone();
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.lines().any(|line| line.starts_with("limits.max_body ") && line.ends_with("default")),
        "{text}"
    );
}

#[test]
fn paths_are_the_system_s() {
    let dir = tempfile::tempdir().unwrap();
    let expected = format!("{0}/mlxr/server.yaml\n{0}/data/mlxr\n", dir.path().display());
    config(dir.path(), &["path"]).assert().success().stdout_eq(expected);
    let found = json(config(dir.path(), &["path", "--json"]).env("MLXR_STORAGE_DATA_DIR", "/models"));
    assert_eq!((&found["data_dir"], &found["exists"]), (&"/models".into(), &false.into()));
    config(dir.path(), &["path", "--config", "/nowhere.yaml"]).assert().code(1).stderr_eq(str![[r#"
error: cannot read /nowhere.yaml: No such file or directory (os error 2)

"#]]);
}

#[test]
fn mistakes_are_told_with_their_lines() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mlxr/server.yaml");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "listen:\n  prot: 80\nlimits:\n  grace: soon\n").unwrap();
    for args in [vec!["config", "check"], vec!["config", "show"], vec!["serve", "--no-tcp", "--no-socket"]] {
        mlxr(args).env("XDG_CONFIG_HOME", dir.path()).assert().code(1).stdout_eq("").stderr_eq(str![[r#"
error: [..]/mlxr/server.yaml:2:3: there is no setting "prot" in listen
       [..]/mlxr/server.yaml:4:10: limits.grace is "soon", but expected a time such as 90s, 5m, 1h or 7d
hint: did you mean "port"?

"#]]);
    }
    std::fs::write(&file, "").unwrap();
    let models = dir.path().join("data/mlxr/models");
    std::fs::create_dir_all(&models).unwrap();
    std::fs::write(models.join("a.yaml"), "source: bundled\nsytem: x\n").unwrap();
    config(dir.path(), &["check"]).assert().code(1).stderr_eq(str![[r#"
error: [..]/data/mlxr/models/a.yaml:2:1: there is no setting "sytem" of a model
hint: did you mean "system"?
hint: the server runs without the models whose files have mistakes

"#]]);
    let model = models.join("a.yaml").display().to_string();
    config(dir.path(), &["check", &model]).assert().code(1);
    std::fs::write(models.join("a.yaml"), "source: bundled\n").unwrap();
    config(dir.path(), &["check", &model]).assert().success();
    config(dir.path(), &["check"]).assert().success();
}

#[test]
fn settings_that_are_none_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    config(dir.path(), &["set", "listen.prot", "1"]).assert().code(1).stderr_eq(str![[r#"
error: there is no setting "listen.prot"
hint: did you mean "listen.port"?

"#]]);
    config(dir.path(), &["set", "listen.port", "1", "2"]).assert().code(2);
    config(dir.path(), &["set", "listen.port", "many"]).assert().code(1).stderr_eq(str![[r#"
error: [..]server.yaml:2:9: listen.port is "many", but expected a number from 0 to 65535

"#]]);
    assert!(!dir.path().join("mlxr/server.yaml").exists());
    config(dir.path(), &["get", "port"]).assert().code(1);
    mlxr(["serve", "--port", "many"]).assert().code(2).stderr_eq(str![[r#"
error: invalid value 'many' for '--port <PORT>': expected a number from 0 to 65535

For more information, try '--help'.

"#]]);
}

#[test]
fn every_setting_is_in_the_documentation() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/config.md");
    let documented = std::fs::read_to_string(path).unwrap();
    let (_, documented) = documented.split_once("## All settings").unwrap();
    let rows: Vec<&str> = documented.lines().filter(|line| line.starts_with("| `")).collect();
    let expected: Vec<String> = mlxr_server::config::KEYS.iter().map(row).collect();
    assert_eq!(rows, expected, "rows of docs/config.md are\n{}", expected.join("\n"));
}

fn row(key: &mlxr_server::config::Key) -> String {
    let flags: Vec<String> = key.flags.iter().map(|flag| format!("`--{}`", flag.long)).collect();
    let default = if key.default.is_empty() { "none" } else { key.default };
    format!("| `{}` | {default} | {} | {} |", key.name, flags.join(", "), key.about)
}
