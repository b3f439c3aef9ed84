//! `mlxr bench --json`: the shape of the report and numbers that belong together.

use crate::command::{json, mlxr};

#[test]
fn the_report_has_every_number_and_they_agree() {
    let args = ["bench", "--json", "-p", "16", "-n", "4", "-b", "1,2", "-r", "2"];
    let report = json(mlxr(args));
    assert!(report["backend"].as_str().unwrap().starts_with("cpu, "));
    assert!(report["weights_bytes"].as_u64().unwrap() > 20_000_000);
    assert!(report["read_gb_s"].as_f64().unwrap() > 0.0);
    let results = report["results"].as_array().unwrap();
    let names: Vec<&str> = results.iter().map(|result| result["test"].as_str().unwrap()).collect();
    assert_eq!(names, ["pp16", "tg4", "tg4 x2"]);
    for result in results {
        let speed = |key: &str| result["tok_s"][key].as_f64().unwrap();
        assert!(0.0 < speed("min") && speed("min") <= speed("median") && speed("median") <= speed("max"));
        let share = result["gb_s"].as_f64().unwrap() / report["read_gb_s"].as_f64().unwrap();
        assert!((result["bandwidth_share"].as_f64().unwrap() - share).abs() < 1e-9);
        assert_eq!(result["repeats"], 2);
    }
}

#[test]
fn nothing_to_measure_is_a_usage_error() {
    mlxr(["bench", "-p", "0", "-n", "0"]).assert().code(2);
}
