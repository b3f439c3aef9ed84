//! The bodies of calls, one function per wire format. Each begins at its marker.

use super::format::ToolFormat;
use super::reader::{Malformed, Parsed, Reader};
use super::{ToolSpec, params, python};

/// Reads a section of calls; `marker` is the one that was seen and not yet taken.
pub(crate) async fn read(r: &Reader, format: ToolFormat, tools: &[ToolSpec], marker: &str) -> Parsed<()> {
    match format {
        ToolFormat::Hermes => {
            r.expect(marker).await?;
            r.skip_blanks().await;
            call_object(r).await?;
            r.close("</tool_call>").await?;
            r.end_call();
            Ok(())
        }
        ToolFormat::QwenXml => params::qwen_xml(r, tools).await,
        ToolFormat::Glm => params::glm(r, tools).await,
        ToolFormat::MiniMaxM2 => params::minimax(r, tools).await,
        ToolFormat::Llama3Json => {
            r.expect(marker).await?;
            llama_json(r).await
        }
        ToolFormat::Pythonic => {
            r.expect(marker).await?;
            python::call_list(r, "<|python_end|>").await
        }
        ToolFormat::Lfm2 => {
            r.expect(marker).await?;
            python::call_list(r, "<|tool_call_end|>").await
        }
        ToolFormat::Gemma3 => {
            r.expect(marker).await?;
            python::fenced_calls(r).await
        }
        ToolFormat::Gemma4 => params::gemma4(r).await,
        ToolFormat::MistralList | ToolFormat::MistralName | ToolFormat::MistralArgs => mistral(r).await,
        ToolFormat::KimiK2 => kimi(r).await,
        ToolFormat::DeepSeekV3 | ToolFormat::DeepSeekV31 => deepseek(r).await,
        ToolFormat::Phi4 => {
            r.expect(marker).await?;
            r.skip_blanks().await;
            call_array(r).await?;
            // Granite 3 has no closing marker.
            if r.sees_after_blanks(&["<|/tool_call|>"], true).await.is_some() {
                r.close("<|/tool_call|>").await?;
            }
            r.done();
            Ok(())
        }
        ToolFormat::Harmony => Err(Malformed),
    }
}

/// `{"name": .., "arguments": {..}}`, keys in any order; the call is left open for its end.
pub(crate) async fn call_object(r: &Reader) -> Parsed<()> {
    r.expect("{").await?;
    let (mut name, mut kept, mut is_started) = (None, None, false);
    r.skip_blanks().await;
    loop {
        let key = r.json_string().await?;
        r.skip_blanks().await;
        r.expect(":").await?;
        r.skip_blanks().await;
        match key.as_str() {
            "name" if name.is_none() => name = Some(r.json_string().await?),
            "arguments" | "parameters" if kept.is_none() && !is_started => match &name {
                Some(name) => {
                    r.start_call(name)?;
                    is_started = true;
                    arguments_value(r, true).await?;
                }
                None => kept = Some(arguments_value(r, false).await?),
            },
            // The model's own id; calls get one from us.
            "id" | "type" => {
                r.json_string().await?;
            }
            _ => return Err(Malformed),
        }
        r.skip_blanks().await;
        match r.peek().await {
            Some(',') => r.skip(),
            Some('}') => break,
            _ => return Err(Malformed),
        }
        r.skip_blanks().await;
    }
    r.skip();
    if !is_started {
        r.start_call(&name.ok_or(Malformed)?)?;
        r.arguments(kept.as_deref().unwrap_or("{}"));
    }
    Ok(())
}

/// The value of `arguments`: an object, or a string that holds one, or null. Put out as it comes if `is_live`.
async fn arguments_value(r: &Reader, is_live: bool) -> Parsed<String> {
    let mut text = String::new();
    match r.peek().await {
        Some('{') if is_live => {
            r.json_object(|c| r.arguments(c.encode_utf8(&mut [0; 4]))).await?;
            return Ok(text);
        }
        Some('{') => r.json_object(|c| text.push(c)).await?,
        Some('"') => {
            text = r.json_string().await?;
            let is_object = matches!(serde_json::from_str(&text), Ok(serde_json::Value::Object(_)));
            if !is_object {
                return Err(Malformed);
            }
        }
        _ => {
            r.expect("null").await?;
            text.push_str("{}");
        }
    }
    if is_live {
        r.arguments(&text);
    }
    Ok(text)
}

/// `[{..}, {..}]`.
async fn call_array(r: &Reader) -> Parsed<()> {
    r.expect("[").await?;
    loop {
        r.skip_blanks().await;
        call_object(r).await?;
        r.skip_blanks().await;
        match r.peek().await {
            Some(',') => {
                r.skip();
                r.end_call();
            }
            Some(']') => break,
            _ => return Err(Malformed),
        }
    }
    r.skip();
    r.end_call();
    Ok(())
}

/// `{..}`, several of them divided by `;`.
pub(crate) async fn llama_json(r: &Reader) -> Parsed<()> {
    loop {
        r.skip_blanks().await;
        call_object(r).await?;
        r.end_call();
        if r.sees_after_blanks(&[";"], true).await.is_none() {
            return Ok(());
        }
        r.skip_blanks().await;
        r.expect(";").await?;
    }
}

async fn mistral(r: &Reader) -> Parsed<()> {
    r.expect("[TOOL_CALLS]").await?;
    r.skip_blanks().await;
    if r.peek().await == Some('[') {
        return call_array(r).await;
    }
    let name = r.name().await?;
    if r.eat("[CALL_ID]").await {
        r.name().await?;
    }
    r.eat("[ARGS]").await;
    r.skip_blanks().await;
    r.start_call(&name)?;
    r.json_object(|c| r.arguments(c.encode_utf8(&mut [0; 4]))).await?;
    r.end_call();
    Ok(())
}

async fn kimi(r: &Reader) -> Parsed<()> {
    r.expect("<|tool_calls_section_begin|>").await?;
    loop {
        r.skip_blanks().await;
        r.expect("<|tool_call_begin|>").await?;
        r.skip_blanks().await;
        let id = r.name().await?;
        r.skip_blanks().await;
        r.expect("<|tool_call_argument_begin|>").await?;
        r.skip_blanks().await;
        // `functions.name:0`
        let name = id.strip_prefix("functions.").unwrap_or(&id);
        let name = name.rsplit_once(':').map_or(name, |(name, _)| name);
        r.start_call(name)?;
        r.json_object(|c| r.arguments(c.encode_utf8(&mut [0; 4]))).await?;
        r.close("<|tool_call_end|>").await?;
        r.end_call();
        if r.sees_after_blanks(&["<|tool_call_begin|>"], true).await.is_none() {
            break;
        }
    }
    r.close("<|tool_calls_section_end|>").await?;
    r.done();
    Ok(())
}

async fn deepseek(r: &Reader) -> Parsed<()> {
    r.expect("<｜tool▁calls▁begin｜>").await?;
    loop {
        r.skip_blanks().await;
        r.expect("<｜tool▁call▁begin｜>").await?;
        r.skip_blanks().await;
        let mut name = r.name().await?;
        r.expect("<｜tool▁sep｜>").await?;
        // V3 says `function` first, then the name and a fenced block; V3.1 the name and the arguments.
        let is_fenced = name == "function" && r.peek().await != Some('{');
        if is_fenced {
            name = r.name().await?;
            r.skip_blanks().await;
            r.expect("```json").await?;
        }
        r.skip_blanks().await;
        r.start_call(&name)?;
        r.json_object(|c| r.arguments(c.encode_utf8(&mut [0; 4]))).await?;
        if is_fenced {
            r.close("```").await?;
        }
        r.close("<｜tool▁call▁end｜>").await?;
        r.end_call();
        if r.sees_after_blanks(&["<｜tool▁call▁begin｜>"], true).await.is_none() {
            break;
        }
    }
    r.close("<｜tool▁calls▁end｜>").await?;
    r.done();
    Ok(())
}
