//! `mlxr perplexity` on a text the bundled model wrote.

use snapbox::str;

use crate::command::{json, mlxr};

fn story() -> String {
    let args = ["run", "--json", "--greedy", "--ignore-eos", "-n", "200", "Tell me a story about a dragon."];
    json(mlxr(args))["choices"][0]["text"].as_str().unwrap().to_owned()
}

#[test]
fn a_model_is_not_surprised_by_its_own_words_and_much_by_noise() {
    let perplexity = |text: &str| {
        let report = json(mlxr(["perplexity", "--json", "--ctx", "64", "-"]).stdin(text));
        assert_eq!(report["n_ctx"], 64);
        // The second half of a window is scored, but for the target that its last token has not.
        let n_windows = report["n_windows"].as_u64().unwrap();
        assert_eq!(report["n_scored"].as_u64().unwrap(), n_windows * 31);
        let (mean, error) =
            (report["perplexity"].as_f64().unwrap(), report["standard_error"].as_f64().unwrap());
        assert!(0.0 < error, "{report}");
        mean
    };
    let own = story();
    let noise: String = own.split(' ').rev().collect::<Vec<_>>().join(" ");
    let (own, noise) = (perplexity(&own), perplexity(&noise));
    assert!(own < 3.0, "own words: {own}");
    assert!(10.0 * own < noise, "the words backwards: {noise}");
}

#[test]
fn a_text_shorter_than_a_window_is_refused() {
    mlxr(["perplexity", "-"]).stdin("too short").assert().code(1).stdout_eq("").stderr_eq(str![[r#"
error: the text has 3 tokens, fewer than a window of 512
hint: give a longer text or a smaller --ctx

"#]]);
}
