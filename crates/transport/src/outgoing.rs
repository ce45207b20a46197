//! The way to others.

use std::{
    error::Error,
    fmt,
    future::Future,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    Uri,
    header::{AUTHORIZATION, HeaderValue},
};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use rustls::{
    ClientConnection, StreamOwned,
    pki_types::{InvalidDnsNameError, ServerName},
};
use tokio::{io::AsyncBufReadExt, time::timeout};
use tokio_rustls::{TlsConnector, TlsStream};
use tonic::{
    body::Body,
    codegen::http,
    transport::{self, Endpoint},
};
use tower_service::Service;

use crate::{
    files::{Content, FileError, Watched},
    stream::Stream,
    tls::{ClientTls, name_in},
};

/// How this process speaks to nodes: over TLS or plain, with a token or without. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Outgoing {
    tls: Option<Arc<ClientTls>>,
    token: Option<Arc<Watched<HeaderValue>>>,
    /// Who is expected at the other end, where that is not the host of the address.
    name: Option<ServerName<'static>>,
}

impl Outgoing {
    /// Plain connections without a token.
    pub fn plain() -> Self {
        Self::default()
    }

    /// The same over TLS. Addresses are those of certificates: a name or an IP address that a server's certificate is for.
    #[must_use]
    pub fn with_tls(mut self, tls: ClientTls) -> Self {
        self.tls = Some(Arc::new(tls));
        self
    }

    /// Sends the token in a file with each request.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn with_token_file(mut self, file: PathBuf) -> Result<Self, FileError> {
        self.token = Some(Watched::read(vec![file], authorization)?);
        Ok(self)
    }

    /// The same for the listener beside this process, which shows the certificate that this process shows, and is reached by a loopback
    /// address.
    ///
    /// # Errors
    /// The certificate's file, where it names nobody.
    pub fn to_itself(&self) -> Result<Self, FileError> {
        let own = self.tls.as_ref().and_then(|tls| tls.own_certificates());
        match own {
            Some(own) => self.clone().to_the_one_of(own),
            None => Ok(self.clone()),
        }
    }

    /// The same for one that shows the certificate in a file.
    ///
    /// # Errors
    /// That file, where it names nobody.
    pub fn to_the_one_of(mut self, certificates: &Path) -> Result<Self, FileError> {
        self.name = Some(name_in(certificates)?);
        Ok(self)
    }

    /// Whether connections are encrypted.
    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Encrypts a connection to `host`, for another protocol than gRPC. The handshake is made with the first bytes that are sent.
    ///
    /// # Errors
    /// When the host's name cannot be that of a certificate, or there is nobody to trust.
    pub fn handshake<S: Read + Write>(
        &self,
        host: &str,
        stream: S,
    ) -> io::Result<StreamOwned<ClientConnection, S>> {
        let tls = self.tls.as_ref();
        let tls = tls.ok_or_else(|| io::Error::other("no CA is set to trust"))?;
        let name = expected(self.name.clone(), host).map_err(io::Error::other)?;
        let connection = ClientConnection::new(tls.config(), name).map_err(io::Error::other)?;
        Ok(StreamOwned::new(connection, stream))
    }

    /// What the header `Authorization` says.
    pub fn authorization(&self) -> Option<HeaderValue> {
        self.token
            .as_ref()
            .map(|token| HeaderValue::clone(&token.get()))
    }

    /// Who is reached at `host:port`, not connected yet.
    ///
    /// # Errors
    /// What is wrong with the address.
    pub fn endpoint(&self, address: &str) -> Result<Endpoint, transport::Error> {
        let scheme = if self.has_tls() { "https" } else { "http" };
        Endpoint::from_shared(format!("{scheme}://{address}"))
    }

    /// Connects to an [`endpoint`](Self::endpoint).
    ///
    /// # Errors
    /// Why it did not come about.
    pub async fn connect(&self, endpoint: &Endpoint) -> Result<Channel, transport::Error> {
        let channel = endpoint.connect_with_connector(self.connector()).await?;
        Ok(self.channel(channel))
    }

    /// A connection that is made when it is needed.
    pub fn connect_lazy(&self, endpoint: &Endpoint) -> Channel {
        self.channel(endpoint.connect_with_connector_lazy(self.connector()))
    }

    fn channel(&self, channel: transport::Channel) -> Channel {
        let token = self.token.clone();
        Channel { channel, token }
    }

    fn connector(&self) -> Connector {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        Connector {
            tcp,
            tls: self.tls.clone(),
            name: self.name.clone(),
        }
    }
}

impl PartialEq for Outgoing {
    /// Whether both go by the same files, read by the same process.
    fn eq(&self, other: &Self) -> bool {
        let tls = |it: &Self| it.tls.as_ref().map(Arc::as_ptr);
        let token = |it: &Self| it.token.as_ref().map(Arc::as_ptr);
        tls(self) == tls(other) && token(self) == token(other) && self.name == other.name
    }
}

impl Eq for Outgoing {}

/// What the header `Authorization` says with the token in a file.
fn authorization(contents: &[Content]) -> Result<HeaderValue, FileError> {
    let Content { path, bytes } = &contents[0];
    let problem = |problem: &str| FileError::new(path, problem);
    let text = str::from_utf8(bytes).map_err(|_| problem("it is not text"))?;
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(problem(
            "a token is one word of printable ASCII, alone in its file",
        ));
    }
    let header = HeaderValue::try_from(format!("Bearer {token}"));
    let mut header = header.map_err(|_| problem("the token cannot be sent in a header"))?;
    // Then it is not printed, and not kept by HTTP/2's compression.
    header.set_sensitive(true);
    Ok(header)
}

/// A connection to a node, or to be.
#[derive(Debug, Clone)]
pub struct Channel {
    channel: transport::Channel,
    token: Option<Arc<Watched<HeaderValue>>>,
}

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Body>;
    type Error = transport::Error;
    type Future = <transport::Channel as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Service::poll_ready(&mut self.channel, context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        if let Some(token) = &self.token {
            let token = HeaderValue::clone(&token.get());
            request.headers_mut().insert(AUTHORIZATION, token);
        }
        self.channel.call(request)
    }
}

/// How long the other end of a new TLS connection may be silent before it is taken for well: one that is no node may wait to be spoken to.
const FIRST_WORD_TIMEOUT: Duration = Duration::from_secs(1);

/// Makes connections.
#[derive(Clone)]
struct Connector {
    tcp: HttpConnector,
    tls: Option<Arc<ClientTls>>,
    name: Option<ServerName<'static>>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let host = uri.host().unwrap_or_default().to_owned();
        let connecting = self.tcp.call(uri);
        let (tls, name) = (self.tls.clone(), self.name.clone());
        Box::pin(async move {
            let stream = connecting.await?.into_inner();
            let Some(tls) = tls else {
                return Ok(TokioIo::new(Stream::Plain(stream)));
            };
            let name = expected(name, &host)?;
            let connector = TlsConnector::from(tls.grpc_config());
            let mut stream = connector.connect(name, stream).await.map_err(Handshake)?;
            // What the other end says to the certificate comes after the handshake: it is taken for a part of it. A node speaks first.
            if let Ok(spoken) = timeout(FIRST_WORD_TIMEOUT, stream.fill_buf()).await
                && spoken.map_err(Handshake)?.is_empty()
            {
                return Err(Handshake(io::ErrorKind::UnexpectedEof.into()).into());
            }
            let stream = Box::new(TlsStream::Client(stream));
            Ok(TokioIo::new(Stream::Tls(stream)))
        })
    }
}

/// Whose certificate is expected at `host`, an IPv6 address in brackets, unless somebody is expected.
fn expected(
    name: Option<ServerName<'static>>,
    host: &str,
) -> Result<ServerName<'static>, InvalidDnsNameError> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    name.map_or_else(|| ServerName::try_from(host.to_owned()), Ok)
}

/// Why there is no TLS connection.
#[derive(Debug)]
struct Handshake(io::Error);

impl fmt::Display for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the TLS handshake failed: {}", self.0)?;
        let is_from_tls = tls_error(&self.0)
            .is_some_and(|error| !matches!(error, rustls::Error::InvalidMessage(_)));
        if !is_from_tls {
            f.write_str(" (perhaps the other end does not speak TLS)")?;
        }
        Ok(())
    }
}

impl Error for Handshake {}

/// Whether a connection did not come about since the two ends could not agree on TLS: somebody is there.
pub fn is_handshake_failure(error: &(dyn Error + 'static)) -> bool {
    let mut source = Some(error);
    while let Some(error) = source {
        if error.is::<Handshake>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// An error as a person reads it, with what is behind it.
pub fn with_sources(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let part = error.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        source = error.source();
    }
    text
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}
