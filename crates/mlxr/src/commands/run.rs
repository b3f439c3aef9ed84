//! `mlxr run`: one prompt, or a chat.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use mlxr_engine::sampler::{Logprobs, TokenLogprob};
use mlxr_engine::{Event, Prompt, Request};
use mlxr_server::{ImageReader, NoImages};
use mlxr_tensor::Pixels;
use mlxr_text::grammar::Grammar;
use mlxr_text::{ChatTemplate, EncodeOptions, Tokenizer};
use serde_json::{Map, Value, json};

use crate::args::RunArgs;
use crate::conversation::Conversation;
use crate::failure::{EXIT_INTERRUPTED, usage};
use crate::generate::{Answer, Choice, Generator, reason_json};
use crate::model_source::{ModelSource, Words};
use crate::repl::{self, Chat, ChatImages};
use crate::sampling::SamplingArgs;
use crate::{interrupt, loaded, output, progress, stdin, structure, text};

pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let words = Words::sort(args.model.model.as_deref(), &args.words, &args.prompt);
    let prompt = whole_prompt(words.text)?;
    if prompt.is_none() && args.raw {
        return Err(usage("--raw needs a text to complete", "give it as an argument or pipe it in"));
    }
    if prompt.is_none() && args.json {
        return Err(usage("--json needs a prompt", "give it as an argument or pipe it in"));
    }
    let language = args.structure.language()?;
    if prompt.is_none() && language.is_some() {
        return Err(usage(
            "a grammar holds one answer, not a chat",
            "give the prompt as an argument or pipe it in",
        ));
    }
    let session = Session::load(args, words.model, prompt.is_none())?;
    interrupt::install(if prompt.is_some() { interrupt::JOB_PATIENCE } else { interrupt::CHAT_PATIENCE })?;
    match prompt {
        Some(prompt) => answer(args, session, prompt, language),
        None => chat(args, session),
    }
}

/// The words and what was piped in, one after the other; `None` leaves the person to type.
fn whole_prompt(words: Option<String>) -> anyhow::Result<Option<String>> {
    let piped = stdin::read_piped()?;
    let is_piped = piped.is_some();
    let piped = piped.filter(|text| !text.trim().is_empty());
    match (words, piped) {
        (Some(words), Some(piped)) => Ok(Some(format!("{words}\n\n{piped}"))),
        (Some(text), None) | (None, Some(text)) => Ok(Some(text)),
        (None, None) if is_piped => {
            Err(usage("no prompt, and standard input is empty", "mlxr run \"Tell me a story.\""))
        }
        (None, None) => Ok(None),
    }
}

/// A loaded model with all that answering needs.
struct Session {
    source: ModelSource,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    /// The model's own template, which shows how it marks its reasoning.
    template_source: Option<String>,
    generation: Map<String, Value>,
    generator: Generator,
    /// How the model's images are prepared; the error of one that reads only text.
    images: Result<ImageReader, NoImages>,
    /// The images of the command line.
    pixels: Vec<Arc<Pixels>>,
}

impl Session {
    fn load(args: &RunArgs, source: ModelSource, is_chat: bool) -> anyhow::Result<Session> {
        let spinner = progress::spinner(format!("loading {source}"));
        let ckpt = source.open()?;
        if args.verbose {
            spinner.suspend(|| ckpt.warnings.iter().for_each(|warning| eprintln!("warning: {warning}")));
        }
        loaded::check_generates(&ckpt)?;
        let device = Generator::open_device(&args.load);
        let tokenizer = text::tokenizer(&ckpt)?;
        // Checked before the weights are touched.
        args.sampling.resolve(&ckpt.generation)?;
        // A model that ships no template and is asked for no chat completes text.
        let has_template = ckpt.chat_template.is_some() || args.template.is_some();
        let wants_chat = is_chat || has_template || args.system.is_some() || !args.images.is_empty();
        let mut images = ImageReader::of(&ckpt, &tokenizer);
        let mut pixels = Vec::new();
        if !args.images.is_empty() {
            let reader = images?;
            pixels =
                args.images.iter().map(|path| open_image(&reader, path)).collect::<anyhow::Result<_>>()?;
            images = Ok(reader);
        }
        let template = match args.raw || !wants_chat {
            true => None,
            false => Some(text::chat_template(&ckpt, &tokenizer, args.template.as_deref())?),
        };
        let generator = Generator::load(device, &ckpt, tokenizer.clone(), &args.load, args.choices.n_seqs())?;
        spinner.finish_and_clear();
        Ok(Session {
            source,
            tokenizer,
            template,
            template_source: ckpt.chat_template,
            generation: ckpt.generation,
            generator,
            images,
            pixels,
        })
    }
}

/// A request for this prompt text; `is_chat` says that a template has put in all special tokens.
pub fn request(
    prompt: String,
    is_chat: bool,
    sampling: &SamplingArgs,
    generation: &Map<String, Value>,
) -> anyhow::Result<Request> {
    let options = EncodeOptions { add_special: !is_chat, parse_special: true };
    let limit = sampling.max_tokens.map(|n| n as usize);
    Ok(Request {
        sampling: sampling.resolve(generation)?,
        max_tokens: limit.or_else(|| mlxr_server::max_tokens(generation)),
        stop: sampling.stop.clone(),
        stop_ids: sampling.stop_id.clone(),
        ..Request::new(Prompt::Text(prompt, options))
    })
}

/// Reads an image.
pub fn open_image(reader: &ImageReader, path: &Path) -> anyhow::Result<Arc<Pixels>> {
    reader.open(path).with_context(|| format!("cannot read the image {}", path.display()))
}

fn answer(
    args: &RunArgs,
    mut session: Session,
    prompt: String,
    language: Option<Grammar>,
) -> anyhow::Result<ExitCode> {
    let placeholder = session.images.as_ref().ok().map(|reader| reader.placeholder.as_str());
    let prompt = match &session.template {
        None => prompt,
        Some(template) => {
            let mut conversation = Conversation::new(args.system.clone());
            conversation.push_user(prompt, args.images.clone());
            conversation.render(template, placeholder)?
        }
    };
    let constrain = |language| {
        structure::constrain(language, &session.tokenizer, session.template_source.as_deref(), &prompt)
    };
    let request = Request {
        images: std::mem::take(&mut session.pixels),
        constraint: language.map(constrain).transpose()?,
        n: args.choices.n(),
        best_of: args.choices.best_of.map(usize::from),
        logprobs: args.logprobs.map(usize::from),
        prompt_logprobs: args.prompt_logprobs.map(usize::from),
        ..request(prompt, session.template.is_some(), &args.sampling, &session.generation)?
    };
    let answer = session.generator.generate(request, |event| match event {
        Event::Token { .. } | Event::ChoiceEnd { .. } if args.stream => {
            event_json(event, &session.tokenizer).map_or(Ok(()), |line| output::json_line(&line))
        }
        Event::Token { text, .. } | Event::ChoiceEnd { text, .. } if !args.json => output::raw(text),
        _ => Ok(()),
    })?;
    finish(args, &session, &answer)
}

fn finish(args: &RunArgs, session: &Session, answer: &Answer) -> anyhow::Result<ExitCode> {
    let speed = session.generator.speed(answer);
    if args.json {
        let result = answer_json(session, answer);
        if args.stream { output::json_line(&result)? } else { output::json(&result)? }
    } else if answer.choices.iter().any(|choice| !choice.text.ends_with('\n')) {
        output::raw("\n")?;
    }
    if args.verbose {
        anstream::eprintln!("{}", speed.describe(answer));
    }
    Ok(if answer.was_cancelled() { ExitCode::from(EXIT_INTERRUPTED) } else { ExitCode::SUCCESS })
}

fn chat(args: &RunArgs, session: Session) -> anyhow::Result<ExitCode> {
    let Session { source, template, generation, generator, images, pixels, .. } = session;
    let template = template.context("a chat is always loaded with a template")?;
    repl::run(Chat {
        source,
        generator,
        template,
        generation,
        images: ChatImages::new(images, args.images.iter().cloned().zip(pixels).collect()),
        conversation: Conversation::new(args.system.clone()),
        sampling: args.sampling.clone(),
        verbose: args.verbose,
    })
}

/// A line of `--stream`; the closing line comes from [`answer_json`].
fn event_json(event: &Event, tokenizer: &Tokenizer) -> Option<Value> {
    match event {
        Event::Token { choice, id, text, logprobs, .. } => {
            let mut line = json!({ "type": "token", "choice": choice, "id": id, "text": text });
            if let Some(logprobs) = logprobs {
                line["logprobs"] = logprobs_json(logprobs, tokenizer);
            }
            Some(line)
        }
        Event::ChoiceEnd { choice, reason, text, .. } => {
            Some(json!({ "type": "end", "choice": choice, "text": text, "finish": reason_json(reason) }))
        }
        _ => None,
    }
}

fn answer_json(session: &Session, answer: &Answer) -> Value {
    let tokenizer = &session.tokenizer;
    let choices: Vec<Value> = answer.choices.iter().map(|choice| choice_json(choice, tokenizer)).collect();
    let mut result = json!({
        "type": "done",
        "model": session.source.to_string(),
        "choices": choices,
        "usage": {
            "n_prompt": answer.usage.n_prompt,
            "n_completion": answer.usage.n_completion,
            "seed": answer.usage.seed,
        },
        "speed": session.generator.speed(answer).to_json(),
    });
    if !answer.prompt.is_empty() {
        let tokens = answer.prompt.iter().map(|token| {
            let logprobs = token.logprobs.as_ref().map(|logprobs| logprobs_json(logprobs, tokenizer));
            json!({ "id": token.id, "text": token_text(token.id, tokenizer), "logprobs": logprobs })
        });
        result["prompt"] = tokens.collect();
    }
    result
}

fn choice_json(choice: &Choice, tokenizer: &Tokenizer) -> Value {
    let mut value = json!({
        "text": choice.text,
        "ids": choice.ids,
        "finish": choice.reason.as_ref().map(reason_json),
    });
    if choice.logprobs.iter().any(Option::is_some) {
        let all = choice.logprobs.iter().flatten();
        value["logprobs"] = all.map(|logprobs| logprobs_json(logprobs, tokenizer)).collect();
    }
    value
}

fn logprobs_json(logprobs: &Logprobs, tokenizer: &Tokenizer) -> Value {
    let one = |token: &TokenLogprob| json!({ "id": token.id, "text": token_text(token.id, tokenizer), "logprob": token.logprob });
    let mut value = one(&logprobs.token);
    value["top"] = logprobs.top.iter().map(one).collect();
    value
}

fn token_text(id: u32, tokenizer: &Tokenizer) -> String {
    String::from_utf8_lossy(tokenizer.token_bytes(id).unwrap_or_default()).into_owned()
}
