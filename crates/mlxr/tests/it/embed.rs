//! `mlxr embed` and `mlxr rerank`.

use serde_json::{Value, json};
use snapbox::str;

use crate::command::{json, mlxr, repo};

fn model(name: &str) -> String {
    repo("golden/embeddings").join(name).display().to_string()
}

fn golden(name: &str) -> Value {
    let path = repo("golden/embeddings").join(format!("{name}.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).unwrap()
}

fn assert_close(found: &[f64], expected: &Value) {
    let expected = floats(expected);
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 2e-5), "{found:?}, {expected:?}");
}

#[test]
fn vectors_are_those_of_sentence_transformers_in_every_form_of_output() {
    let (model, golden) = (model("bert"), golden("bert"));
    let texts: Vec<&str> = golden["texts"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    let answer = json(mlxr(["embed", "--json", &model, "--"].iter().chain(&texts)));
    assert_eq!(answer["n_dims"], 32);
    for (i, item) in answer["embeddings"].as_array().unwrap().iter().enumerate() {
        assert_close(&floats(&item["embedding"]), &golden["vectors"][i]);
        assert_eq!(item["n_tokens"], golden["ids"][i].as_array().unwrap().len());
    }
    let piped = mlxr(["embed", &model]).stdin(format!("{}\n\n{}\n", texts[0], texts[1])).assert().success();
    let lines = String::from_utf8(piped.get_output().stdout.clone()).unwrap();
    for (i, line) in lines.lines().enumerate() {
        let values: Vec<f64> = line.split(' ').map(|value| value.parse().unwrap()).collect();
        assert_close(&values, &golden["vectors"][i]);
    }
    assert_eq!(lines.lines().count(), 2);
}

#[test]
fn texts_are_compared_and_prompts_chosen() {
    let same = mlxr(["embed", "--similarity", &model("bert"), "a", "a"]).assert().success();
    same.stdout_eq("1.0000 1.0000\n1.0000 1.0000\n");
    let golden = golden("nomic_bert");
    let text = golden["texts"][1].as_str().unwrap();
    let answer = json(mlxr(["embed", "--json", "--prompt-name", "query", &model("nomic_bert"), text]));
    assert_close(&floats(&answer["embeddings"][0]["embedding"]), &golden["query_vectors"][1]);
    mlxr(["embed", "--prompt-name", "title", &model("nomic_bert"), text]).assert().code(1).stderr_eq(str![[
        r#"
error: the model has no prompt "title"
hint: the model's prompts: document, query

"#
    ]]);
}

#[test]
fn what_a_model_does_not_do_is_said_with_the_next_step() {
    let long = "the cat sat on the mat ".repeat(60);
    mlxr(["embed", &model("bert"), "a", &long]).assert().code(1).stderr_eq(str![[r#"
error: text 2 has [..] tokens, but the model reads 100
hint: --truncate cuts it at its end

"#]]);
    mlxr(["embed", "--truncate", "--json", &model("bert"), &long]).assert().success();
    mlxr(["embed", "--dims", "8", &model("bert"), "a"]).assert().code(1).stderr_eq(str![[r#"
error: 8 dimensions are asked for, but the model's vectors have 32 and nothing says that a part of them means anything; where it does, matryoshka_dimensions in its config.json lists the lengths

"#]]);
    mlxr(["embed", &model("bert_rank"), "a"]).assert().code(1).stderr_eq(str![[r#"
error: the model scores pairs of texts and makes no vectors

"#]]);
    mlxr(["rerank", "--query", "a", &model("bert"), "b"]).assert().code(1).stderr_eq(str![[r#"
error: the model is no cross-encoder: it makes vectors of texts and scores no pairs

"#]]);
    mlxr(["embed", &model("bert")]).assert().code(2).stderr_eq(str![[r#"
error: nothing to embed
hint: give the texts as arguments or pipe them in, one per line: mlxr embed "some text"

"#]]);
    mlxr(["embed", "--ctx", "129", &model("bert"), "a"]).assert().code(1).stderr_eq(str![[r#"
error: cannot load [..]golden/embeddings/bert
  caused by: [..]a context of 129 tokens was asked for, the model can use at most 128
hint: give --ctx at most 128

"#]]);
}

#[test]
fn documents_are_ranked_with_sentence_transformers_scores() {
    let golden = golden("bert_rank");
    let (query, pairs) = (golden["pairs"][0][0].as_str().unwrap(), &golden["pairs"]);
    let documents = [pairs[0][1].as_str().unwrap(), pairs[1][1].as_str().unwrap()];
    let model = model("bert_rank");
    let args = ["rerank", &model, "--query", query];
    let answer = json(mlxr(args.iter().chain(&["--json"]).chain(&documents)));
    let results = answer["results"].as_array().unwrap();
    let scores = floats(&golden["scores"]);
    assert!(results[0]["relevance_score"].as_f64() >= results[1]["relevance_score"].as_f64());
    for result in results {
        let i = result["index"].as_u64().unwrap() as usize;
        assert!((result["relevance_score"].as_f64().unwrap() - scores[i]).abs() < 1e-4);
        assert_eq!(result["document"], json!(documents[i]));
    }
    let best = results[0]["index"].as_u64().unwrap() as usize;
    let lines = mlxr(args.iter().chain(&["--top-n", "1"])).stdin(documents.join("\n")).assert().success();
    let line = String::from_utf8(lines.get_output().stdout.clone()).unwrap();
    let number = (best + 1).to_string();
    assert!(line.contains(&number) && line.trim_end().ends_with(documents[best]), "{line}");
    assert_eq!(line.lines().count(), 1);
}

#[test]
fn an_embedding_model_is_shown_and_generates_nothing() {
    let facts = json(mlxr(["show", "--json", &model("bert")]));
    assert_eq!((&facts["architecture"], &facts["pooling"]), (&json!("bert"), &json!("mean")));
    assert_eq!((&facts["n_ctx_train"], &facts["n_layers"]), (&json!(128), &json!(2)));
    assert_eq!(facts["memory"]["kv_bytes"], 0);
    assert_eq!(json(mlxr(["show", "--json", &model("bert_rank")]))["pooling"], "rank");
    mlxr(["show", &model("modernbert")]).assert().success().stderr_eq("");
    for command in [["run", "hi", "--model"], ["bench", "-t", "1"]] {
        let asked = mlxr(command.iter().copied().chain([model("bert").as_str()]));
        asked.assert().code(1).stderr_eq(str![[r#"
error: [..]golden/embeddings/bert is an embedding model: it generates no text
hint: `mlxr embed` makes vectors of texts, `mlxr rerank` scores documents

"#]]);
    }
}

#[test]
fn the_bundled_model_makes_vectors_too() {
    let answer = json(mlxr(["embed", "--json", "--similarity", "a cat", "a cat"]));
    let similarity = answer["similarity"][0][1].as_f64().unwrap();
    assert!((similarity - 1.0).abs() < 1e-6, "{similarity}");
    assert_eq!(answer["embeddings"][0], answer["embeddings"][1]);
}
