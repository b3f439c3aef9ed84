//! Every setting of the server, once: its key in `server.yaml`, its type, its default, its flags, what it means.
//!
//! A line here gives the setting a place in the file, an environment variable (`MLXR_` and the key in capitals), a flag
//! of `mlxr serve`, a line of `mlxr config show` and a field of [`ServerConfig`].

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use mlxr_tensor::DType;

use super::layers::{self, Resolved};
use super::problem::Problem;
use super::value::{Bytes, Device, GpuLayers, LogFormat, NamedPath, Setting, Socket, Span, Text};
use crate::KeepAlive;

/// A flag of `mlxr serve`.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    pub long: &'static str,
    pub short: Option<char>,
    pub sets: Sets,
}

/// What a flag sets.
#[derive(Clone, Copy, Debug)]
pub enum Sets {
    /// The value given with it, called this in the help.
    Given(&'static str),
    /// Always this; the help says so.
    Always { text: &'static str, about: &'static str },
}

const fn takes(long: &'static str, value_name: &'static str) -> Flag {
    Flag { long, short: None, sets: Sets::Given(value_name) }
}

const fn short(short: char, flag: Flag) -> Flag {
    Flag { short: Some(short), ..flag }
}

const fn means(long: &'static str, text: &'static str, about: &'static str) -> Flag {
    Flag { long, short: None, sets: Sets::Always { text, about } }
}

/// A setting.
#[derive(Debug)]
pub struct Key {
    /// `section.name`.
    pub name: &'static str,
    /// What it means, in one or two sentences.
    pub about: &'static str,
    /// As it would stand in a file; empty is an empty list.
    pub default: &'static str,
    pub flags: &'static [Flag],
    pub is_list: bool,
    /// Reads a value and gives it back as JSON.
    pub check: fn(&[Text<'_>]) -> Result<serde_json::Value, String>,
}

impl Key {
    pub fn section(&self) -> &'static str {
        self.name.split_once('.').map_or("", |(section, _)| section)
    }

    /// Its name within the section.
    pub fn short_name(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(_, name)| name)
    }

    /// The environment variable.
    pub fn variable(&self) -> String {
        format!("MLXR_{}", self.name.replace('.', "_").to_uppercase())
    }
}

macro_rules! settings {
    ($($(#[doc = $about:literal])+ $field:ident: $type:ty = $default:literal, $name:literal, [$($flag:expr),*];)+) => {
        /// Everything that can be set, merged from all layers.
        #[derive(Clone, Debug)]
        pub struct ServerConfig {
            $($(#[doc = $about])+ pub $field: $type,)+
        }

        /// All settings, in the order they are shown.
        pub static KEYS: &[Key] = &[$(Key {
            name: $name,
            about: concat!($($about),+).trim_ascii(),
            default: $default,
            flags: &[$($flag),*],
            is_list: <$type as Setting>::IS_LIST,
            check: |texts| <$type as Setting>::read(texts).map(|value| value.to_json()),
        },)+];

        impl ServerConfig {
            pub(super) fn read(settings: &[Resolved]) -> Result<ServerConfig, Problem> {
                Ok(ServerConfig { $($field: layers::value(settings, $name)?,)+ })
            }
        }
    };
}

settings! {
    /// The address to listen on
    host: IpAddr = "127.0.0.1", "listen.host", [takes("host", "ADDRESS")];
    /// The port to listen on; 0 lets the system choose
    port: u16 = "11434", "listen.port", [takes("port", "PORT")];
    /// Whether to listen on a TCP port
    tcp: bool = "true", "listen.tcp", [means("no-tcp", "false", "Listen on no TCP port")];
    /// The Unix socket to listen on, or `off` [default: mlxr/mlxr.sock in XDG_RUNTIME_DIR or in the user's state folder]
    socket: Socket = "auto", "listen.socket",
        [takes("socket", "PATH"), means("no-socket", "off", "Listen on no Unix socket")];
    /// The keys to demand of clients, made by `mlxr keys` [default: keys.json in the user's configuration folder]
    keys: Option<PathBuf> = "auto", "listen.keys", [takes("keys", "FILE")];
    /// Tokens to accept beside the keys, one per line; the file must be its owner's alone
    token_file: Option<PathBuf> = "auto", "listen.token_file", [takes("token-file", "FILE")];
    /// A name accepted as host and as origin of web pages: one this machine is also known by, or one whose pages may use it, may be given again
    allow_hosts: Vec<String> = "", "listen.allow_hosts", [takes("allow-host", "NAME")];

    /// A model to serve, under its file's name or NAME, may be given again [default: the bundled model]
    files: Vec<NamedPath> = "", "models.files", [short('m', takes("model", "[NAME=]PATH"))];
    /// A model to load when the server starts, may be given again
    preload: Vec<String> = "", "models.preload", [takes("preload", "NAME")];
    /// A model that stays in memory once it is loaded, may be given again
    pin: Vec<String> = "", "models.pin", [takes("pin", "NAME")];
    /// How long a model stays loaded after its last request, such as 90s, 5m, 1h or forever
    keep_alive: KeepAlive = "5m", "models.keep_alive", [takes("keep-alive", "TIME")];
    /// Memory of all models together, such as 12G [default: nine tenths of what there is]
    memory: Option<Bytes> = "auto", "models.memory", [takes("memory", "SIZE")];

    /// What computes: cpu, gpu, the number of a GPU, or auto: a GPU, and the CPU for models it cannot take
    device: Device = "auto", "engine.device", [takes("device", "DEVICE")];
    /// Layers of a model on the GPU, the last ones, where the CPU computes the others: a number, all, or as many as there is room for
    gpu_layers: GpuLayers = "auto", "engine.gpu_layers", [takes("gpu-layers", "N")];
    /// CPU threads [default: one per physical core]
    threads: Option<usize> = "auto", "engine.threads", [short('t', takes("threads", "N"))];
    /// CPU kernels: auto for the best this CPU runs, or an instruction set that `mlxr doctor` names, such as avx2
    cpu_kernels: Option<String> = "auto", "engine.cpu_kernels", [takes("cpu-kernels", "KERNELS")];
    /// Tokens a sequence may have, prompt included [default: the model's own, at most 4096]
    n_ctx: Option<u32> = "auto", "engine.n_ctx", [short('c', takes("ctx", "TOKENS"))];
    /// How keys and values are stored: f32, f16, bf16, q8_0, q4_0 or fp8 (E4M3)
    kv_type: DType = "f16", "engine.kv_type", [takes("kv-type", "TYPE")];
    /// Compute prompts and batches in bf16 (CPUs) or f16 (GPUs): faster, but texts depend on their company
    bf16_products: bool = "false", "engine.bf16_products",
        [means("bf16-products", "true", "Compute prompts and batches in bf16 (CPUs) or f16 (GPUs): faster, but texts depend on their company")];
    /// Time each kernel of a GPU for GET /metrics, which makes it slower
    profile: bool = "false", "engine.profile",
        [means("profile", "true", "Time each kernel of a GPU for GET /metrics, which makes it slower")];
    /// Memory of a model's keys and values, such as 512M [default: as many as 8 full sequences]
    kv_size: Option<Bytes> = "auto", "engine.kv_size", [takes("kv-size", "SIZE")];
    /// Host memory of each model, beyond models.memory, for keys and values of sequences that have to make room for others, such as 4G: they come back in place of being computed again [default: none]
    kv_host_size: Option<Bytes> = "auto", "engine.kv_host_size", [takes("kv-host-size", "SIZE")];
    /// Sequences a model runs at a time
    max_seqs: usize = "32", "engine.max_seqs", [takes("max-seqs", "N")];
    /// Requests that may wait for a model; more are refused with 429
    max_waiting: usize = "256", "engine.max_waiting", [takes("max-waiting", "N")];
    /// Tokens a model computes per step: more read prompts faster, fewer keep the time between tokens short
    max_batch_tokens: usize = "512", "engine.max_batch_tokens", [takes("max-batch-tokens", "N")];
    /// The time between two tokens of an answer that 95 of 100 should not exceed, such as 50ms: while it is missed, fewer requests run side by side and prompts are read in smaller parts [default: none]
    target_itl: Option<Span> = "auto", "engine.target_itl", [takes("target-itl", "TIME")];
    /// Whether computed prompts are kept for later requests that begin alike
    prefix_cache: bool = "true", "engine.prefix_cache",
        [means("no-prefix-cache", "false", "Do not keep computed prompts for later requests")];

    /// The largest body of a request
    max_body: Bytes = "32M", "limits.max_body", [takes("max-body", "SIZE")];
    /// Connections at a time; more wait
    max_connections: usize = "4096", "limits.max_connections", [takes("max-connections", "N")];
    /// Requests a client may send in a minute; a key's own limit wins [default: any number]
    requests_per_minute: Option<u32> = "auto", "limits.requests_per_minute", [takes("requests-per-minute", "N")];
    /// Tokens a client may use in a minute, prompts and answers together; a key's own limit wins [default: any number]
    tokens_per_minute: Option<u32> = "auto", "limits.tokens_per_minute", [takes("tokens-per-minute", "N")];
    /// Requests a client may have at a time; a key's own limit wins [default: any number]
    max_concurrent: Option<u32> = "auto", "limits.max_concurrent", [takes("max-concurrent", "N")];
    /// How long a client may leave unread what it is sent
    write_timeout: Duration = "60s", "limits.write_timeout", [takes("write-timeout", "TIME")];
    /// Silence inside a body after which the request is given up
    body_timeout: Duration = "30s", "limits.body_timeout", [takes("body-timeout", "TIME")];
    /// Time for a whole body, however steadily it comes
    body_deadline: Duration = "5m", "limits.body_deadline", [takes("body-deadline", "TIME")];
    /// Time between two requests of a connection, to the end of the second one's headers
    header_timeout: Duration = "10s", "limits.header_timeout", [takes("header-timeout", "TIME")];
    /// How long a stopping server waits for the requests that run
    grace: Duration = "30s", "limits.grace", [takes("grace", "TIME")];
    /// Refuse requests with fields that would have no effect, instead of reporting them
    strict: bool = "false", "limits.strict",
        [means("strict", "true", "Refuse requests with fields that would have no effect, instead of reporting them")];

    /// The folder of models and blobs [default: mlxr in XDG_DATA_HOME or in the user's data folder]
    data_dir: Option<PathBuf> = "auto", "storage.data_dir", [takes("data-dir", "FOLDER")];
    /// The largest blob a client may send
    max_blob: Bytes = "256G", "storage.max_blob", [takes("max-blob", "SIZE")];

    /// Write the log to this file instead of stderr; when it is full or old it becomes FILE.1, and so on
    log_file: Option<PathBuf> = "auto", "log.file", [takes("log-file", "FILE")];
    /// How lines are written: text or json
    log_format: LogFormat = "text", "log.format", [takes("log-format", "FORMAT")];
    /// The size at which a log file ends
    log_max_size: Bytes = "16M", "log.max_size", [takes("log-max-size", "SIZE")];
    /// The age at which a log file ends, such as 12h or 7d
    log_max_age: Span = "7d", "log.max_age", [takes("log-max-age", "TIME")];
    /// Log files that are kept, the one that is written among them
    log_files: usize = "8", "log.files", [takes("log-files", "N")];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_a_value() {
        for key in KEYS {
            let texts = [Text { text: key.default, base: None }];
            let texts: &[Text<'_>] = if key.is_list && key.default.is_empty() { &[] } else { &texts };
            assert!((key.check)(texts).is_ok(), "{}", key.name);
            assert!(!key.about.is_empty() && !key.about.ends_with('.'), "{}", key.name);
        }
    }

    #[test]
    fn names_and_flags_are_said_once() {
        let mut names: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
        let mut flags: Vec<&str> = KEYS.iter().flat_map(|key| key.flags).map(|flag| flag.long).collect();
        for list in [&mut names, &mut flags] {
            let n = list.len();
            list.sort_unstable();
            list.dedup();
            assert_eq!(list.len(), n);
        }
        assert!(KEYS.iter().all(|key| key.name.matches('.').count() == 1));
        assert_eq!(KEYS[0].variable(), "MLXR_LISTEN_HOST");
    }
}
