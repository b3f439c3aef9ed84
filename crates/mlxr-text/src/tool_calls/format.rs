//! The wire formats, and which one a chat template speaks.

use std::fmt;
use std::str::FromStr;

/// How a model writes tool calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ToolFormat {
    /// `<tool_call>{"name": .., "arguments": {..}}</tool_call>`: Hermes, Qwen, Granite 4, the bundled model.
    Hermes,
    /// `<tool_call><function=f><parameter=k>v</parameter></function></tool_call>`: Qwen3-Coder.
    QwenXml,
    /// `{"name": .., "parameters": {..}}` as the whole answer: Llama 3.
    Llama3Json,
    /// `[f(k=v), ..]` as the whole answer: Llama 3.2 and 4.
    Pythonic,
    /// `[TOOL_CALLS][{"name": .., "arguments": {..}}, ..]`.
    MistralList,
    /// `[TOOL_CALLS]f{..}`.
    MistralName,
    /// `[TOOL_CALLS]f[ARGS]{..}`.
    MistralArgs,
    /// A fenced block `tool_code` with Python calls.
    Gemma3,
    /// `<|tool_call>call:f{k:v}<tool_call|>`.
    Gemma4,
    /// `<tool_call>f<arg_key>k</arg_key><arg_value>v</arg_value></tool_call>`: GLM 4.5 and later.
    Glm,
    KimiK2,
    MiniMaxM2,
    /// Arguments in a fenced block: DeepSeek V3 and R1.
    DeepSeekV3,
    DeepSeekV31,
    /// Channels: gpt-oss.
    Harmony,
    /// `<|tool_call|>[{"name": .., "arguments": {..}}, ..]`: Phi 4 mini, Granite 3.
    Phi4,
    /// `<|tool_call_start|>[f(k=v)]<|tool_call_end|>`.
    Lfm2,
}

/// A name that is no wire format's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no tool format is called {name:?}, there are {}", names())]
pub struct UnknownToolFormat {
    pub name: String,
}

fn names() -> String {
    ToolFormat::ALL.map(|format| format.name()).join(", ")
}

impl ToolFormat {
    pub const ALL: [ToolFormat; 17] = [
        ToolFormat::Hermes,
        ToolFormat::QwenXml,
        ToolFormat::Llama3Json,
        ToolFormat::Pythonic,
        ToolFormat::MistralList,
        ToolFormat::MistralName,
        ToolFormat::MistralArgs,
        ToolFormat::Gemma3,
        ToolFormat::Gemma4,
        ToolFormat::Glm,
        ToolFormat::KimiK2,
        ToolFormat::MiniMaxM2,
        ToolFormat::DeepSeekV3,
        ToolFormat::DeepSeekV31,
        ToolFormat::Harmony,
        ToolFormat::Phi4,
        ToolFormat::Lfm2,
    ];

    /// The name configuration files use.
    pub fn name(self) -> &'static str {
        match self {
            ToolFormat::Hermes => "hermes",
            ToolFormat::QwenXml => "qwen-xml",
            ToolFormat::Llama3Json => "llama3-json",
            ToolFormat::Pythonic => "pythonic",
            ToolFormat::MistralList => "mistral-list",
            ToolFormat::MistralName => "mistral-name",
            ToolFormat::MistralArgs => "mistral-args",
            ToolFormat::Gemma3 => "gemma3",
            ToolFormat::Gemma4 => "gemma4",
            ToolFormat::Glm => "glm",
            ToolFormat::KimiK2 => "kimi-k2",
            ToolFormat::MiniMaxM2 => "minimax-m2",
            ToolFormat::DeepSeekV3 => "deepseek-v3",
            ToolFormat::DeepSeekV31 => "deepseek-v3.1",
            ToolFormat::Harmony => "harmony",
            ToolFormat::Phi4 => "phi4",
            ToolFormat::Lfm2 => "lfm2",
        }
    }

    /// The format a chat template was written for. `None` where it knows no tools.
    pub fn detect(template: &str) -> Option<ToolFormat> {
        let has = |text: &str| template.contains(text);
        Some(if has("<|channel|>") && has("commentary") {
            ToolFormat::Harmony
        } else if has("<|tool_calls_section_begin|>") {
            ToolFormat::KimiK2
        } else if has("<minimax:tool_call>") {
            ToolFormat::MiniMaxM2
        } else if has("<｜tool▁calls▁begin｜>") {
            if has("```json") { ToolFormat::DeepSeekV3 } else { ToolFormat::DeepSeekV31 }
        } else if has("[TOOL_CALLS]") {
            mistral(template)
        } else if has("<|tool_call>") {
            ToolFormat::Gemma4
        } else if has("<|tool_list_start|>") || has("<|tool_call_start|>") {
            ToolFormat::Lfm2
        } else if has("<|tool_call|>") {
            ToolFormat::Phi4
        } else if has("<arg_key>") {
            ToolFormat::Glm
        } else if has("<function=") && has("<parameter=") {
            ToolFormat::QwenXml
        } else if has("<tool_call>") {
            ToolFormat::Hermes
        } else if has("<|python_start|>") {
            ToolFormat::Pythonic
        } else if has("<|python_tag|>") || (has("\"parameters\": ") && has("Environment: ipython")) {
            ToolFormat::Llama3Json
        } else {
            return None;
        })
    }

    /// Texts that begin a call, wherever they occur.
    pub(crate) fn markers(self) -> &'static [&'static str] {
        match self {
            ToolFormat::Hermes | ToolFormat::Glm => &["<tool_call>"],
            ToolFormat::QwenXml => &["<tool_call>", "<function="],
            ToolFormat::Llama3Json => &["<|python_tag|>"],
            ToolFormat::Pythonic => &["<|python_start|>", "<|python_tag|>"],
            ToolFormat::MistralList | ToolFormat::MistralName | ToolFormat::MistralArgs => &["[TOOL_CALLS]"],
            ToolFormat::Gemma3 => &["```tool_code"],
            ToolFormat::Gemma4 => &["<|tool_call>"],
            ToolFormat::KimiK2 => &["<|tool_calls_section_begin|>"],
            ToolFormat::MiniMaxM2 => &["<minimax:tool_call>"],
            ToolFormat::DeepSeekV3 | ToolFormat::DeepSeekV31 => &["<｜tool▁calls▁begin｜>"],
            ToolFormat::Harmony => &[],
            ToolFormat::Phi4 => &["<|tool_call|>"],
            ToolFormat::Lfm2 => &["<|tool_call_start|>"],
        }
    }

    /// Texts of the format that may be control tokens: they must be spelt out for the parser.
    pub fn control_texts(self) -> &'static [&'static str] {
        match self {
            ToolFormat::Hermes => &["<tool_call>", "</tool_call>"],
            ToolFormat::QwenXml => &["<tool_call>", "</tool_call>"],
            ToolFormat::Llama3Json => &["<|python_tag|>"],
            ToolFormat::Pythonic => &["<|python_start|>", "<|python_end|>", "<|python_tag|>"],
            ToolFormat::MistralList | ToolFormat::MistralName | ToolFormat::MistralArgs => {
                &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"]
            }
            ToolFormat::Gemma3 => &[],
            ToolFormat::Gemma4 => &["<|tool_call>", "<tool_call|>", "<|\"|>"],
            ToolFormat::Glm => {
                &["<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"]
            }
            ToolFormat::KimiK2 => &[
                "<|tool_calls_section_begin|>",
                "<|tool_calls_section_end|>",
                "<|tool_call_begin|>",
                "<|tool_call_argument_begin|>",
                "<|tool_call_end|>",
            ],
            ToolFormat::MiniMaxM2 => &["<minimax:tool_call>", "</minimax:tool_call>"],
            ToolFormat::DeepSeekV3 | ToolFormat::DeepSeekV31 => &[
                "<｜tool▁calls▁begin｜>",
                "<｜tool▁calls▁end｜>",
                "<｜tool▁call▁begin｜>",
                "<｜tool▁call▁end｜>",
                "<｜tool▁sep｜>",
            ],
            ToolFormat::Harmony => &[
                "<|start|>",
                "<|end|>",
                "<|message|>",
                "<|channel|>",
                "<|constrain|>",
                "<|call|>",
                "<|return|>",
            ],
            ToolFormat::Phi4 => &["<|tool_call|>", "<|/tool_call|>"],
            ToolFormat::Lfm2 => &["<|tool_call_start|>", "<|tool_call_end|>"],
        }
    }
}

fn mistral(template: &str) -> ToolFormat {
    if template.contains("[ARGS]") {
        ToolFormat::MistralArgs
    } else if template.contains("[TOOL_CALLS][") || template.contains("[TOOL_CALLS] [") {
        ToolFormat::MistralList
    } else {
        ToolFormat::MistralName
    }
}

impl FromStr for ToolFormat {
    type Err = UnknownToolFormat;

    fn from_str(name: &str) -> Result<ToolFormat, UnknownToolFormat> {
        let found = ToolFormat::ALL.into_iter().find(|format| format.name() == name);
        found.ok_or_else(|| UnknownToolFormat { name: name.to_owned() })
    }
}

impl fmt::Display for ToolFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
