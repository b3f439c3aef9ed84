//! gpt-oss: messages in channels.
//!
//! `<|channel|>analysis<|message|>..<|end|><|start|>assistant<|channel|>final<|message|>..<|return|>`; a call is a
//! message with a recipient, `to=functions.f`, in the header before or after the channel. The prompt ends with
//! `<|start|>assistant`.

use super::reader::{Malformed, Parsed, Reader};

const ENDS: [&str; 3] = ["<|end|>", "<|call|>", "<|return|>"];
const HEADER_TEXTS: [&str; 4] = ["<|channel|>", "<|constrain|>", "<|message|>", "<|start|>"];
/// Longest header of a message.
const MAX_HEADER_BYTES: usize = 512;

struct Header {
    channel: String,
    function: Option<String>,
}

/// Reads messages to the end of the answer.
pub(crate) async fn read(r: &Reader) {
    while r.peek().await.is_some() {
        if message(r).await.is_err() {
            r.give_back();
            text(r).await;
        }
        r.done();
    }
}

/// Content up to the next message.
async fn text(r: &Reader) {
    while let Some(c) = r.peek().await {
        if r.sees(&["<|start|>", "<|channel|>"]).await.is_some() {
            return;
        }
        r.skip();
        r.content(c);
        r.done();
    }
}

async fn message(r: &Reader) -> Parsed<()> {
    let header = header(r).await?;
    let Some(function) = header.function else {
        r.done();
        r.set_reasoning(header.channel == "analysis");
        body(r).await;
        r.set_reasoning(false);
        return Ok(());
    };
    r.start_call(&function)?;
    r.skip_blanks().await;
    r.json_object(|c| r.arguments(c.encode_utf8(&mut [0; 4]))).await?;
    r.skip_blanks().await;
    match r.sees(&ENDS).await {
        Some(end) => r.expect(ENDS[end]).await?,
        None if r.peek().await.is_none() => {}
        None => return Err(Malformed),
    }
    r.end_call();
    Ok(())
}

async fn body(r: &Reader) {
    let is_reasoning = r.is_reasoning();
    while let Some(c) = r.peek().await {
        if let Some(end) = r.sees(&ENDS).await {
            r.eat(ENDS[end]).await;
            return;
        }
        if r.sees(&["<|start|>", "<|channel|>"]).await.is_some() {
            return;
        }
        r.skip();
        if is_reasoning {
            r.reasoning(c.encode_utf8(&mut [0; 4]));
        } else {
            r.content(c);
        }
        r.done();
    }
}

/// Everything up to `<|message|>`.
async fn header(r: &Reader) -> Parsed<Header> {
    if r.eat("<|start|>").await {
        r.expect("assistant").await?;
    }
    let (mut words, mut channel) = (String::new(), None);
    loop {
        match r.sees(&HEADER_TEXTS).await {
            Some(0) if channel.is_none() => {
                r.expect(HEADER_TEXTS[0]).await?;
                channel = Some(r.name().await?);
            }
            Some(1) => {
                r.expect(HEADER_TEXTS[1]).await?;
                words.push(' ');
            }
            Some(2) => {
                r.expect(HEADER_TEXTS[2]).await?;
                break;
            }
            Some(_) => return Err(Malformed),
            None => {
                let c = r.peek().await.ok_or(Malformed)?;
                let is_known = "to=".starts_with(c) || channel.is_some() || !words.is_empty() || c == ' ';
                if !is_known || c == '<' || MAX_HEADER_BYTES < words.len() {
                    return Err(Malformed);
                }
                r.skip();
                words.push(c);
            }
        }
    }
    let to = words.split_whitespace().find_map(|word| word.strip_prefix("to="));
    let function = to.map(|to| to.strip_prefix("functions.").unwrap_or(to).to_owned());
    Ok(Header { channel: channel.ok_or(Malformed)?, function })
}
