//! Who may do what.

use std::{
    fmt,
    future::{Ready, ready},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::future::Either;
use hyper::{
    HeaderMap,
    header::{AUTHORIZATION, HeaderValue},
};
use subtle::ConstantTimeEq;
use tonic::{Status, body::Body, codegen::http};
use tower_service::Service;
use tracing::warn;

use crate::{
    files::{Content, FileError, Watched},
    unread::Unread,
};

/// Shorter tokens could be guessed.
const TOKEN_BYTES_MIN: usize = 16;

/// What a token allows. Each allows what the ones before it allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// To ask whether keys are there, and how the cluster stands.
    Read,
    /// To put and claim keys.
    Write,
    /// All else: to be a node or an operator, to scale, to make snapshots and backups.
    Admin,
}

impl Role {
    const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Admin];

    const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }

    /// What a gRPC method needs. `None`: nothing, since probes have no token.
    pub fn of_grpc(path: &str) -> Option<Self> {
        Some(match path {
            "/grpc.health.v1.Health/Check" | "/grpc.health.v1.Health/Watch" => return None,
            "/keydb.shard.v1.ShardService/Get"
            | "/keydb.shard.v1.ShardService/GetMap"
            | "/keydb.shard.v1.ShardService/NodeStatus"
            | "/keydb.NodeService/Get"
            | "/keydb.NodeService/GetNodeInfo"
            | "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
            | "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo" => Self::Read,
            "/keydb.shard.v1.ShardService/Put"
            | "/keydb.shard.v1.ShardService/Claim"
            | "/keydb.NodeService/Put"
            | "/keydb.NodeService/Claim" => Self::Write,
            _ => Self::Admin,
        })
    }

    /// The same of an HTTP path, of a node or of an operator.
    pub fn of_http(path: &str) -> Option<Self> {
        Some(match path {
            "/live" | "/ready" | "/startup" => return None,
            "/metrics" | "/openapi.json" | "/v1/get" | "/get" | "/info" | "/lastOperation" => {
                Self::Read
            }
            "/v1/put" | "/v1/claim" | "/put" | "/claim" => Self::Write,
            _ => Self::Admin,
        })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The tokens that a listener accepts; without any, everybody may do everything. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Access {
    tokens: Option<Arc<Watched<Tokens>>>,
    refused: Arc<Refused>,
}

/// How many requests were refused, of which the log tells now and then.
#[derive(Debug, Default)]
struct Refused {
    count: AtomicU64,
    told: Mutex<Option<Instant>>,
}

/// How often the log tells of refused requests.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

impl Refused {
    fn count(&self, refusal: Refusal) {
        let count = self.count.fetch_add(1, Relaxed) + 1;
        let Ok(mut told) = self.told.try_lock() else {
            return;
        };
        if told.is_none_or(|at| at.elapsed() >= TELL_INTERVAL) {
            *told = Some(Instant::now());
            warn!(
                refused = count,
                "requests are refused, the last one since {refusal}"
            );
        }
    }
}

struct Tokens(Vec<(Role, Vec<u8>)>);

impl Access {
    /// Accepts the tokens of a file: a line for each, `ROLE TOKEN`, where empty lines and those that begin with `#` do not count. A
    /// token that leaves the file is refused from then on, also on connections that exist.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn read(file: PathBuf) -> Result<Self, FileError> {
        Ok(Self {
            tokens: Some(Watched::read(vec![file], tokens)?),
            refused: Arc::default(),
        })
    }

    /// Whether a token is asked for.
    pub fn asks_for_tokens(&self) -> bool {
        self.tokens.is_some()
    }

    /// What a header `Authorization` allows, where it is one of those that are accepted.
    pub fn role_of(&self, header: &HeaderValue) -> Option<Role> {
        self.tokens.as_ref()?.get().role(bearer(header)?)
    }

    fn check(&self, headers: &HeaderMap, needed: Option<Role>) -> Result<(), Refusal> {
        let (Some(tokens), Some(needed)) = (&self.tokens, needed) else {
            return Ok(());
        };
        let allowed = Self::look(tokens, headers, needed);
        allowed.inspect_err(|refusal| self.refused.count(*refusal))
    }

    /// Tells of a request that was refused without a look at its token.
    pub(crate) fn count(&self, refusal: Refusal) {
        self.refused.count(refusal);
    }

    fn look(
        tokens: &Arc<Watched<Tokens>>,
        headers: &HeaderMap,
        needed: Role,
    ) -> Result<(), Refusal> {
        let header = headers.get(AUTHORIZATION).ok_or(Refusal::NoToken)?;
        let token = bearer(header).ok_or(Refusal::NoToken)?;
        let role = tokens.get().role(token).ok_or(Refusal::UnknownToken)?;
        if role < needed {
            return Err(Refusal::Role { role, needed });
        }
        Ok(())
    }

    /// Whether everybody may ask for an HTTP path.
    pub(crate) fn is_open(path: &str) -> bool {
        Role::of_http(path).is_none()
    }

    /// Whether an HTTP request with these headers may go on.
    pub(crate) fn check_http(&self, path: &str, headers: &HeaderMap) -> Result<(), Refusal> {
        self.check(headers, Role::of_http(path))
    }
}

/// What the header says after `Bearer `, whose case does not count.
fn bearer(header: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = header.as_bytes().split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}

impl Tokens {
    /// The most that a token allows. All are compared, each in constant time.
    fn role(&self, token: &[u8]) -> Option<Role> {
        let mut found = None;
        for (role, known) in &self.0 {
            if known.ct_eq(token).into() {
                found = found.max(Some(*role));
            }
        }
        found
    }
}

fn tokens(contents: &[Content]) -> Result<Tokens, FileError> {
    let Content { path, bytes } = &contents[0];
    let text = str::from_utf8(bytes).map_err(|_| FileError::new(path, "it is not text"))?;
    let mut tokens = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // The line itself is secret.
        let problem = |problem: String| {
            let line = index + 1;
            FileError::new(path, format!("line {line}: {problem}"))
        };
        let mut words = line.split_whitespace();
        let (Some(role), Some(token), None) = (words.next(), words.next(), words.next()) else {
            return Err(problem(
                "give a role and a token, such as \"write 7Jx0…\", and nothing else".to_owned(),
            ));
        };
        let role = Role::ALL.into_iter().find(|it| it.name() == role);
        let role = role.ok_or_else(|| {
            problem("the first word is no role; the roles are read, write and admin".to_owned())
        })?;
        let is_printable = token.bytes().all(|byte| byte.is_ascii_graphic());
        if token.len() < TOKEN_BYTES_MIN || !is_printable {
            return Err(problem(format!(
                "a token has {TOKEN_BYTES_MIN} or more characters of printable ASCII; `openssl rand -hex 32` makes one"
            )));
        }
        tokens.push((role, token.as_bytes().to_vec()));
    }
    if tokens.is_empty() {
        return Err(FileError::new(path, "there is no token in it"));
    }
    Ok(Tokens(tokens))
}

/// Why a request may not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It has none.
    #[error("a token is needed: send the header Authorization: Bearer TOKEN")]
    NoToken,
    /// It is not one of those that are accepted.
    #[error("the token is not one of those that are accepted here")]
    UnknownToken,
    /// It allows less.
    #[error("the token has the role {role}; this needs {needed}")]
    Role {
        /// What it allows.
        role: Role,
        /// What it would have to.
        needed: Role,
    },
    /// No certificate was shown where one is asked for.
    #[error("a client certificate is needed")]
    NoCertificate,
    /// A page of some web site has sent it, through the browser of somebody who can reach this port.
    #[error("a web page sent it (header Origin); without tokens or certificates none is trusted")]
    WebPage,
}

impl Refusal {
    /// Whether it would help to say who one is.
    pub(crate) const fn is_of_identity(self) -> bool {
        !matches!(self, Self::Role { .. } | Self::WebPage)
    }

    /// Whether a token would help.
    pub(crate) const fn is_of_token(self) -> bool {
        matches!(self, Self::NoToken | Self::UnknownToken)
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        if refusal.is_of_identity() {
            Self::unauthenticated(refusal.to_string())
        } else {
            Self::permission_denied(refusal.to_string())
        }
    }
}

/// gRPC services behind an [`Access`], as a layer. What is received of requests and not decoded yet takes [a limited amount](crate::UNREAD_BYTES_MAX) of memory.
#[derive(Debug, Clone)]
pub struct GrpcAccess<S> {
    access: Access,
    unread: Unread,
    inner: S,
}

impl<S> GrpcAccess<S> {
    /// `inner` for those who may.
    pub fn new(access: Access, unread: Unread, inner: S) -> Self {
        Self {
            access,
            unread,
            inner,
        }
    }
}

impl<S> Service<http::Request<Body>> for GrpcAccess<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Self::Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let needed = Role::of_grpc(request.uri().path());
        match self.access.check(request.headers(), needed) {
            Ok(()) => Either::Left(self.inner.call(self.unread.counted(request))),
            Err(refusal) => Either::Right(ready(Ok(Status::from(refusal).into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(text: &str) -> Vec<Content> {
        let path = PathBuf::from("tokens");
        let bytes = text.as_bytes().to_vec();
        vec![Content { path, bytes }]
    }

    #[test]
    fn a_file_of_tokens_has_a_role_and_a_token_a_line() {
        let text =
            "# ours\n\nread  aaaaaaaaaaaaaaaa\nadmin bbbbbbbbbbbbbbbb\r\nwrite aaaaaaaaaaaaaaaa\n";
        let read = tokens(&content(text)).ok().unwrap();
        assert_eq!(read.role(b"bbbbbbbbbbbbbbbb"), Some(Role::Admin));
        assert_eq!(read.role(b"aaaaaaaaaaaaaaaa"), Some(Role::Write));
        for other in [&b""[..], b"a", b"aaaaaaaaaaaaaaab", b"aaaaaaaaaaaaaaaaa"] {
            assert_eq!(read.role(other), None);
        }
        for (text, expected) in [
            ("", "no token"),
            ("# nothing\n", "no token"),
            ("read aaaaaaaaaaaaaaaa\nsecretsecretsecret\n", "line 2"),
            ("root aaaaaaaaaaaaaaaa", "read, write and admin"),
            ("read short", "16 or more"),
            ("read aaaaaaaaaaaaaaaaä", "printable"),
            ("read aaaaaaaaaaaaaaaa b", "nothing else"),
        ] {
            let error = tokens(&content(text)).err().unwrap().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
            assert!(!error.contains("secretsecret"), "{error}");
        }
    }

    #[test]
    fn what_is_not_named_needs_the_most() {
        assert_eq!(Role::of_http("/v1/get"), Some(Role::Read));
        assert_eq!(Role::of_http("/scale"), Some(Role::Admin));
        assert_eq!(Role::of_http("/v1/get/"), Some(Role::Admin));
        assert_eq!(Role::of_http("/ready"), None);
        let move_session = "/keydb.shard.v1.MoveService/Session";
        assert_eq!(Role::of_grpc(move_session), Some(Role::Admin));
        assert_eq!(Role::of_grpc("/keydb.NodeService/Scale"), Some(Role::Admin));
    }

    #[test]
    fn the_scheme_is_bearer_in_any_case() {
        let token =
            |text: &'static str| bearer(&HeaderValue::from_static(text)).map(<[u8]>::to_vec);
        assert_eq!(token("Bearer abc"), Some(b"abc".to_vec()));
        assert_eq!(token("bearer  abc"), Some(b"abc".to_vec()));
        for other in ["", "abc", "Basic abc", "Bearerabc"] {
            assert_eq!(token(other), None, "{other}");
        }
    }
}
