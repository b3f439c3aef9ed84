//! Grammars made to cost too much.

use std::time::{Duration, Instant};

use mlxr_text::grammar::{Constraint, Grammar, GrammarFactory};
use serde_json::{Value, json};

use crate::grammar::small;

#[test]
fn hostile_grammars_end_in_an_error_or_a_mask_before_long() {
    let factory = GrammarFactory::for_tokenizer(&small()).unwrap();
    let text = json!({"type": "string"});
    let wide: Value =
        (0..3000).map(|i| (format!("k{i}"), text.clone())).collect::<serde_json::Map<_, _>>().into();
    let grammars = [
        ("gbnf repeats", Grammar::gbnf("root ::= (([a-z]{2000}){2000}){2000}")),
        ("gbnf recursive repeats", Grammar::gbnf("root ::= (root{2000} | \"a\"{2000}){2000}")),
        ("gbnf empty loop", Grammar::gbnf("root ::= (\"\"*)* root | \"\"")),
        ("regex repeats", Grammar::regex("((a{1000}){1000}){1000}")),
        ("regex alternatives", Grammar::regex(&"(a|b?)".repeat(1_300))),
        ("regex length", Grammar::regex(&"(a|b?)".repeat(20_000))),
        ("regex counting", Grammar::regex("(?s:.*)a(?s:.{500})")),
        ("regex nesting", Grammar::regex(&("(".repeat(50_000) + &")".repeat(50_000)))),
        ("lark nesting", Grammar::lark(&format!("start: {}\"a\"{}", "(".repeat(50_000), ")".repeat(50_000)))),
        ("lark loop", Grammar::lark("start: start start | \"a\" | \"\"")),
        (
            "schema items",
            Grammar::json_schema(&json!({"type": "array", "minItems": 1_000_000_000, "items": text})),
        ),
        ("schema length", Grammar::json_schema(&json!({"type": "string", "minLength": 100_000_000}))),
        ("schema width", Grammar::json_schema(&json!({"type": "object", "properties": wide}))),
        ("schema itself", Grammar::json_schema(&json!({"$ref": "#"}))),
        ("schema circle", Grammar::json_schema(&json!({"allOf": [{"$ref": "#"}]}))),
    ];
    let mut last = Instant::now();
    for (name, grammar) in grammars {
        let outcome = match grammar {
            Err(e) => e.to_string(),
            Ok(grammar) => match factory
                .start(&Constraint { grammar: Some(grammar), ..Constraint::default() })
            {
                Err(e) => e.to_string(),
                Ok(mut state) => format!("{:?}", state.mask().map(|mask| mask.map(|mask| mask.ids().len()))),
            },
        };
        let took = last.elapsed();
        last = Instant::now();
        println!("{name}: {:.0} ms, {outcome:.200}", took.as_secs_f64() * 1e3);
        assert!(took < Duration::from_secs(20), "{name} took {took:?}");
    }
}

#[test]
fn a_grammar_without_any_text_is_refused_at_the_start() {
    let factory = GrammarFactory::for_tokenizer(&small()).unwrap();
    let grammar = Grammar::json_schema(&json!({"$ref": "#"})).unwrap();
    let constraint = Constraint { grammar: Some(grammar), ..Constraint::default() };
    assert!(factory.start(&constraint).is_err());
}
