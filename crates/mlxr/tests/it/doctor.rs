//! `mlxr doctor`.

use std::path::Path;

use serde_json::Value;

use crate::command::{json, mlxr, repo};

fn doctor(home: &Path) -> snapbox::cmd::Command {
    let state = home.join("state");
    mlxr(["doctor", "--json"]).env("HOME", home).env_remove("XDG_RUNTIME_DIR").env("XDG_STATE_HOME", state)
}

fn find<'a>(report: &'a Value, check: &str) -> &'a Value {
    let findings = report["findings"].as_array().unwrap();
    findings
        .iter()
        .find(|finding| finding["check"] == check)
        .unwrap_or_else(|| panic!("no {check}: {report}"))
}

#[test]
fn a_machine_that_works_has_no_problems() {
    let home = tempfile::tempdir().unwrap();
    let model = repo("golden/tiny/llama/hf");
    let report = json(doctor(home.path()).arg(&model));
    assert_eq!(report["ok"], true, "{report}");
    assert_eq!(find(&report, "arithmetic")["level"], "ok");
    assert_eq!(find(&report, "keys")["level"], "ok");
    let found = find(&report, "model");
    assert!(found["message"].as_str().unwrap().contains("can be read and takes"), "{found}");
    for finding in report["findings"].as_array().unwrap() {
        let has_next = finding["next"].is_string();
        assert_eq!(
            has_next,
            finding["level"] != "ok",
            "everything that is not well has a next step: {finding}"
        );
    }
}

#[test]
fn the_kernels_that_models_use_are_told() {
    let home = tempfile::tempdir().unwrap();
    let processor = |kernels: &str| {
        let run = doctor(home.path()).env("MLXR_ENGINE_CPU_KERNELS", kernels);
        let output = run.output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let finding = find(&report, "processor");
        (finding["level"].clone(), finding["message"].as_str().unwrap().to_owned())
    };
    let best = mlxr_kernels::Kernels::best().isa().name();
    let (_, message) = processor("auto");
    assert!(message.contains(&format!("models use {best}")), "{message}");
    if best != "scalar" {
        let (level, message) = processor("Scalar");
        assert_eq!(level, "ok");
        assert!(message.ends_with("engine.cpu_kernels has models use scalar"), "{message}");
    }
    let (level, message) = processor("z80");
    assert_eq!(level, "problem");
    assert!(message.contains("\"z80\"") && message.contains("it has scalar"), "{message}");
}

#[test]
fn a_model_is_planned_for_the_device_it_would_go_to() {
    let home = tempfile::tempdir().unwrap();
    let plan = |args: &[&str]| {
        let run = doctor(home.path()).arg(repo("models/mlxr-27m-q8_0.gguf")).args(args);
        let output = run.env("RUST_BACKTRACE", "0").output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let on_cpu = plan(&[]);
    let message = find(&on_cpu, "model")["message"].as_str().unwrap();
    assert!(message.contains(" on cpu, "), "{message}");
    let none = plan(&["--device", "99"]);
    let finding = find(&none, "device");
    assert!(finding["message"].as_str().unwrap().contains("there is no GPU 99"), "{finding}");
    let split = plan(&["--device", "0", "--gpu-layers", "3"]);
    let has_gpu = split["findings"].as_array().unwrap().iter().all(|finding| finding["check"] != "device");
    assert!(has_gpu || std::env::var_os("MLXR_REQUIRE_GPU").is_none(), "{split}");
    if has_gpu {
        let message = find(&split, "model")["message"].as_str().unwrap();
        assert!(message.contains("(3 layers, ") && message.contains("on the CPU (5 layers, "), "{message}");
    }
}

#[test]
fn what_does_not_work_is_told_with_the_next_step_and_the_exit_code() {
    use std::os::unix::fs::PermissionsExt;

    let home = tempfile::tempdir().unwrap();
    let keys = home.path().join("config/mlxr/keys.json");
    std::fs::create_dir_all(keys.parent().unwrap()).unwrap();
    std::fs::write(&keys, "{}").unwrap();
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o644)).unwrap();
    let broken = home.path().join("broken.gguf");
    std::fs::write(&broken, "no model").unwrap();
    let run = doctor(home.path()).env("XDG_CONFIG_HOME", home.path().join("config")).arg(&broken);
    let output = run.args(["--server", "http://127.0.0.1:1"]).assert().code(1).get_output().stdout.clone();
    let report: Value = serde_json::from_slice(&output).unwrap();
    assert_eq!(report["ok"], false);
    for (check, next) in [("keys", "chmod 600"), ("model", ""), ("server", "mlxr serve")] {
        let finding = find(&report, check);
        assert_eq!(finding["level"], "problem", "{finding}");
        assert!(finding["next"].as_str().unwrap().contains(next), "{finding}");
    }
}

#[test]
fn findings_are_printed_line_by_line() {
    let home = tempfile::tempdir().unwrap();
    let run = mlxr(["doctor"]).env("HOME", home.path()).env_remove("XDG_RUNTIME_DIR");
    // Drivers of graphics cards may have their own say on stderr.
    let output = run.assert().success().get_output().stdout.clone();
    let text = String::from_utf8(output).unwrap();
    assert!(text.lines().any(|line| line.starts_with("ok       arithmetic")), "{text}");
    assert!(text.trim_end().lines().last().unwrap().starts_with("0 problems, "), "{text}");
}

#[test]
fn the_selftest_of_a_gpu_names_it_and_every_check() {
    let run = mlxr(["doctor", "--gpu-selftest", "--device", "0", "--json"]).assert();
    let output = run.get_output();
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("0 found") {
        assert!(std::env::var_os("MLXR_REQUIRE_GPU").is_none(), "{stderr}");
        assert_eq!(output.status.code(), Some(1));
        return eprintln!("skipped: no GPU and no software driver");
    }
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["ok"]), (Some(0), &Value::Bool(true)), "{report}");
    assert!(!report["adapter"]["name"].as_str().unwrap().is_empty());
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.len() >= 20, "{report}");
    for check in checks {
        assert!(check["seconds"].as_f64().unwrap() > 0.0, "{check}");
        if let Some(error) = check["worst_error"].as_f64() {
            assert!(error <= check["tolerance"].as_f64().unwrap(), "{check}");
        }
    }
}

#[test]
fn a_selftest_without_a_gpu_says_what_to_do() {
    let without = |device: &str| {
        let run = mlxr(["doctor", "--gpu-selftest", "--device", device]);
        let run = run.env("VK_DRIVER_FILES", "/nonexistent").env("VK_ICD_FILENAMES", "/nonexistent").assert();
        let output = run.get_output().clone();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, stderr) = without("cpu");
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.ends_with("hint: try --device gpu\n"), "{stderr}");
    if cfg!(target_os = "linux") {
        let (code, stderr) = without("gpu");
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.ends_with("hint: run on the CPU with --device cpu\n"), "{stderr}");
        assert!(without("3").1.ends_with("hint: `mlxr doctor` lists them\n"));
    }
}
