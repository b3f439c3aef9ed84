//! How text is cut before BPE: tokenizer.json spells the pattern out, GGUF names it (`tokenizer.ggml.pre`).

use serde_json::{Value, json};

/// Case-insensitive English contractions, as the newer patterns start.
macro_rules! contractions {
    () => {
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    };
}

/// Words, then numbers of up to `$digits` digits, punctuation, line ends, spaces.
macro_rules! words {
    ($digits:literal) => {
        concat!(
            contractions!(),
            r"|[^\r\n\p{L}\p{N}]?\p{L}+|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
}

/// Words that respect case, as the o200k family cuts them.
macro_rules! cased {
    ($suffix:expr, $digits:literal) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            $suffix,
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
            $suffix,
            "|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const DEEPSEEK_CJK: &str = "[一-龥぀-ゟ゠-ヿ]+";
const DEEPSEEK_WORDS: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"##,
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// A cut of one name. A tokenizer that ignores merges for whole-word tokens is another name where GGML has one.
struct Cut {
    name: &'static str,
    patterns: &'static [&'static str],
    ignores_merges: Option<bool>,
}

const fn cut(name: &'static str, patterns: &'static [&'static str]) -> Cut {
    Cut { name, patterns, ignores_merges: None }
}

const CUTS: &[Cut] = &[
    cut("gpt-2", &[GPT2]),
    cut("smollm", &[r"\p{N}", GPT2]),
    Cut { name: "llama-bpe", patterns: &[words!(r"\p{N}{1,3}")], ignores_merges: Some(true) },
    Cut { name: "dbrx", patterns: &[words!(r"\p{N}{1,3}")], ignores_merges: Some(false) },
    cut("qwen2", &[words!(r"\p{N}")]),
    cut("gpt-4o", &[cased!(contractions!(), r"\p{N}{1,3}")]),
    cut("gpt-4o", &[cased!(concat!(contractions!(), "?"), r"\p{N}{1,3}")]),
    cut("tekken", &[cased!("", r"\p{N}")]),
    cut("deepseek-v3", &[r"\p{N}{1,3}", DEEPSEEK_CJK, DEEPSEEK_WORDS]),
];

/// The name of the cut a tokenizer.json describes.
pub(crate) fn name_of(tokenizer: &Value) -> Option<&'static str> {
    let mut patterns = Vec::new();
    collect(&tokenizer["pre_tokenizer"], &mut patterns)?;
    let ignores_merges = tokenizer["model"]["ignore_merges"].as_bool().unwrap_or(false);
    CUTS.iter()
        .filter(|cut| cut.ignores_merges.is_none_or(|ignores| ignores == ignores_merges))
        .find(|cut| cut.patterns == patterns)
        .map(|cut| cut.name)
}

/// The patterns a pre-tokenizer applies one after another; `None` when it does anything else.
fn collect<'a>(step: &'a Value, patterns: &mut Vec<&'a str>) -> Option<()> {
    match step["type"].as_str()? {
        "Sequence" => {
            for step in step["pretokenizers"].as_array()? {
                collect(step, patterns)?;
            }
        }
        "Split" => {
            let plain = step["behavior"] == "Isolated" && step["invert"] != true;
            patterns.push(step["pattern"]["Regex"].as_str().filter(|_| plain)?);
        }
        "Digits" => patterns.push(if step["individual_digits"] == true { r"\p{N}" } else { r"\p{N}+" }),
        "ByteLevel" => {
            if step["add_prefix_space"] == true {
                return None;
            }
            if step["use_regex"] != false {
                patterns.push(GPT2);
            }
        }
        _ => return None,
    }
    Some(())
}

/// Other names for the same cuts, found in GGUF files.
const ALIASES: &[(&str, &str)] = &[
    ("default", "gpt-2"),
    ("phi-2", "gpt-2"),
    ("olmo", "gpt-2"),
    ("mpt", "gpt-2"),
    ("jais", "gpt-2"),
    ("trillion", "gpt-2"),
    ("granite-docling", "gpt-2"),
    ("starcoder", "smollm"),
    ("refact", "smollm"),
    ("command-r", "smollm"),
    ("codeshell", "smollm"),
    ("exaone", "smollm"),
    ("minerva-7b", "smollm"),
    ("llama3", "llama-bpe"),
    ("llama-v3", "llama-bpe"),
    ("falcon3", "llama-bpe"),
    ("pixtral", "llama-bpe"),
    ("lfm2", "llama-bpe"),
    ("smaug-bpe", "dbrx"),
    ("stablelm2", "qwen2"),
    ("deepseek-r1-qwen", "qwen2"),
    ("hunyuan", "qwen2"),
    ("megrez", "qwen2"),
    ("llama4", "gpt-4o"),
    ("hunyuan-dense", "deepseek-v3"),
];

/// The `pre_tokenizer` of a tokenizer.json for a GGUF name, and whether whole words skip the merges.
pub(crate) fn describe(name: &str) -> Option<(Value, bool)> {
    let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, name)| name);
    let cut = CUTS.iter().find(|cut| cut.name == name)?;
    let splits = cut.patterns.iter().map(
        |pattern| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}),
    );
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let steps: Vec<Value> = splits.chain([bytes]).collect();
    Some((json!({"type": "Sequence", "pretokenizers": steps}), cut.ignores_merges == Some(true)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_again_from_its_description() {
        for cut in CUTS {
            let (pre_tokenizer, ignore_merges) = describe(cut.name).unwrap();
            let tokenizer =
                json!({"pre_tokenizer": pre_tokenizer, "model": {"ignore_merges": ignore_merges}});
            assert_eq!(name_of(&tokenizer), Some(cut.name));
        }
        for (alias, _) in ALIASES {
            assert!(describe(alias).is_some(), "{alias}");
        }
    }

    #[test]
    fn library_steps_are_patterns_too() {
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true});
        let digits = json!({"type": "Digits", "individual_digits": true});
        let both = json!({"type": "Sequence", "pretokenizers": [digits, bytes]});
        assert_eq!(name_of(&json!({"pre_tokenizer": bytes})), Some("gpt-2"));
        assert_eq!(name_of(&json!({"pre_tokenizer": both})), Some("smollm"));
        assert_eq!(name_of(&json!({"pre_tokenizer": {"type": "Whitespace"}})), None);
        assert_eq!(name_of(&json!({"pre_tokenizer": null})), None);
    }
}
