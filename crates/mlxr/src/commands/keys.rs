//! `mlxr keys`: who may use the server.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand, ValueHint};
use mlxr_server::{ClientLimits, Issued, Key, KeyFile, KeyFileError, NewKey, Scope};
use serde_json::{Value, json};

use crate::failure::failure;
use crate::units::{self, span};
use crate::{folders, output};

/// Create, list, revoke and rotate the keys clients show to a server.
///
/// Without keys a server answers everybody on this machine and nobody else. From the first key on, every client that
/// comes over TCP must show one; the Unix socket stays its owner's. A running server notices changes by itself.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mlxr keys create laptop
  mlxr keys create ci --scope inference --scope metrics --expires 30d --requests-per-minute 60
  mlxr keys list
  curl -H \"Authorization: Bearer $KEY\" http://server:11434/v1/models")]
pub struct KeysArgs {
    #[command(subcommand)]
    pub action: Action,
    /// The key file [default: keys.json in the user's configuration folder]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Action {
    Create(CreateArgs),
    /// List the keys, without their secrets
    List,
    /// Take a key away, by its name or id
    Revoke(NameArg),
    /// Give a key a new secret; the old one ends at once
    Rotate(NameArg),
}

/// Make a key and print its secret, which is kept nowhere
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// What to call it: letters, digits, dots, dashes, underscores
    pub name: String,
    /// What it may do: inference, models, metrics or admin, may be given again
    #[arg(long, value_name = "SCOPE", default_value = "inference")]
    pub scope: Vec<Scope>,
    /// When it ends, from now, such as 12h, 30d or 52w [default: never]
    #[arg(long, value_name = "TIME", value_parser = units::parse_span)]
    pub expires: Option<Duration>,
    /// Requests it may send in a minute [default: as the server says]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub requests_per_minute: Option<u32>,
    /// Tokens it may use in a minute, prompts and answers together [default: as the server says]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub tokens_per_minute: Option<u32>,
    /// Requests it may have at a time [default: as the server says]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub concurrent: Option<u32>,
}

#[derive(Debug, Args)]
pub struct NameArg {
    /// The key's name or id
    pub name: String,
}

pub fn run(args: &KeysArgs) -> anyhow::Result<ExitCode> {
    let Some(path) = args.file.clone().or_else(folders::keys) else {
        return Err(failure("there is no folder for keys: HOME is not set", "name a file with --file"));
    };
    let file = KeyFile::new(path);
    match &args.action {
        Action::Create(create) => {
            let issued = file.create(new_key(create))?;
            print_issued(&issued, &file, "created", args.json)?;
        }
        Action::Rotate(NameArg { name }) => {
            let issued = file.rotate(name)?;
            print_issued(&issued, &file, "rotated", args.json)?;
        }
        Action::Revoke(NameArg { name }) => {
            let key = file.revoke(name)?;
            if args.json {
                output::json(&json!({"revoked": key_json(&key, None)}))?;
            } else {
                output::raw(&format!("revoked {} ({})\n", key.name, key.id))?;
            }
        }
        Action::List => list(&file, args.json)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn new_key(args: &CreateArgs) -> NewKey {
    NewKey {
        name: args.name.clone(),
        scopes: args.scope.iter().copied().collect(),
        expires_s: args.expires.map(|span| now_s().saturating_add(span.as_secs())),
        limits: ClientLimits {
            requests_per_minute: args.requests_per_minute,
            tokens_per_minute: args.tokens_per_minute,
            concurrent: args.concurrent,
        },
    }
}

/// The secret alone goes to standard output, so that a script can take it from there.
fn print_issued(issued: &Issued, file: &KeyFile, done: &str, json: bool) -> anyhow::Result<()> {
    let Issued { key, secret } = issued;
    if json {
        let mut value = key_json(key, None);
        value["secret"] = secret.as_str().into();
        return output::json(&value);
    }
    let scopes = scope_names(&key.scopes);
    // Notes for people; a closed stderr is no reason to lose the secret.
    let _ = writeln!(
        anstream::stderr(),
        "{done} {} ({}) for {scopes} in {}; the secret is shown this once:",
        key.name,
        key.id,
        file.path().display()
    );
    output::raw(&format!("{secret}\n"))
}

fn list(file: &KeyFile, json: bool) -> anyhow::Result<()> {
    let keys = match file.read() {
        Err(KeyFileError::Missing { .. }) => Vec::new(),
        keys => keys?,
    };
    let used = file.last_used();
    if json {
        let keys: Vec<Value> = keys.iter().map(|key| key_json(key, used.get(&key.id).copied())).collect();
        return output::json(&json!({"file": file.path(), "keys": keys}));
    }
    if keys.is_empty() {
        return output::raw("no keys\n");
    }
    let now_s = now_s();
    let mut rows =
        vec![["NAME", "ID", "SCOPES", "CREATED", "LAST USED", "EXPIRES", "LIMITS"].map(str::to_owned)];
    rows.extend(keys.iter().map(|key| {
        let expires = match key.expires_s {
            None => "never".to_owned(),
            Some(_) if key.is_expired(now_s) => "expired".to_owned(),
            Some(expires_s) => format!("in {}", span(expires_s - now_s)),
        };
        let ago = |then_s: u64| format!("{} ago", span(now_s.saturating_sub(then_s)));
        [
            key.name.clone(),
            key.id.clone(),
            scope_names(&key.scopes),
            ago(key.created_s),
            used.get(&key.id).map_or_else(|| "-".to_owned(), |used_s| ago(*used_s)),
            expires,
            limit_names(&key.limits),
        ]
    }));
    output::table(&rows)
}

fn scope_names(scopes: &BTreeSet<Scope>) -> String {
    scopes.iter().map(|scope| scope.name()).collect::<Vec<_>>().join(",")
}

fn limit_names(limits: &ClientLimits) -> String {
    let limit = |value: Option<u32>, unit: &str| value.map(|value| format!("{value} {unit}"));
    let all = [
        limit(limits.requests_per_minute, "req/min"),
        limit(limits.tokens_per_minute, "tok/min"),
        limit(limits.concurrent, "at a time"),
    ];
    let all: Vec<String> = all.into_iter().flatten().collect();
    if all.is_empty() { "-".to_owned() } else { all.join(", ") }
}

fn key_json(key: &Key, last_used_s: Option<u64>) -> Value {
    json!({
        "id": key.id,
        "name": key.name,
        "scopes": key.scopes,
        "created_s": key.created_s,
        "expires_s": key.expires_s,
        "last_used_s": last_used_s,
        "limits": key.limits,
    })
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn parse_positive(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "expected a number above 0".to_owned())
}
