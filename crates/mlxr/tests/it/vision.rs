//! `mlxr run --image`.

use serde_json::{Value, json};
use snapbox::str;

use crate::command::{json, mlxr, repo};

fn golden(path: &str) -> String {
    repo("golden/vision").join(path).display().to_string()
}

fn records(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(golden(&format!("{name}.json"))).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    golden["prompts"].as_array().unwrap().clone()
}

#[test]
fn answers_to_images_are_those_of_transformers() {
    for name in ["llava", "llava_qwen2"] {
        for record in records(name) {
            let expected: Vec<u64> =
                record["greedy_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
            let (model, n) = (golden(name), expected.len().to_string());
            let mut args = vec!["run", "--greedy", "--json", "--kv-type", "f32", "--max-tokens", &n];
            args.extend(["--model", &model]);
            let images: Vec<String> = record["images"].as_array().unwrap().iter().map(file).collect();
            images.iter().for_each(|image| args.extend(["--image", image]));
            args.push(record["text"].as_str().unwrap());
            let answer = json(mlxr(&args));
            let found: Vec<u64> = answer["choices"][0]["ids"]
                .as_array()
                .unwrap()
                .iter()
                .map(|id| id.as_u64().unwrap())
                .collect();
            assert_eq!(found, expected, "{name}: {}", record["text"]);
            assert_eq!(answer["usage"]["n_prompt"], record["ids"].as_array().unwrap().len());
        }
    }
}

fn file(name: &Value) -> String {
    golden(&format!("images/{}", name.as_str().unwrap()))
}

#[test]
fn show_says_what_images_become() {
    let facts = json(mlxr(["show", "--json", &golden("llava_qwen2")]));
    assert_eq!(facts["architecture"], "qwen2");
    assert_eq!(
        facts["vision"],
        json!({ "model_type": "llava", "image_size": 28, "patch_size": 7, "n_tokens": 17 })
    );
    assert_eq!(json(mlxr(["show", "--json"]))["vision"], Value::Null);
}

#[test]
fn what_cannot_be_shown_to_a_model_is_told_with_the_next_step() {
    let (model, image) = (golden("llava"), golden("images/wide.png"));
    mlxr(["run", "--image", &image, "What is this?"]).assert().code(1).stdout_eq("").stderr_eq(str![[r#"
error: mlxr-27m-q8_0.gguf reads only text: it has no vision tower
hint: images need a model that reads them, such as LLaVA

"#]]);
    mlxr(["run", "-m", &model, "--image", "no/cat.png", "What?"]).assert().code(1).stdout_eq("").stderr_eq(
        str![[r#"
error: cannot read the image no/cat.png
  caused by: cannot read no/cat.png: No such file or directory (os error 2)

"#]],
    );
    let text = repo("README.md").display().to_string();
    mlxr(["run", "-m", &model, "--image", &text, "What?"]).assert().code(1).stdout_eq("").stderr_eq(str![[
        r#"
error: cannot read the image [..]README.md
  caused by: not an image in PNG, JPEG, WebP or GIF
hint: convert it to one of these

"#
    ]]);
    let raw = ["run", "-m", &model, "--raw", "--image", &image, "--image", &image, "<image> What?"];
    mlxr(raw).assert().code(1).stdout_eq("").stderr_eq(str![[r#"
error: 2 images are given, but the prompt has 1 places for images
hint: the chat template writes a place for each image; with --raw the prompt has to, and no other text may

"#]]);
}

#[test]
fn a_model_that_reads_images_is_not_converted_without_them() {
    let to = std::env::temp_dir().join(format!("mlxr-vision-{}", std::process::id())).display().to_string();
    let model = golden("llava");
    let (model, to) = (model.as_str(), to.as_str());
    for args in [
        ["convert", "--to", "gguf", model, to],
        ["convert", "--to", "hf", model, to],
        ["quantize", "--force", model, to, "q8_0"],
    ] {
        let refused = mlxr(args).assert().failure();
        let told = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
        assert!(told.contains("converting a model that reads images is not supported"), "{told}");
        assert!(!std::path::Path::new(to).exists());
    }
}
