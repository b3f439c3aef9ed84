//! Help, version and completions.

use snapbox::str;

use crate::command::mlxr;

#[test]
fn help_lists_the_commands() {
    mlxr(["--help"])
        .assert()
        .success()
        .stdout_eq(str![[r#"
Run language models on this machine: GGUF files, Hugging Face folders, MLX folders.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C.

Usage: mlxr [OPTIONS] <COMMAND>

Commands:
  run          Generate text: from a prompt, from standard input, or in a chat
  serve        Answer requests over HTTP, in the dialects of OpenAI, Ollama and Anthropic
  config       Show, check and change the settings of `mlxr serve`
  ps           List the models in memory and the requests that run
  stop         Stop the server, or take models out of its memory
  logs         Show the last lines of a server's log, and those that come
  top          Watch a running server: models, requests, tokens per second, latencies
  doctor       Look for what may keep models or the server from working here
  keys         Create, list, revoke and rotate the keys clients show to a server
  list         List the models that `mlxr serve` would serve: the catalogue's and the bundled one
  create       Make a model of the catalogue: from another model or from files, with a system
               prompt, a template, parameters
  cp           Give a model a second name
  rm           Remove models from the catalogue, and their weights when no other model has them
  show         Show what a model is: architecture, quantisation, tokenizer, template, memory
  tokenize     Turn text into token ids, or ids into text
  embed        Make vectors of texts, to compare them by meaning
  rerank       Order documents by how well they answer a query, with a cross-encoder
  bench        Measure prefill and decode speed
  perplexity   Measure how well a model predicts a text
  quantize     Quantise a model into a GGUF file
  convert      Convert a model between GGUF, Hugging Face and MLX
  completions  Print a completion script for a shell
  help         Print this message or the help of the given subcommand(s)

Options:
  -h, --help
          Print help (see a summary with '-h')

  -V, --version
          Print version

Global options:
      --log-level <LEVEL>
          What to log to stderr: error, warn, info, debug, trace, or a filter such as
          `mlxr_engine=debug` [default: warn, for serve info]

      --color <WHEN>
          When to colour the output [default: auto, which respects NO_COLOR]
          
          [possible values: auto, always, never]

"#]])
        .stderr_eq("");
}

#[test]
fn help_of_run_lists_every_sampling_flag() {
    mlxr(["run", "--help"])
        .assert()
        .success()
        .stdout_eq(str![[r#"
Generate text: from a prompt, from standard input, or in a chat.

The first word is taken as the model when it is an existing path or looks like one (contains a
slash, ends in .gguf); everything else is the prompt. Text piped into the command is appended to the
prompt. Without a prompt, on a terminal, a chat opens. The prompt goes through the model's chat
template; a model without one completes the text.

Usage: mlxr run [OPTIONS] [MODEL_OR_PROMPT]... [-- <PROMPT>...]

Arguments:
  [MODEL_OR_PROMPT]...
          The model (a path), then the prompt

  [PROMPT]...
          Words that are prompt whatever they look like

Options:
  -m, --model <PATH>
          A .gguf file, a Hugging Face folder or an MLX folder [default: the bundled model]

      --image <FILE>
          An image for the prompt, or for the first message of a chat; for models that read images,
          several times for several

  -s, --system <TEXT>
          A system message for the chat

      --raw
          Complete the text as it is, without the chat template

      --template <FILE>
          A Jinja chat template to use instead of the model's own

  -v, --verbose
          Say on stderr how fast it was

      --json
          Print one JSON object instead of text

      --stream
          With --json: one object per token as it comes, then the closing one

      --logprobs <N>
          With --json: the N most likely tokens at every place

      --prompt-logprobs <N>
          With --json: the same for the prompt

  -h, --help
          Print help (see a summary with '-h')

Model options:
  -c, --ctx <TOKENS>
          Tokens a sequence may have, prompt included [default: the model's own, at most 4096]

      --device <DEVICE>
          Where to compute: cpu, gpu, auto (a GPU if there is one) or the number of a GPU
          
          [default: auto]

      --gpu-layers <N>
          Layers on the GPU, the last ones, where the CPU computes the others: a number, all, or
          auto for as many as fit
          
          [default: auto]

  -t, --threads <N>
          CPU threads [default: one per physical core]

      --cpu-kernels <KERNELS>
          CPU kernels: auto for the best this CPU runs, or an instruction set that `mlxr doctor`
          names, such as avx2
          
          [default: auto]

      --bf16-products
          Compute prompts and batches in bf16 (CPUs) or f16 (GPUs): faster, but texts depend on
          their company

      --kv-type <TYPE>
          How keys and values are stored
          
          [default: f16]

Sampling options (defaults: the model's generation config, else as given):
  -n, --max-tokens <N>
          Tokens to generate at most [default: up to the context]

      --seed <N>
          Seed of the random numbers [default: a new one every time]

      --greedy
          Always take the most likely token

      --temperature <T>
          How much chance there is; 0 is greedy [default: 0.8]
          
          [alias: --temp]

      --top-k <K>
          Choose among the K most likely tokens; 0 is off [default: 40]

      --top-p <P>
          Choose among the most likely tokens that together have probability P; 1 is off [default:
          0.95]

      --min-p <P>
          Leave out tokens less likely than P times the most likely one; 0 is off [default: 0.05]

      --typical-p <P>
          Locally typical sampling; 1 is off [default: 1]
          
          [alias: --typical]

      --top-n-sigma <N>
          Leave out tokens N standard deviations below the best logit; 0 is off [default: 0]

      --xtc-probability <P>
          Chance of XTC, which leaves out the most likely tokens [default: 0]

      --xtc-threshold <P>
          Tokens at least this likely are the ones XTC leaves out, all but the last [default: 0.1]

      --dynatemp-range <R>
          Range of dynamic temperature around --temperature; 0 is off [default: 0]

      --dynatemp-exponent <E>
          Exponent of dynamic temperature [default: 1]

      --mirostat <VERSION>
          Mirostat version, which then replaces the other truncations; 0 is off [default: 0]

      --mirostat-tau <TAU>
          Mirostat's target surprise [default: 5]

      --mirostat-eta <ETA>
          Mirostat's learning rate [default: 0.1]

      --repeat-penalty <X>
          Divide the logits of tokens that occurred; 1 is off [default: 1]

      --repeat-last-n <N>
          Tokens the penalties look back; 0 is off, -1 all [default: 64]

      --frequency-penalty <X>
          Subtracted from a token's logit for every time it occurred [default: 0]

      --presence-penalty <X>
          Subtracted from a token's logit if it occurred [default: 0]

      --dry-multiplier <X>
          Strength of DRY, which keeps sequences from repeating; 0 is off [default: 0]

      --dry-base <X>
          Base of DRY's penalty [default: 1.75]

      --dry-allowed-length <N>
          Repetitions up to this length are free of DRY's penalty [default: 2]

      --dry-penalty-last-n <N>
          Tokens DRY looks back; 0 is off, -1 all [default: -1]

      --dry-sequence-breaker <TEXT>
          A string repetitions do not reach across, may be given again [default: newline, colon,
          quote, star]

      --logit-bias <ID=BIAS>
          Add BIAS to the logit of a token (`15=-2.5`, `15=-inf`), may be given again

      --samplers <NAMES>
          Samplers in the order they run, separated by commas or semicolons

      --stop <TEXT>
          End before this text, may be given again

      --stop-id <ID>
          End at this token id, may be given again

      --ignore-eos
          Go on where the model would end

      --choices <N>
          With --json: answers to give

      --best-of <N>
          With --json: answers to generate, of which the likeliest --choices are given

Structured output:
      --json-object
          The answer is a JSON object

      --json-schema <SCHEMA>
          The answer is JSON that satisfies a schema, given as it is or as @FILE

      --regex <REGEX>
          The answer matches a regular expression

      --grammar <FILE>
          The answer is in the language of a grammar: a .gbnf file (llama.cpp's syntax) or a .lark
          file

Global options:
      --log-level <LEVEL>
          What to log to stderr: error, warn, info, debug, trace, or a filter such as
          `mlxr_engine=debug` [default: warn, for serve info]

      --color <WHEN>
          When to colour the output [default: auto, which respects NO_COLOR]
          
          [possible values: auto, always, never]

Examples:
  mlxr run "Tell me a story about a dragon."
  mlxr run path/to/model.gguf "Why is the sky blue?"
  git diff | mlxr run model/ "Summarise this change."
  mlxr run path/to/llava --image cat.jpg "What is this?"
  mlxr run --raw --greedy --max-tokens 20 "Once upon a time"

"#]])
        .stderr_eq("");
}

#[test]
fn without_a_command_the_help_is_a_usage_error() {
    mlxr([""; 0]).assert().code(2).stdout_eq("");
}

#[test]
fn the_version_says_what_it_computes_with() {
    mlxr(["--version"]).assert().success().stdout_eq(str![[r#"
mlxr 0.1.0
system: [..]
backend: cpu, [..]
bundled model: mlxr-27m-q8_0.gguf

"#]]);
    mlxr(["-V"]).assert().success().stdout_eq(str![[r#"
mlxr 0.1.0

"#]]);
}

#[test]
fn every_shell_gets_a_completion_script() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = mlxr(["completions", shell]).assert().success().get_output().stdout.clone();
        let script = String::from_utf8(output).unwrap();
        assert!(script.contains("perplexity") && script.contains("top-n-sigma"), "{shell}");
    }
}
