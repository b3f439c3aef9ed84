//! Constrained output: masks in the sampler, on a runner that computes nothing and on the bundled model.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use mlxr_checkpoint::Checkpoint;
use mlxr_engine::{
    Engine, EngineOptions, Event, FinishReason, LoopLimits, Prompt, Request, SamplingParams, StopCause,
};
use mlxr_kernels::{CpuBackend, CpuOptions};
use mlxr_models::{Model, ModelOptions};
use mlxr_text::grammar::{Constraint, ConstraintState, Grammar, GrammarFactory, ToolChoice};
use mlxr_text::reasoning::ReasoningTags;
use mlxr_text::tool_calls::{OutputOptions, OutputParser, ToolFormat, ToolSpec};
use mlxr_text::{ChatInput, ChatTemplate, EncodeOptions, Tokenizer};
use serde_json::{Map, Value, json};

struct House {
    model: Arc<Model>,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    grammars: GrammarFactory,
}

static HOUSE: LazyLock<House> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/mlxr-27m-q8_0.gguf");
    let checkpoint = Checkpoint::open(&path).unwrap();
    let backend = CpuBackend::new(CpuOptions { n_threads: Some(2), isa: None }).unwrap();
    let model = Model::load(&checkpoint, Arc::new(backend), &ModelOptions::default()).unwrap();
    let tokenizer = Tokenizer::from_source(&checkpoint.tokenizer).unwrap();
    let template = ChatTemplate::for_checkpoint(&checkpoint, &tokenizer, None).unwrap();
    let grammars = GrammarFactory::for_tokenizer(&tokenizer).unwrap();
    House { model: Arc::new(model), tokenizer, template, grammars }
});

impl House {
    fn engine(&self) -> Engine {
        let options = EngineOptions { n_ctx: Some(1024), ..EngineOptions::default() };
        Engine::new(self.model.clone(), self.tokenizer.clone(), &options).unwrap()
    }

    fn state(&self, grammar: Grammar) -> Option<ConstraintState> {
        let constraint = Constraint { grammar: Some(grammar), ..Constraint::default() };
        Some(self.grammars.start(&constraint).unwrap())
    }

    fn ask(&self, question: &str, tools: Option<&[Value]>) -> Request {
        let messages = [json!({"role": "user", "content": question})];
        let input = ChatInput { messages: &messages, tools, add_generation_prompt: true, extra: Map::new() };
        let prompt = self.template.render(&input).unwrap();
        let options = EncodeOptions { add_special: true, parse_special: true };
        Request { max_tokens: Some(200), ..Request::new(Prompt::Text(prompt, options)) }
    }
}

/// The text and the end of every choice.
fn run(engine: &mut Engine, request: Request) -> Vec<(String, FinishReason)> {
    let n = request.n;
    let id = engine.submit(request).unwrap();
    let mut texts = vec![String::new(); n];
    let mut reasons = vec![None; n];
    while !engine.is_idle() {
        for event in engine.step() {
            assert_eq!(event.request(), id);
            match event {
                Event::Token { choice, text, .. } => texts[choice as usize] += &text,
                Event::ChoiceEnd { choice, reason, text, .. } => {
                    texts[choice as usize] += &text;
                    reasons[choice as usize] = Some(reason);
                }
                _ => {}
            }
        }
    }
    texts.into_iter().zip(reasons.into_iter().map(Option::unwrap)).collect()
}

/// Schemas with something of everything, all of bounded size.
fn schemas() -> Vec<Value> {
    let text = json!({"type": "string", "maxLength": 20});
    vec![
        json!({
            "type": "object",
            "properties": {"name": text, "age": {"type": "integer", "minimum": 1, "maximum": 99}},
            "required": ["name", "age"],
            "additionalProperties": false,
        }),
        json!({
            "type": "object",
            "properties": {
                "kind": {"enum": ["cat", "dog", 3, null]},
                "scores": {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 10, "multipleOf": 0.5}, "minItems": 1, "maxItems": 3},
                "when": {"type": "string", "format": "date"},
                "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
            },
            "required": ["kind", "scores", "when", "code"],
            "additionalProperties": false,
        }),
        json!({
            "$ref": "#/$defs/node",
            "$defs": {"node": {
                "type": "object",
                "properties": {
                    "label": {"type": "string", "minLength": 1, "maxLength": 6},
                    "child": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/leaf"}]},
                },
                "required": ["label", "child"],
                "additionalProperties": false,
            }, "leaf": {"type": "array", "prefixItems": [{"const": "x"}, {"type": "boolean"}], "items": false, "minItems": 2}},
        }),
    ]
}

#[test]
fn whatever_the_model_says_satisfies_the_schema() {
    let house = &*HOUSE;
    let mut engine = house.engine();
    for schema in schemas() {
        let validator = jsonschema::validator_for(&schema).unwrap();
        let grammar = Grammar::json_schema(&schema).unwrap();
        for (question, temperature) in [("Extract: Anna is 31 years old.", 0.0), ("Tell me a story.", 1.5)] {
            let sampling = SamplingParams { temperature, seed: Some(5), ..SamplingParams::default() };
            // Choices fork after the prompt: each follows the grammar by itself.
            let n = if temperature > 0.0 { 4 } else { 1 };
            let request = Request {
                sampling,
                n,
                constraint: house.state(grammar.clone()),
                ..house.ask(question, None)
            };
            for (text, reason) in run(&mut engine, request) {
                assert_eq!(reason, FinishReason::Stop(StopCause::Grammar), "{text:?}");
                let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text:?}: {e}"));
                assert!(validator.is_valid(&value), "{text:?} under {schema}");
            }
        }
    }
    engine.check_integrity().unwrap();
}

fn tools() -> Vec<Value> {
    let function = |name: &str, description: &str, parameters: Value| json!({"type": "function", "function": {"name": name, "description": description, "parameters": parameters}});
    vec![
        function(
            "get_weather",
            "Get the current weather for a city.",
            json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}),
        ),
        function(
            "add",
            "Add two numbers.",
            json!({"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}, "required": ["a", "b"]}),
        ),
    ]
}

#[test]
fn the_bundled_model_calls_tools() {
    let house = &*HOUSE;
    let mut engine = house.engine();
    let format = ToolFormat::detect(house.template.source()).unwrap();
    assert_eq!(format, ToolFormat::Hermes);
    let tools = tools();
    let specs: Vec<ToolSpec> = tools.iter().map(|tool| ToolSpec::from_openai(tool).unwrap()).collect();
    let named = ToolChoice::Named("add".to_owned());
    let mut call = |question: &str, choice: &ToolChoice| {
        let options =
            OutputOptions { format: Some(format), tools: specs.clone(), ..OutputOptions::default() };
        let grammar = Grammar::tool_calls(format, &specs, choice, false).unwrap();
        let request = Request {
            sampling: SamplingParams::greedy(),
            constraint: grammar.and_then(|grammar| house.state(grammar)),
            shown_ids: options.control_ids(&house.tokenizer),
            ..house.ask(question, Some(&tools))
        };
        let (text, _) = run(&mut engine, request).remove(0);
        OutputParser::parse(options, &text)
    };
    for choice in [ToolChoice::Auto, ToolChoice::Required, ToolChoice::None] {
        let output = call("What is the weather in Paris?", &choice);
        assert_eq!((output.content.as_str(), output.calls.len()), ("", 1), "{choice:?}: {output:?}");
        assert_eq!(output.calls[0].name, "get_weather");
        let arguments: Value = serde_json::from_str(&output.calls[0].arguments).unwrap();
        assert_eq!(arguments, json!({"city": "Paris"}));
    }
    let output = call("Add 17 and 25.", &named);
    let arguments: Value = serde_json::from_str(&output.calls[0].arguments).unwrap();
    assert_eq!(arguments, json!({"a": 17, "b": 25}));
    // Against its will, but in form.
    let output = call("Hello! How are you?", &ToolChoice::Required);
    assert_eq!(output.calls.len(), 1, "{output:?}");
    let output = call("Hello! How are you?", &ToolChoice::Auto);
    assert!(output.calls.is_empty() && !output.content.is_empty(), "{output:?}");
}

#[test]
fn a_reasoning_budget_is_kept_by_a_model_that_never_stops() {
    let house = &*HOUSE;
    let mut engine = house.engine();
    let tags = ReasoningTags { is_open: true, ..ReasoningTags::new("<think>", "</think>") };
    let constraint = Constraint {
        grammar: Some(Grammar::regex("yes|no").unwrap()),
        reasoning: Some(tags.clone()),
        reasoning_budget: Some(12),
    };
    let request = Request {
        sampling: SamplingParams::greedy(),
        constraint: Some(house.grammars.start(&constraint).unwrap()),
        ..house.ask("Tell me a long story.", None)
    };
    let (text, reason) = run(&mut engine, request).remove(0);
    assert_eq!(reason, FinishReason::Stop(StopCause::Grammar));
    let output =
        OutputParser::parse(OutputOptions { reasoning: Some(tags), ..OutputOptions::default() }, &text);
    assert!(["yes", "no"].contains(&output.content.as_str()), "{text:?}");
    assert!(!output.reasoning.is_empty());
}

#[test]
fn an_answer_that_goes_round_in_circles_ends_as_a_loop() {
    let house = &*HOUSE;
    let mut engine = house.engine();
    let request = Request {
        sampling: SamplingParams::greedy(),
        constraint: house.state(Grammar::regex("(ab ?)*c").unwrap()),
        loop_limits: Some(LoopLimits { max_period: 16, min_repeats: 4, min_tokens: 40 }),
        ..house.ask("Say ab.", None)
    };
    // The letter that would end it is forbidden, so the grammar allows nothing but the circle.
    let c = house.tokenizer.encode("c", EncodeOptions::default()).unwrap()[0];
    let sampling = SamplingParams { logit_bias: vec![(c, f32::NEG_INFINITY)], ..request.sampling.clone() };
    let (text, reason) = run(&mut engine, Request { sampling, ..request }).remove(0);
    assert_eq!(reason, FinishReason::Loop, "{text:?}");
}
