//! `keydb health`: whether the node or operator beside it is well, as an exit status for containers that have neither shell nor curl.

use std::{
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use keydb_transport::{ClientTls, Outgoing};

use crate::{
    exit::{Code, Failure},
    output::Stdout,
    settings::{self, HTTP_PORT_SETTING, HealthSettings},
};

const EXAMPLES: &str = "\
Exits with 0 when the answer is yes, 1 when it is no, which is said with the reason, and 3 when there is none in time.
It asks this machine at KEYDB_HTTP_PORT (50080), an operator at KEYDB_OPERATOR_PORT (8080); by TLS where KEYDB_TLS_CERT_FILE is set.

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
    let settings = settings::of_health(settings::environment()?, args.operator)?;
    let url = match &args.url {
        Some(url) => url.clone(),
        None => own(args, &settings)?,
    };
    let tls = match &settings.ca {
        Some(ca) if url.is_https => {
            let tls = Outgoing::plain().with_tls(ClientTls::read(ca.clone(), None)?);
            match &settings.certificate {
                // What is asked by its address shows the certificate that this process would.
                Some(certificate) if args.url.is_none() => {
                    // A client's has no name; then the address has to be in the node's.
                    tls.clone().to_the_one_of(certificate).unwrap_or(tls)
                }
                _ => tls,
            }
        }
        _ => Outgoing::plain(),
    };
    let reply = ask(&url, &tls, args.timeout).map_err(|error| {
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
fn own(args: &HealthArgs, settings: &HealthSettings) -> Result<Url, Failure> {
    let listening = settings.listening.as_ref().ok_or_else(|| {
        Failure::usage(format!(
            "{HTTP_PORT_SETTING} is off, so there is nothing to ask"
        ))
    })?;
    let path = match (args.live, args.startup) {
        (true, _) => "/live",
        (_, true) => "/startup",
        _ => READY,
    };
    Ok(Url {
        is_https: settings.is_tls,
        authority: listening.own_address().to_string(),
        path: path.to_owned(),
    })
}

const READY: &str = "/ready";

/// `http://host:port/path`, or the same with `https`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    is_https: bool,
    authority: String,
    path: String,
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.is_https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.path)
    }
}

fn url(text: &str) -> Result<Url, String> {
    let right = "give http://host:port/path, such as http://127.0.0.1:50080/ready";
    let (scheme, rest) = text.split_once("://").ok_or(right)?;
    let is_https = match scheme {
        "http" => false,
        "https" => true,
        _ => return Err(right.to_owned()),
    };
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
        is_https,
        authority: authority.to_owned(),
        path: path.to_owned(),
    })
}

struct Reply {
    status: u16,
    body: String,
}

/// One request, whole within `timeout`. HTTP/1.0: the connection's end is the answer's end.
fn ask(url: &Url, tls: &Outgoing, timeout: Duration) -> io::Result<Reply> {
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
    let tcp = connected.ok_or(failure)?;
    tcp.set_write_timeout(Some(left()?))?;
    tcp.set_read_timeout(Some(left()?))?;
    let times = tcp.try_clone()?;
    let Url {
        authority, path, ..
    } = url;
    let mut stream: Box<dyn Stream> = if url.is_https {
        let host = settings::host_and_port(authority).map_or("", |(host, _)| host);
        if !tls.has_tls() {
            return Err(io::Error::other(
                "KEYDB_TLS_CA_FILE does not say whom to trust",
            ));
        }
        Box::new(tls.handshake(host, tcp)?)
    } else {
        Box::new(tcp)
    };
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: {authority}\r\nUser-Agent: keydb-health\r\n\r\n"
    )?;
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    while bytes.len() < REPLY_BYTES_MAX {
        times.set_read_timeout(Some(left()?))?;
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A connection over TLS that ends without a word, after the answer.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
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

/// A connection, plain or over TLS.
trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

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
            ("https://keydb-0:50080", "https://keydb-0:50080/ready"),
        ] {
            assert_eq!(shown(text), Ok(meant.to_owned()));
        }
        for text in [
            "",
            "keydb-0:50080",
            "ftp://keydb-0:50080/ready",
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
