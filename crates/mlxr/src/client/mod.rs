//! Asking a running server: HTTP over its Unix socket or TCP, in the native dialect.
//!
//! One connection per request. Bounds: [`MAX_ANSWER_BYTES`] of an answer, [`MAX_LINE_BYTES`] of a line of a stream,
//! [`CONNECT_TIMEOUT`] and [`ANSWER_TIMEOUT`].

mod address;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use clap::{Args, ValueHint};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use mlxr_api::native::error::ErrorBody;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Runtime;
use tokio::time::timeout;

pub use self::address::{Address, reachable};
use crate::failure::failure;
use crate::settings;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_ANSWER_BYTES: usize = 64 << 20;
const MAX_LINE_BYTES: usize = 1 << 20;

/// Which server a command speaks to.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Server")]
pub struct ServerArgs {
    /// The server, as http://HOST:PORT or the path of its Unix socket [default: MLXR_SERVER, else the socket or port of
    /// a server on this machine]
    #[arg(long, value_name = "ADDRESS", value_hint = ValueHint::Url)]
    pub server: Option<Address>,
    /// A file with the key to show [default: the key in MLXR_KEY]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub key_file: Option<PathBuf>,
}

/// A server and how it is asked.
pub struct Client {
    runtime: Runtime,
    address: Address,
    /// The `Authorization` header.
    key: Option<HeaderValue>,
}

/// Why a server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{message}{}", hint.as_ref().map(|hint| format!("\nhint: {hint}")).unwrap_or_default())]
pub struct Refusal {
    pub status: StatusCode,
    /// For programs, such as `model_busy`; empty where no such server answered.
    pub code: String,
    pub message: String,
    pub hint: Option<String>,
}

impl Client {
    /// The server that is named, or the one that runs on this machine.
    ///
    /// # Errors
    /// There is none, or the key cannot be read.
    pub fn connect(args: &ServerArgs) -> anyhow::Result<Client> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let named = match &args.server {
            Some(address) => Some(address.clone()),
            None => variable("MLXR_SERVER")
                .map(|text| text.parse().map_err(|reason| anyhow::anyhow!("MLXR_SERVER: {reason}")))
                .transpose()?,
        };
        let address = match named {
            Some(address) => address,
            None => runtime.block_on(running())?,
        };
        Ok(Client { runtime, address, key: key(args)? })
    }

    /// A stranger, who is shown no key.
    ///
    /// # Errors
    /// There is no runtime to be had.
    pub fn anonymous(address: Address) -> anyhow::Result<Client> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Client { runtime, address, key: None })
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    pub fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.runtime.block_on(self.exchange(Method::GET, path, Bytes::new()))
    }

    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        let body = serde_json::to_vec(body)?.into();
        self.runtime.block_on(self.exchange(Method::POST, path, body))
    }

    /// Reads lines until the server ends the stream or `each` fails.
    pub fn lines(&self, path: &str, each: &mut dyn FnMut(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            let mut body = self.send(Method::GET, path, Bytes::new()).await?.into_body();
            let mut pending = Vec::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.with_context(|| self.lost())?;
                let Ok(data) = frame.into_data() else { continue };
                pending.extend_from_slice(&data);
                let mut lines = pending.split_inclusive(|byte| *byte == b'\n');
                let mut n_read = 0;
                for line in lines.by_ref().filter(|line| line.ends_with(b"\n")) {
                    n_read += line.len();
                    each(line.trim_ascii_end())?;
                }
                pending.drain(..n_read);
                anyhow::ensure!(pending.len() <= MAX_LINE_BYTES, "{} sends a line without end", self.address);
            }
            Ok(())
        })
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<T> {
        let answer = async {
            let response = self.send(method, path, body).await?;
            self.read(response.into_body()).await
        };
        let bytes = timeout(ANSWER_TIMEOUT, answer)
            .await
            .with_context(|| format!("{} does not answer", self.address))??;
        serde_json::from_slice(&bytes)
            .with_context(|| format!("{} answers, but not as expected", self.address))
    }

    async fn read(&self, body: Incoming) -> anyhow::Result<Bytes> {
        let whole = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
        Ok(whole.map_err(|error| anyhow::anyhow!(error)).with_context(|| self.lost())?.to_bytes())
    }

    fn lost(&self) -> String {
        format!("the answer of {} broke off", self.address)
    }

    /// The beginning of an answer that is a success.
    async fn send(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Response<Incoming>> {
        let stream = open(&self.address).await.with_context(|| {
            format!(
                "no server answers at {}\nhint: start one with `mlxr serve`, or name another with --server",
                self.address
            )
        })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.address.host())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        if let Some(key) = &self.key {
            request.headers_mut().insert(AUTHORIZATION, key.clone());
        }
        let response = sender.send_request(request).await.with_context(|| self.lost())?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = self.read(response.into_body()).await?;
        Err(self.refusal(status, &body).into())
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> Refusal {
        let Ok(ErrorBody { error }) = serde_json::from_slice(body) else {
            let message = format!("{} answers with {status}, and not as an mlxr server does", self.address);
            return Refusal { status, code: String::new(), message, hint: None };
        };
        let hint = match status {
            StatusCode::UNAUTHORIZED => {
                Some("put a key into MLXR_KEY, or name its file with --key-file".to_owned())
            }
            _ => error.hint,
        };
        Refusal { status, code: error.code, message: error.message, hint }
    }
}

/// The first of the usual addresses where somebody listens.
async fn running() -> anyhow::Result<Address> {
    let usual = Address::usual(&settings::load(None, Vec::new())?.config);
    for address in &usual {
        if open(address).await.is_ok() {
            return Ok(address.clone());
        }
    }
    let tried: Vec<String> = usual.iter().map(Address::to_string).collect();
    let hint = "start one with `mlxr serve`, or name one with --server";
    Err(failure(format_args!("no server runs on this machine: nobody listens at {}", tried.join(", ")), hint))
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn open(address: &Address) -> std::io::Result<Box<dyn Stream>> {
    let connecting = async {
        let stream: Box<dyn Stream> = match address {
            #[cfg(unix)]
            Address::Socket(path) => Box::new(tokio::net::UnixStream::connect(path).await?),
            #[cfg(not(unix))]
            Address::Socket(_) => return Err(std::io::ErrorKind::Unsupported.into()),
            Address::Http { host, port } => {
                Box::new(tokio::net::TcpStream::connect((host.as_str(), *port)).await?)
            }
        };
        Ok(stream)
    };
    timeout(CONNECT_TIMEOUT, connecting).await?
}

fn key(args: &ServerArgs) -> anyhow::Result<Option<HeaderValue>> {
    let key = match &args.key_file {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the key file {}", path.display()))?;
            Some(text.trim().to_owned())
        }
        None => variable("MLXR_KEY"),
    };
    let Some(key) = key else { return Ok(None) };
    let mut value = HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| {
        failure("the key has characters that no key has", "`mlxr keys create NAME` prints one")
    })?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}
