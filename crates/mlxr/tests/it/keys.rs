//! `mlxr keys`.

use std::path::Path;

use serde_json::json;
use snapbox::str;

use crate::command::{json, mlxr};

fn keys(file: &Path, args: &[&str]) -> snapbox::cmd::Command {
    mlxr(["keys"]).args(args).arg("--file").arg(file)
}

#[test]
fn a_key_is_made_listed_rotated_and_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys.json");
    keys(&file, &["list"]).assert().success().stdout_eq("no keys\n");
    keys(&file, &["create", "laptop"])
        .assert()
        .success()
        .stdout_eq(str![[r#"
mlxr-[..]

"#]])
        .stderr_eq(str![[r#"
created laptop (key_[..]) for inference in [..]keys.json; the secret is shown this once:

"#]]);
    let arguments = ["create", "ci", "--scope", "models", "--scope", "metrics", "--expires", "30d"];
    let made = json(keys(&file, &arguments).args(["--json", "--concurrent", "2"]));
    assert_eq!(made["scopes"], json!(["models", "metrics"]));
    assert_eq!(made["limits"], json!({"concurrent": 2}));
    let lifetime_s = made["expires_s"].as_u64().unwrap() - made["created_s"].as_u64().unwrap();
    assert_eq!(lifetime_s, 30 * 86_400);
    keys(&file, &["list"]).assert().success().stdout_eq(str![[r#"
NAME    ID                SCOPES          CREATED  LAST USED  EXPIRES  LIMITS
laptop  key_[..]  inference       [..]  -          never    -
ci      key_[..]  models,metrics  [..]  -          in [..] d  2 at a time

"#]]);
    let rotated = json(keys(&file, &["rotate", "ci", "--json"]));
    assert_eq!(rotated["id"], made["id"]);
    assert_ne!(rotated["secret"], made["secret"]);
    keys(&file, &["revoke", "laptop"]).assert().success().stdout_eq(str![[r#"
revoked laptop (key_[..])

"#]]);
    let listed = json(keys(&file, &["list", "--json"]));
    assert_eq!(listed["keys"].as_array().unwrap().len(), 1);
    assert!(listed["keys"][0].get("secret").is_none());
}

#[test]
fn mistakes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys.json");
    keys(&file, &["revoke", "x"]).assert().code(1).stderr_eq(str![[r#"
error: there is no key file [..]keys.json
hint: `mlxr keys create NAME` makes one

"#]]);
    keys(&file, &["create", "x"]).assert().success();
    keys(&file, &["create", "x"]).assert().code(1).stderr_eq(str![[r#"
error: there is a key "x" already
hint: `mlxr keys rotate x` gives it a new secret

"#]]);
    keys(&file, &["rotate", "y"]).assert().code(1).stderr_eq(str![[r#"
error: there is no key "y"; the keys are x

"#]]);
    keys(&file, &["create", "z", "--scope", "root"]).assert().code(2).stdout_eq("");
    mlxr(["keys", "list"]).env_remove("XDG_CONFIG_HOME").assert().code(1).stderr_eq(str![[r#"
error: there is no folder for keys: HOME is not set
hint: name a file with --file

"#]]);
}
