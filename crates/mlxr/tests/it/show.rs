//! `mlxr show`.

use serde_json::json;
use snapbox::str;

use crate::command::{json, mlxr, repo};

#[test]
fn the_bundled_model_is_shown() {
    mlxr(["show"]).assert().success().stderr_eq("").stdout_eq(str![[r#"
model
  model             the bundled model
  name              mlxr 27M chat
  format            GGUF
  architecture      llama
  parameters        27.3 M
  context           2048
  layers            8
  hidden            512
  mlp               1536
  embedding         tied to the output
weights
  Q8_0                27.6 MiB   99.9 %  57 tensors
  F32                 34.0 KiB    0.1 %  17 tensors
  total               27.7 MiB  8.51 bits per weight
attention
  heads             8
  KV heads          4
  head dim          64
tokenizer
  vocabulary        4096
  begin             none
  end               2 "<|im_end|>"
  ends generation   0 "<|endoftext|>", 2 "<|im_end|>"
  chat template     1319 characters (--template prints it)
generation defaults
  eos_token_id      [2,0]
  pad_token_id      3
  temperature       0.7
  top_p             0.9
memory
  weights             27.7 MiB
  KV, F16             16.0 MiB  2048 tokens
  together            43.7 MiB

"#]]);
}

#[test]
fn json_has_the_same_facts() {
    let facts = json(mlxr(["show", "--json", "--ctx", "1024", "--kv-type", "q8_0"]));
    assert_eq!(facts["architecture"], "llama");
    assert_eq!(facts["n_params"], 27_271_680);
    assert_eq!(
        facts["tokenizer"],
        json!({ "n_vocab": 4096, "bos_id": null, "eos_id": 2, "eog_ids": [0, 2] })
    );
    // 8 layers, keys and values, 4 heads of 64 numbers in quant blocks of 34 bytes.
    assert_eq!(facts["memory"]["kv_bytes"], 1024 * 8 * 2 * 4 * 2 * 34);
    let file = std::fs::metadata(repo("models/mlxr-27m-q8_0.gguf")).unwrap().len();
    let weights = facts["memory"]["weights_bytes"].as_u64().unwrap();
    assert!(weights < file && file < weights + (1 << 20), "weights are nearly all of the file");
}

#[test]
fn tensors_and_metadata_are_listed() {
    let tensors = json(mlxr(["show", "--tensors", "--json"]));
    let first = &tensors[0];
    assert_eq!(first["name"], "embed_tokens.weight");
    assert_eq!(first["shape"], json!([4096, 512]));
    assert_eq!(first["format"], "Q8_0");
    let metadata = json(mlxr(["show", "--metadata", "--json"]));
    assert_eq!(metadata["llama.block_count"], 8);
    assert_eq!(metadata["tokenizer.ggml.tokens"][2], "<|im_end|>");
    mlxr(["show", "--tensors"]).assert().success().stdout_eq(str![[r#"
embed_tokens.weight        Q8_0         2.1 MiB  [4096, 512]
layers.0.attn.k.weight     Q8_0         136 KiB  [256, 512]
layers.0.attn.o.weight     Q8_0         272 KiB  [512, 512]
layers.0.attn.q.weight     Q8_0         272 KiB  [512, 512]
layers.0.attn.v.weight     Q8_0         136 KiB  [256, 512]
layers.0.attn_norm.weight  F32          2.0 KiB  [512]
layers.0.mlp.down.weight   Q8_0         816 KiB  [512, 1536]
layers.0.mlp.gate.weight   Q8_0         816 KiB  [1536, 512]
layers.0.mlp.up.weight     Q8_0         816 KiB  [1536, 512]
layers.0.mlp_norm.weight   F32          2.0 KiB  [512]
layers.1.attn.k.weight     Q8_0         136 KiB  [256, 512]
layers.1.attn.o.weight     Q8_0         272 KiB  [512, 512]
layers.1.attn.q.weight     Q8_0         272 KiB  [512, 512]
layers.1.attn.v.weight     Q8_0         136 KiB  [256, 512]
layers.1.attn_norm.weight  F32          2.0 KiB  [512]
layers.1.mlp.down.weight   Q8_0         816 KiB  [512, 1536]
layers.1.mlp.gate.weight   Q8_0         816 KiB  [1536, 512]
layers.1.mlp.up.weight     Q8_0         816 KiB  [1536, 512]
layers.1.mlp_norm.weight   F32          2.0 KiB  [512]
layers.2.attn.k.weight     Q8_0         136 KiB  [256, 512]
layers.2.attn.o.weight     Q8_0         272 KiB  [512, 512]
layers.2.attn.q.weight     Q8_0         272 KiB  [512, 512]
layers.2.attn.v.weight     Q8_0         136 KiB  [256, 512]
layers.2.attn_norm.weight  F32          2.0 KiB  [512]
layers.2.mlp.down.weight   Q8_0         816 KiB  [512, 1536]
layers.2.mlp.gate.weight   Q8_0         816 KiB  [1536, 512]
layers.2.mlp.up.weight     Q8_0         816 KiB  [1536, 512]
layers.2.mlp_norm.weight   F32          2.0 KiB  [512]
layers.3.attn.k.weight     Q8_0         136 KiB  [256, 512]
layers.3.attn.o.weight     Q8_0         272 KiB  [512, 512]
layers.3.attn.q.weight     Q8_0         272 KiB  [512, 512]
layers.3.attn.v.weight     Q8_0         136 KiB  [256, 512]
layers.3.attn_norm.weight  F32          2.0 KiB  [512]
layers.3.mlp.down.weight   Q8_0         816 KiB  [512, 1536]
layers.3.mlp.gate.weight   Q8_0         816 KiB  [1536, 512]
layers.3.mlp.up.weight     Q8_0         816 KiB  [1536, 512]
layers.3.mlp_norm.weight   F32          2.0 KiB  [512]
layers.4.attn.k.weight     Q8_0         136 KiB  [256, 512]
layers.4.attn.o.weight     Q8_0         272 KiB  [512, 512]
layers.4.attn.q.weight     Q8_0         272 KiB  [512, 512]
layers.4.attn.v.weight     Q8_0         136 KiB  [256, 512]
layers.4.attn_norm.weight  F32          2.0 KiB  [512]
layers.4.mlp.down.weight   Q8_0         816 KiB  [512, 1536]
layers.4.mlp.gate.weight   Q8_0         816 KiB  [1536, 512]
layers.4.mlp.up.weight     Q8_0         816 KiB  [1536, 512]
layers.4.mlp_norm.weight   F32          2.0 KiB  [512]
layers.5.attn.k.weight     Q8_0         136 KiB  [256, 512]
layers.5.attn.o.weight     Q8_0         272 KiB  [512, 512]
layers.5.attn.q.weight     Q8_0         272 KiB  [512, 512]
layers.5.attn.v.weight     Q8_0         136 KiB  [256, 512]
layers.5.attn_norm.weight  F32          2.0 KiB  [512]
layers.5.mlp.down.weight   Q8_0         816 KiB  [512, 1536]
layers.5.mlp.gate.weight   Q8_0         816 KiB  [1536, 512]
layers.5.mlp.up.weight     Q8_0         816 KiB  [1536, 512]
layers.5.mlp_norm.weight   F32          2.0 KiB  [512]
layers.6.attn.k.weight     Q8_0         136 KiB  [256, 512]
layers.6.attn.o.weight     Q8_0         272 KiB  [512, 512]
layers.6.attn.q.weight     Q8_0         272 KiB  [512, 512]
layers.6.attn.v.weight     Q8_0         136 KiB  [256, 512]
layers.6.attn_norm.weight  F32          2.0 KiB  [512]
layers.6.mlp.down.weight   Q8_0         816 KiB  [512, 1536]
layers.6.mlp.gate.weight   Q8_0         816 KiB  [1536, 512]
layers.6.mlp.up.weight     Q8_0         816 KiB  [1536, 512]
layers.6.mlp_norm.weight   F32          2.0 KiB  [512]
layers.7.attn.k.weight     Q8_0         136 KiB  [256, 512]
layers.7.attn.o.weight     Q8_0         272 KiB  [512, 512]
layers.7.attn.q.weight     Q8_0         272 KiB  [512, 512]
layers.7.attn.v.weight     Q8_0         136 KiB  [256, 512]
layers.7.attn_norm.weight  F32          2.0 KiB  [512]
layers.7.mlp.down.weight   Q8_0         816 KiB  [512, 1536]
layers.7.mlp.gate.weight   Q8_0         816 KiB  [1536, 512]
layers.7.mlp.up.weight     Q8_0         816 KiB  [1536, 512]
layers.7.mlp_norm.weight   F32          2.0 KiB  [512]
norm.weight                F32          2.0 KiB  [512]

"#]]);
}

#[test]
fn the_template_is_printed_as_it_is() {
    let output = mlxr(["show", "--template"]).assert().success().get_output().stdout.clone();
    assert!(String::from_utf8(output).unwrap().contains("add_generation_prompt"));
}

#[test]
fn a_model_is_the_same_in_every_format() {
    let mut n_families = 0;
    for family in std::fs::read_dir(repo("golden/tiny")).unwrap() {
        let family = family.unwrap().path();
        if !family.join("hf").is_dir() {
            continue;
        }
        n_families += 1;
        let facts = |format: &str| json(mlxr(["show", "--json"]).arg(family.join(format)));
        let hf = facts("hf");
        for format in ["model.gguf", "mlx-4bit"].into_iter().filter(|format| family.join(format).exists()) {
            let other = facts(format);
            for key in ["n_params", "n_layers", "hidden", "n_heads", "n_kv_heads", "head_dim", "n_ctx_train"]
            {
                assert_eq!(hf[key], other[key], "{key} of {} as {format}", family.display());
            }
            assert_eq!(hf["tokenizer"]["n_vocab"], other["tokenizer"]["n_vocab"], "{}", family.display());
        }
    }
    assert!(n_families >= 10, "only {n_families} families found");
}
