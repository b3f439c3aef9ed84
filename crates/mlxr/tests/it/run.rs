//! `mlxr run` on the bundled model.

use std::path::Path;

use mlxr_kernels::Kernels;
use serde_json::{Value, json};
use snapbox::str;

use crate::command::{json, mlxr, repo};

/// Chats of golden/house.json (transformers, float32) whose best logit leads by more than Q8_0 can move it.
const MIN_MARGIN: f64 = 0.2;

fn golden() -> Vec<Value> {
    let text = std::fs::read_to_string(repo("golden/house.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    golden["main"].as_array().unwrap().clone()
}

/// The chats whose greedy answers are clear: what is asked, and what is answered to it.
fn clear_chats() -> Vec<(String, Value)> {
    let mut clear = Vec::new();
    for case in golden() {
        let (Some(stop), [message]) =
            (case["stop"].as_u64(), &case["messages"].as_array().map_or(&[][..], |m| m))
        else {
            continue;
        };
        if case["kind"] != "chat" || case["min_margin_before_stop"].as_f64().unwrap() < MIN_MARGIN {
            continue;
        }
        // The end-of-generation id is the reason, not a token of the answer.
        let ids = &case["greedy_ids"].as_array().unwrap()[..stop as usize];
        let mut expected = case.clone();
        expected["ids"] = json!(ids);
        clear.push((message["content"].as_str().unwrap().to_owned(), expected));
    }
    assert!(clear.len() >= 6, "only {} cases are clear enough", clear.len());
    clear
}

#[test]
fn greedy_answers_are_the_reference_ones() {
    for (prompt, case) in clear_chats() {
        let answer = json(mlxr(["run", "--greedy", "--json", &prompt]));
        let choice = &answer["choices"][0];
        assert_eq!(choice["ids"], case["ids"], "{prompt}");
        assert_eq!(choice["text"], case["text_out"], "{prompt}");
        assert_eq!(choice["finish"], json!({ "reason": "stop", "eog_id": 2 }));
        assert_eq!(answer["usage"]["n_prompt"], case["prompt_ids"].as_array().unwrap().len());
    }
}

#[test]
fn all_kernels_of_this_cpu_give_the_reference_answers() {
    let chats = clear_chats();
    for (kernels, (prompt, case)) in Kernels::available().iter().zip(chats.iter().cycle()) {
        let name = kernels.isa().name();
        let answer =
            json(mlxr(["run", "--greedy", "--json", "--device", "cpu", "--cpu-kernels", name, prompt]));
        assert_eq!(answer["choices"][0]["ids"], case["ids"], "{name}: {prompt}");
    }
}

#[test]
fn layers_on_a_gpu_give_the_reference_answers_too() {
    for ((prompt, case), gpu_layers) in clear_chats().iter().zip(["1", "3", "5", "7", "all", "auto"]) {
        let args = ["run", "--greedy", "--json", "--device", "0", "--gpu-layers", gpu_layers, prompt];
        let output = mlxr(args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        if stderr.contains("there is no GPU 0") {
            assert!(std::env::var_os("MLXR_REQUIRE_GPU").is_none(), "{stderr}");
            return eprintln!("skipped: no GPU and no software driver");
        }
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["choices"][0]["ids"], case["ids"], "{gpu_layers}: {prompt}");
    }
}

#[test]
fn what_a_killed_process_left_in_the_caches_of_gpus_is_swept() {
    let home = tempfile::tempdir().unwrap();
    let pipelines = home.path().join("mlxr/gpu-pipelines");
    std::fs::create_dir_all(&pipelines).unwrap();
    let files = ["mlxr/.mlxr-old", "mlxr/gpu-pipelines/.mlxr-old", "mlxr/gpu-pipelines/.mlxr-new"];
    for name in files {
        std::fs::write(home.path().join(name), "half of it").unwrap();
    }
    let days_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(2 * 24 * 3600);
    for name in &files[..2] {
        let file = std::fs::File::options().write(true).open(home.path().join(name)).unwrap();
        file.set_modified(days_ago).unwrap();
    }
    let run = mlxr(["run", "--greedy", "--device", "0", "--max-tokens", "1", "hi"]);
    let output = run.env("XDG_CACHE_HOME", home.path()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("there is no GPU 0") {
        assert!(std::env::var_os("MLXR_REQUIRE_GPU").is_none(), "{stderr}");
        return eprintln!("skipped: no GPU and no software driver");
    }
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert_eq!(files.map(|name| home.path().join(name).exists()), [false, false, true]);
}

#[test]
fn layers_of_a_gpu_need_one_and_none_need_none() {
    let on_cpu = ["run", "--greedy", "--device", "cpu", "--gpu-layers", "2", "hi"];
    mlxr(on_cpu).assert().code(2).stderr_eq(str![[r#"
error: --gpu-layers divides a model between a GPU and the CPU, and the device is the CPU
hint: give --device gpu too, or auto or the number of a GPU

"#]]);
    // Where there is no GPU the CPU does not compute in its place what was asked of it.
    if !["dri", "nvidiactl"].iter().any(|name| Path::new("/dev").join(name).exists())
        && cfg!(target_os = "linux")
    {
        let run = mlxr(["run", "--greedy", "--gpu-layers", "2", "hi"]).assert().code(1);
        let stderr = String::from_utf8_lossy(&run.get_output().stderr).into_owned();
        assert!(stderr.contains("no GPU") && stderr.contains("hint: run on the CPU"), "{stderr}");
    }
    let args = ["run", "--greedy", "--device", "gpu", "--gpu-layers", "0", "What is 23 + 45?"];
    mlxr(args).assert().success().stdout_eq("23 + 45 = 68\n").stderr_eq("");
}

#[test]
fn the_answer_is_printed_and_nothing_else() {
    mlxr(["run", "--greedy", "What is 23 + 45?"])
        .assert()
        .success()
        .stdout_eq("23 + 45 = 68\n")
        .stderr_eq("");
}

#[test]
fn a_system_message_is_part_of_the_chat() {
    let args = ["run", "--greedy", "--system", "You are Captain Finn, a friendly pirate.", "Who are you?"];
    mlxr(args).assert().success().stdout_eq("My name is Captain Finn. I am a friendly pirate.\n");
}

#[test]
fn raw_text_is_completed_as_it_is() {
    let args = ["run", "--raw", "--greedy", "-n", "4", "The capital of Spain is"];
    mlxr(args).assert().success().stdout_eq(str![[r#"
 Madrid.

"#]]);
}

#[test]
fn standard_input_is_the_prompt_or_its_end() {
    mlxr(["run", "--greedy"]).stdin("What is 23 + 45?").assert().success().stdout_eq("23 + 45 = 68\n");
    let answer = json(mlxr(["run", "--raw", "--json", "-n", "1", "one"]).stdin("two"));
    let ids = json(mlxr(["tokenize", "--json", "one\n\ntwo"]));
    assert_eq!(answer["usage"]["n_prompt"], ids["count"]);
}

#[test]
fn verbose_tells_speed_on_stderr() {
    mlxr(["run", "--greedy", "--verbose", "What is 23 + 45?"])
        .assert()
        .success()
        .stdout_eq("23 + 45 = 68\n")
        .stderr_eq(str![[r#"
first token [..] | prompt 18 tokens, [..] tok/s | answer 11 tokens, [..] tok/s, [..] GB/s | the model ended | seed [..]

"#]]);
}

#[test]
fn a_stop_string_ends_the_answer_before_it() {
    let args = ["run", "--greedy", "--json", "--stop", " +", "What is 23 + 45?"];
    let choice = &json(mlxr(args))["choices"][0];
    assert_eq!(choice["text"], "23");
    assert_eq!(choice["finish"], json!({ "reason": "stop", "stop": " +" }));
}

#[test]
fn the_length_is_limited() {
    let choice = &json(mlxr(["run", "--greedy", "--json", "-n", "3", "Tell me a story about a dragon."]))["choices"]
        [0];
    assert_eq!(choice["ids"].as_array().unwrap().len(), 3);
    assert_eq!(choice["finish"], json!({ "reason": "length" }));
}

#[test]
fn a_seed_repeats_the_answer() {
    let story = |seed: &str| {
        let args = ["run", "--json", "--seed", seed, "-n", "24", "--temp", "1.5", "--raw", "Once"];
        json(mlxr(args))["choices"][0]["ids"].clone()
    };
    assert_eq!(story("7"), story("7"));
    assert_ne!(story("7"), story("8"));
}

#[test]
fn log_probabilities_come_with_every_token() {
    let args = ["run", "--greedy", "--json", "--logprobs", "2", "--prompt-logprobs", "1", "What is 23 + 45?"];
    let answer = json(mlxr(args));
    let choice = &answer["choices"][0];
    let logprobs = choice["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), choice["ids"].as_array().unwrap().len());
    for token in logprobs {
        let top = token["top"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        assert_eq!(top[0]["id"], token["id"], "greedy takes the likeliest");
        assert!(token["logprob"].as_f64().unwrap() <= 0.0);
        assert!(top[1]["logprob"].as_f64().unwrap() <= top[0]["logprob"].as_f64().unwrap());
    }
    let prompt = answer["prompt"].as_array().unwrap();
    assert_eq!(prompt.len() as u64, answer["usage"]["n_prompt"].as_u64().unwrap());
    assert_eq!(prompt[0]["logprobs"], Value::Null);
    assert!(prompt[1]["logprobs"]["logprob"].as_f64().unwrap() < 0.0);
}

#[test]
fn a_stream_is_one_object_per_line_and_says_the_same_as_the_closing_one() {
    let command = mlxr(["run", "--greedy", "--json", "--stream", "What is 23 + 45?"]);
    let output = command.assert().success().get_output().stdout.clone();
    let lines: Vec<Value> =
        String::from_utf8(output).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (done, events) = lines.split_last().unwrap();
    assert_eq!(done["type"], "done");
    let text: String = events.iter().map(|event| event["text"].as_str().unwrap()).collect();
    assert_eq!(text, "23 + 45 = 68");
    assert_eq!(done["choices"][0]["text"], text);
    assert_eq!(events.last().unwrap()["type"], "end");
}

#[test]
fn several_choices_are_given_at_once() {
    let args =
        ["run", "--json", "--choices", "3", "--best-of", "4", "--seed", "1", "-n", "8", "--raw", "Once"];
    let answer = json(mlxr(args));
    assert_eq!(answer["choices"].as_array().unwrap().len(), 3);
}

#[test]
fn every_kv_type_answers() {
    for kv_type in ["f32", "f16", "bf16", "q8_0"] {
        let args = ["run", "--greedy", "--kv-type", kv_type, "What is the capital of Mongolia?"];
        mlxr(args).assert().success().stdout_eq("The capital of Mongolia is Ulaanbaatar.\n");
    }
}

#[test]
fn words_after_two_dashes_are_prompt() {
    let answer = json(mlxr(["run", "--raw", "--json", "-n", "1", "--", "no/such.gguf"]));
    let ids = json(mlxr(["tokenize", "--json", "--", "no/such.gguf"]));
    assert_eq!(answer["usage"]["n_prompt"], ids["count"]);
}

#[test]
fn an_answer_is_held_to_a_schema_a_pattern_or_a_grammar() {
    let schema = r#"{"type":"object","properties":{"name":{"type":"string","maxLength":20},"age":{"type":"integer"}},
        "required":["name","age"],"additionalProperties":false}"#;
    let prompt = "Extract name and age as JSON: Maria Lopez is 34 years old.";
    let text = |args: &[&str]| {
        let answer = json(mlxr(["run", "--greedy", "--json"].iter().chain(args)));
        answer["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    let person: Value = serde_json::from_str(&text(&["--json-schema", schema, prompt])).unwrap();
    assert_eq!(person, json!({ "name": "Maria Lopez", "age": 34 }));
    assert_eq!(text(&["--regex", "(yes|no)", "Is water wet?"]).matches(['y', 'n']).count(), 1);
    let folder = tempfile::tempdir().unwrap();
    let grammar = folder.path().join("dashes.gbnf");
    std::fs::write(&grammar, "root ::= \"--\" [ab]\n").unwrap();
    let dashes = text(&["--grammar", grammar.to_str().unwrap(), "Hello"]);
    assert!(["--a", "--b"].contains(&dashes.as_str()), "{dashes}");
}

#[test]
fn a_bad_schema_is_refused_before_the_model_is_loaded() {
    let run = mlxr(["run", "--json-schema", r#"{"type": "object", "unheardOf": 1}"#, "hi"]);
    let output = run.assert().code(2).get_output().stderr.clone();
    let message = String::from_utf8(output).unwrap();
    assert!(message.contains("unheardOf") && message.contains("hint:"), "{message}");
    mlxr(["run", "--json-object", "--regex", "a", "hi"]).assert().code(2);
}
