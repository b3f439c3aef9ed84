//! Where a server is.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use mlxr_server::config::{ServerConfig, Socket};

use crate::folders;

/// The port a server listens on when nobody says.
pub const PORT: u16 = 11434;

/// The socket of a service of the whole machine.
const SYSTEM_SOCKET: &str = "/run/mlxr/mlxr.sock";

/// The way to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Socket(PathBuf),
    Http { host: String, port: u16 },
}

impl Address {
    /// Where a server of this machine listens by these settings, the likeliest place first.
    pub fn usual(settings: &ServerConfig) -> Vec<Address> {
        let mut usual = Vec::new();
        if cfg!(unix) {
            let socket = match &settings.socket {
                Socket::At(path) => Some(path.clone()),
                Socket::Auto => folders::socket(),
                Socket::Off => None,
            };
            usual.extend(socket.map(Address::Socket));
            usual.push(Address::Socket(SYSTEM_SOCKET.into()));
        }
        if settings.tcp && settings.port != 0 {
            usual.push(Address::Http { host: reachable(settings.host).to_string(), port: settings.port });
        }
        usual
    }

    /// Whether the server's processes are this machine's.
    pub fn is_local(&self) -> bool {
        match self {
            Address::Socket(_) => true,
            Address::Http { host, .. } => {
                host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
            }
        }
    }

    /// The value of the `Host` header.
    pub fn host(&self) -> String {
        match self {
            Address::Socket(_) => "localhost".to_owned(),
            Address::Http { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Address::Http { host, port } => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Socket(path) => write!(f, "{}", path.display()),
            Address::Http { .. } => write!(f, "http://{}", self.host()),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    /// `http://host:port`, `host:port`, `unix:/path`, or a path with a slash in it.
    fn from_str(text: &str) -> Result<Address, String> {
        if text.starts_with("https://") {
            return Err("the server speaks no TLS; name it as http:// where it listens, \
                        or reach it through a tunnel"
                .to_owned());
        }
        let http = text.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
        let socket = text.strip_prefix("unix:").or((http.is_none() && text.contains('/')).then_some(text));
        match (socket, http) {
            (Some(path), _) if !path.is_empty() => Ok(Address::Socket(path.into())),
            (None, http) => parse_http(http.unwrap_or(text)),
            _ => Err(expected()),
        }
    }
}

/// Who listens on every address is reached on loopback.
pub fn reachable(host: IpAddr) -> IpAddr {
    match host {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        host => host,
    }
}

fn expected() -> String {
    "expected http://HOST:PORT or the path of a Unix socket".to_owned()
}

fn parse_http(text: &str) -> Result<Address, String> {
    let (host, rest) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or_else(expected)?,
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let port = match rest.strip_prefix(':') {
        Some(port) => port.parse().map_err(|_| expected())?,
        None if rest.is_empty() => PORT,
        None => return Err(expected()),
    };
    let is_bracketed = text.starts_with('[');
    let is_host =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') || is_bracketed && c == ':';
    if host.is_empty() || !host.chars().all(is_host) {
        return Err(expected());
    }
    Ok(Address::Http { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use mlxr_server::config::{FlagValue, Layers};

    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for (text, shown) in [
            ("http://box:8080/", "http://box:8080"),
            ("http://box", "http://box:11434"),
            ("127.0.0.1:1", "http://127.0.0.1:1"),
            ("box.lan", "http://box.lan:11434"),
            ("http://[::1]:80", "http://[::1]:80"),
            ("unix:a.sock", "a.sock"),
            ("/run/mlxr.sock", "/run/mlxr.sock"),
            ("./mlxr.sock", "./mlxr.sock"),
        ] {
            assert_eq!(text.parse::<Address>().map(|address| address.to_string()), Ok(shown.to_owned()));
        }
        for bad in
            ["", "unix:", "http://", "http://box:x", "http://box:99999", "http://a/b", "[::1", "a b", "::1"]
        {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
        assert!("https://box".parse::<Address>().is_err_and(|reason| reason.contains("TLS")));
    }

    #[test]
    fn the_settings_say_where_a_server_of_this_machine_is() {
        let flags = |pairs: &[(&'static str, &str)]| {
            let flag = |&(key, text): &(&'static str, &str)| FlagValue {
                key,
                long: "x",
                texts: vec![text.to_owned()],
            };
            pairs.iter().map(flag).collect()
        };
        let usual = |pairs: &[(&'static str, &str)]| -> Vec<String> {
            let layers = Layers { file: None, env: &|_| None, variables: Vec::new(), flags: flags(pairs) };
            Address::usual(&layers.load().unwrap().config).iter().map(Address::to_string).collect()
        };
        let found = usual(&[("listen.socket", "/a/b"), ("listen.host", "0.0.0.0"), ("listen.port", "8080")]);
        assert_eq!(found, ["/a/b", "/run/mlxr/mlxr.sock", "http://127.0.0.1:8080"]);
        assert_eq!(usual(&[("listen.socket", "off"), ("listen.tcp", "false")]), ["/run/mlxr/mlxr.sock"]);
    }

    #[test]
    fn processes_of_other_machines_are_not_looked_for() {
        let is_local = |text: &str| text.parse::<Address>().is_ok_and(|address| address.is_local());
        assert!(is_local("http://localhost") && is_local("[::1]:1") && is_local("/x") && !is_local("box"));
    }
}
