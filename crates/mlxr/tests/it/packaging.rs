//! The files under `packaging/` fit the program.

use crate::command::{mlxr, repo};

/// The command a unit starts, as its words.
fn exec_start(unit: &str) -> Vec<String> {
    let text = std::fs::read_to_string(repo(unit)).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    line.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn units_start_the_server_with_options_it_has() {
    for kind in ["user", "system"] {
        let words = exec_start(&format!("packaging/systemd/{kind}/mlxr.service"));
        assert!(words[0].ends_with("/bin/mlxr"), "{words:?}");
        // The arguments are understood when what stops it is what these two say.
        let output = mlxr(&words[1..]).args(["--no-tcp", "--no-socket"]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("nothing to listen on"), "{kind}: {text}");
    }
    let plist = std::fs::read_to_string(repo("packaging/launchd/dev.mlxr.serve.plist")).unwrap();
    assert!(plist.contains("<string>/usr/local/bin/mlxr</string>\n    <string>serve</string>\n  </array>"));
}

#[test]
fn a_unit_waits_longer_than_requests_may_take_to_finish() {
    const GRACE_S: u32 = 30;
    for kind in ["user", "system"] {
        let text = std::fs::read_to_string(repo(&format!("packaging/systemd/{kind}/mlxr.service"))).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap();
        let seconds: u32 = line.strip_suffix('s').unwrap().parse().unwrap();
        assert!(GRACE_S < seconds, "{kind}");
        assert!(text.contains("Type=notify\n"), "{kind}");
    }
}
