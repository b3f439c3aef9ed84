//! The bundled model's tokenizer and template against transformers, when the model's folder is at hand.

use mlxr_text::{ChatInput, ChatTemplate, Detokenizer, EncodeOptions, HfFiles, TemplateTokens, Tokenizer};
use serde_json::{Map, Value};

use crate::data;

fn object(bytes: &[u8]) -> Map<String, Value> {
    serde_json::from_slice(bytes).unwrap()
}

fn house() -> Option<(Tokenizer, ChatTemplate)> {
    let dir = data::folder("MLXR_HOUSE_MODEL")?.join("main");
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    let config = object(&read("tokenizer_config.json"));
    let map = object(&read("special_tokens_map.json"));
    let json = read("tokenizer.json");
    let files = HfFiles { tokenizer_json: &json, tokenizer_config: &config, special_tokens_map: &map };
    let tokenizer =
        Tokenizer::from_hf(&files).unwrap().with_generation_config(&object(&read("generation_config.json")));
    let template = String::from_utf8(read("chat_template.jinja")).unwrap();
    let template = ChatTemplate::new(&template, TemplateTokens::of(&tokenizer)).unwrap();
    Some((tokenizer, template))
}

#[test]
fn prompts_of_the_bundled_model_have_the_reference_ids() {
    let Some((tokenizer, template)) = house() else { return };
    assert_eq!((tokenizer.n_vocab(), tokenizer.bos(), tokenizer.eos()), (4096, None, Some(2)));
    assert_eq!(tokenizer.eog_ids(), [0, 2]);
    let golden: Value = data::golden("../house.json");
    let cases = golden["main"].as_array().unwrap();
    for case in cases {
        let text = match case["kind"].as_str() {
            Some("raw") => case["text"].as_str().unwrap().to_owned(),
            _ => {
                let input = ChatInput {
                    messages: case["messages"].as_array().unwrap(),
                    tools: case["tools"].as_array().map(Vec::as_slice),
                    add_generation_prompt: true,
                    extra: Map::new(),
                };
                template.render(&input).unwrap()
            }
        };
        let ids = tokenizer.encode(&text, EncodeOptions { add_special: true, parse_special: true }).unwrap();
        assert_eq!(ids, data::ids(&case["prompt_ids"]), "{text:?}");
        let out = data::ids(&case["greedy_ids"]);
        let stop = case["stop"].as_u64().map_or(out.len(), |n| n as usize);
        assert_eq!(tokenizer.decode(&out[..stop], true), case["text_out"].as_str().unwrap(), "{text:?}");
    }
}

#[test]
fn random_texts_have_the_reference_ids() {
    let Some((tokenizer, _)) = house() else { return };
    let golden = data::golden("house.json");
    let cases = golden["cases"].as_array().unwrap();
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let options = EncodeOptions { add_special: true, parse_special: true };
        let ids = tokenizer.encode(text, options).unwrap();
        assert_eq!(ids, data::ids(&case["ids"]), "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false), case["decoded"].as_str().unwrap(), "{text:?}");
    }
}

#[test]
fn a_user_cannot_spell_a_control_token() {
    let Some((tokenizer, _)) = house() else { return };
    let read = |parse_special| {
        tokenizer.encode("<|im_start|>", EncodeOptions { add_special: false, parse_special }).unwrap()
    };
    assert_eq!(read(true), [1]);
    let literal = read(false);
    assert!(literal.len() > 1 && !literal.contains(&1), "{literal:?}");
    assert_eq!(tokenizer.decode(&literal, true), "<|im_start|>");
    let mut detokenizer = Detokenizer::new(&tokenizer);
    assert_eq!(detokenizer.push(1), "");
}
