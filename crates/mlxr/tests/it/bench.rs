//! `mlxr bench --json`: the shape of the report and numbers that belong together.

use mlxr_kernels::Kernels;

use crate::command::{json, mlxr};

#[test]
fn the_report_has_every_number_and_they_agree() {
    let args = [
        "bench",
        "--json",
        "-p",
        "16",
        "-n",
        "4",
        "-b",
        "1,2",
        "-r",
        "2",
        "--depth",
        "20",
        "--uneven",
        "--batch-rows",
        "7",
    ];
    let report = json(mlxr(args));
    assert!(report["backend"].as_str().unwrap().starts_with("cpu, "));
    assert!(report["weights_bytes"].as_u64().unwrap() > 20_000_000);
    assert!(report["read_gb_s"].as_f64().unwrap() > 0.0);
    let peak = report["peak_gflop_s"]["codes"].as_f64();
    let results = report["results"].as_array().unwrap();
    let names: Vec<&str> = results.iter().map(|result| result["test"].as_str().unwrap()).collect();
    assert_eq!(names, ["pp16", "tg4 @ d20", "tg4 @ d20 x2", "tg4 @ d20 x2 uneven"]);
    for result in results {
        let speed = |key: &str| result["tok_s"][key].as_f64().unwrap();
        assert!(0.0 < speed("min") && speed("min") <= speed("median") && speed("median") <= speed("max"));
        let share = result["gb_s"].as_f64().unwrap() / report["read_gb_s"].as_f64().unwrap();
        assert!((result["bandwidth_share"].as_f64().unwrap() - share).abs() < 1e-9);
        assert!(result["gflop_s"].as_f64().unwrap() > 0.0);
        match peak {
            // Its matrices are all in Q8_0, and nothing multiplies them faster than the loop of multiplications.
            Some(peak) => {
                let share = result["gflop_s"].as_f64().unwrap() / peak;
                assert!(share < 1.0 && (result["peak_share"].as_f64().unwrap() - share).abs() < 1e-9);
            }
            None => assert!(result["peak_share"].is_null()),
        }
        assert_eq!(result["repeats"], 2);
    }
}

#[test]
fn kernels_are_those_asked_for() {
    let bench = |kernels: &str| {
        let args = ["bench", "--json", "-p", "8", "-n", "0", "-r", "1", "--device", "cpu", "-t", "1"];
        mlxr(args).args(["--cpu-kernels", kernels])
    };
    let report = json(bench("scalar"));
    assert_eq!(report["backend"], "cpu, scalar, 1 thread");
    // Plain Rust names no instruction whose peak could be measured.
    assert!(report["peak_gflop_s"]["codes"].is_null());
    let best = Kernels::best().isa().name();
    assert_eq!(json(bench("auto"))["backend"], format!("cpu, {best}, 1 thread"));
    let output = bench("z80").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    let has = format!("this CPU runs no such kernels; it has {}, and auto", Kernels::names());
    assert!(stderr.contains(&has), "{stderr}");
}

#[test]
fn a_profile_needs_a_gpu_and_names_its_kernels() {
    let bench = |device: &str| {
        let args = ["bench", "--json", "--profile", "-p", "8", "-n", "2", "-r", "1", "--device", device];
        mlxr(args).assert().get_output().clone()
    };
    let on_cpu = bench("cpu");
    assert_eq!(on_cpu.status.code(), Some(1));
    let stderr = String::from_utf8(on_cpu.stderr).unwrap();
    assert!(stderr.contains("kernels cannot be timed") && stderr.contains("--device gpu"), "{stderr}");

    let on_gpu = bench("0");
    let stderr = String::from_utf8_lossy(&on_gpu.stderr);
    if stderr.contains("0 found") {
        assert!(std::env::var_os("MLXR_REQUIRE_GPU").is_none(), "{stderr}");
        return eprintln!("skipped: no GPU and no software driver");
    }
    assert_eq!(on_gpu.status.code(), Some(0), "{stderr}");
    let report: serde_json::Value = serde_json::from_slice(&on_gpu.stdout).unwrap();
    for result in report["results"].as_array().unwrap() {
        let kernels = result["kernels"].as_array().unwrap();
        let seconds = |kernel: &serde_json::Value| kernel["seconds"].as_f64().unwrap();
        assert!(kernels.len() > 5 && kernels.iter().map(seconds).sum::<f64>() > 0.0, "{result}");
        assert!(kernels.iter().any(|kernel| kernel["kernel"] == "attention"), "{result}");
    }
}

#[test]
fn a_cpu_is_not_tuned() {
    let stderr = mlxr(["bench", "--tune", "--device", "cpu"]).assert().code(2).get_output().stderr.clone();
    let stderr = String::from_utf8(stderr).unwrap();
    assert!(stderr.contains("only products of a GPU") && stderr.contains("--device gpu"), "{stderr}");
}

#[test]
fn nothing_to_measure_is_a_usage_error() {
    mlxr(["bench", "-p", "0", "-n", "0"]).assert().code(2);
}
