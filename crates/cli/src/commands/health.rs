//! `keydb health`: whether the node or operator beside it is well, as an exit status for containers that have neither shell nor curl.

use std::{
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;

use crate::{
    exit::{Code, Failure},
    output::Stdout,
    settings::{self, HTTP_PORT_SETTING},
};

const EXAMPLES: &str = "\
Exits with 0 when the answer is yes, 1 when it is no, which is said with the reason, and 3 when there is none in time.
It asks 127.0.0.1 at KEYDB_HTTP_PORT (50080), an operator at KEYDB_OPERATOR_PORT (8080).

Examples:
  keydb health                                   whether the node of this container can be sent requests
  keydb health --live
  keydb health --operator
  keydb health --url http://keydb-0:50080/startup";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct HealthArgs {
    /// Whether the process answers at all, be it ready or not
    #[arg(long)]
    pub(crate) live: bool,
    /// Whether the node has started: it is a member and has loaded its keys
    #[arg(long, conflicts_with_all = ["live", "operator"])]
    pub(crate) startup: bool,
    /// Ask an operator rather than a node
    #[arg(long)]
    pub(crate) operator: bool,
    /// Ask this instead; without a path, /ready
    #[arg(long, value_name = "URL", value_parser = url, conflicts_with_all = ["live", "startup", "operator"])]
    pub(crate) url: Option<Url>,
    /// How long the answer may take
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = settings::duration)]
    pub(crate) timeout: Duration,
}

/// More of an answer than this is not read.
const REPLY_BYTES_MAX: usize = 64 << 10;

pub(crate) fn run(args: &HealthArgs) -> Result<ExitCode, Failure> {
    let url = match &args.url {
        Some(url) => url.clone(),
        None => own(args)?,
    };
    let reply = ask(&url, args.timeout).map_err(|error| {
        Failure::new(Code::Unreachable, format!("{url} gives no answer: {error}"))
    })?;
    if reply.status != 200 {
        let body = reply.body.trim();
        return Err(Failure::failed(format!(
            "{url} answers {}: {body}",
            reply.status
        )));
    }
    Stdout::open()?.write(reply.body.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// What the process with the settings of this one is asked.
fn own(args: &HealthArgs) -> Result<Url, Failure> {
    let vars = settings::environment()?;
    let port = if args.operator {
        settings::ClientSettings::of_operator(vars)?.operator_port
    } else {
        settings::node_http_port(vars)?.ok_or_else(|| {
            Failure::usage(format!(
                "{HTTP_PORT_SETTING} is off, so there is nothing to ask"
            ))
        })?
    };
    let path = match (args.live, args.startup) {
        (true, _) => "/live",
        (_, true) => "/startup",
        _ => READY,
    };
    Ok(Url {
        authority: format!("127.0.0.1:{port}"),
        path: path.to_owned(),
    })
}

const READY: &str = "/ready";

/// `http://host:port/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    authority: String,
    path: String,
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

fn url(text: &str) -> Result<Url, String> {
    let right = "give http://host:port/path, such as http://127.0.0.1:50080/ready";
    let rest = text.strip_prefix("http://").ok_or(right)?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    settings::host_and_port(authority).map_err(|problem| format!("it {problem}; {right}"))?;
    if path.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(format!("its path has a space in it; {right}"));
    }
    let path = if path.is_empty() || path == "/" {
        READY
    } else {
        path
    };
    Ok(Url {
        authority: authority.to_owned(),
        path: path.to_owned(),
    })
}

struct Reply {
    status: u16,
    body: String,
}

/// One request, whole within `timeout`. HTTP/1.0: the connection's end is the answer's end.
fn ask(url: &Url, timeout: Duration) -> io::Result<Reply> {
    let deadline = Instant::now() + timeout;
    let left = || {
        let left = deadline.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(io::Error::from(io::ErrorKind::TimedOut)),
            false => Ok(left),
        }
    };
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    let mut connected = None;
    for address in url.authority.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left()?) {
            Ok(stream) => {
                connected = Some(stream);
                break;
            }
            Err(error) => failure = error,
        }
    }
    let mut stream = connected.ok_or(failure)?;
    stream.set_write_timeout(Some(left()?))?;
    let Url { authority, path } = url;
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: {authority}\r\nUser-Agent: keydb-health\r\n\r\n"
    )?;
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    while bytes.len() < REPLY_BYTES_MAX {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // What a socket says whose time is up.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        }
    }
    parse(&String::from_utf8_lossy(&bytes))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "what it says is not HTTP"))
}

/// The status and the body of an HTTP/1 answer.
fn parse(text: &str) -> Option<Reply> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut words = head.lines().next()?.split(' ');
    words
        .next()
        .filter(|version| version.starts_with("HTTP/1."))?;
    let status = words.next()?.parse().ok()?;
    Some(Reply {
        status,
        body: body.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_a_host_and_a_port_and_its_path_is_ready_unless_it_says_otherwise() {
        let shown = |text: &str| url(text).map(|url| url.to_string());
        for (text, meant) in [
            ("http://keydb-0:50080", "http://keydb-0:50080/ready"),
            ("http://keydb-0:50080/", "http://keydb-0:50080/ready"),
            ("http://[::1]:50080/live", "http://[::1]:50080/live"),
        ] {
            assert_eq!(shown(text), Ok(meant.to_owned()));
        }
        for text in [
            "",
            "keydb-0:50080",
            "https://keydb-0:50080/ready",
            "http://keydb-0/ready",
            "http://:50080/ready",
            "http://keydb-0:0/ready",
            "http://keydb-0:50080/a b",
            "http://keydb-0:50080/a\r\nHost:",
        ] {
            assert!(url(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_answer_has_a_status_and_a_body() {
        let reply = parse("HTTP/1.1 503 Service Unavailable\r\na: b\r\n\r\nnot ready\n").unwrap();
        assert_eq!((reply.status, &*reply.body), (503, "not ready\n"));
        for text in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "SSH-2.0 200\r\n\r\n",
            "HTTP/1.1 x\r\n\r\n",
        ] {
            assert!(parse(text).is_none(), "{text:?}");
        }
    }
}
