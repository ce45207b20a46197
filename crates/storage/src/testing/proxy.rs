//! A bad connection to an S3 server: a proxy that does to requests and replies what a test has planned.
//!
//! Requests are passed on as they were signed, with the `Host` that the client knows the proxy by. Whole requests are taken before
//! anything is passed on, so that what reaches the server is either nothing or all.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::{Body, Frame, Incoming},
    header,
    http::{request, response},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinHandle, JoinSet, yield_now},
    time::sleep,
};

use super::TestBucket;

/// What a request asks the server for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// To write an object in one piece.
    PutObject,
    /// To send an object or a part of it.
    GetObject,
    /// To say what is known of an object.
    HeadObject,
    /// To remove an object.
    DeleteObject,
    /// To list objects.
    ListObjects,
    /// To begin an upload in parts.
    CreateUpload,
    /// To take a part.
    UploadPart,
    /// To make the parts an object.
    CompleteUpload,
    /// To forget an upload.
    AbortUpload,
    /// Anything else.
    Other,
}

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    Nothing,
    /// The reply comes so much later.
    Slow(Duration),
    /// It is not passed on, and there is never a reply.
    Silence,
    /// It is passed on when [`FaultProxy::release`] says so.
    Held,
    /// It is not passed on, and answered with this status and this code of S3.
    Answer(u16, &'static str),
    /// It is passed on, and answered with this status and this code of S3 all the same.
    AppliedAnswer(u16, &'static str),
    /// The connection ends in the middle of the request's body; nothing is passed on.
    RequestCut,
    /// The connection ends in the middle of the reply's body, or before a reply that has none.
    ReplyCut,
    /// The reply stands still for ever in the middle of its body.
    ReplyStall,
    /// It is passed on, and the connection ends instead of a reply.
    ReplyLost,
    /// The connection ends; it is passed on when [`FaultProxy::deliver`] says so.
    Late,
}

/// A proxy before a bucket's server. It ends, with all connections, when this is dropped.
#[derive(Debug)]
pub struct FaultProxy {
    bucket: TestBucket,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    /// `host:port` of the server.
    server: String,
    client: Client<HttpConnector, Full<Bytes>>,
    plan: Mutex<Plan>,
    seen: watch::Sender<BTreeMap<Operation, usize>>,
    released: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Plan {
    /// What goes wrong once each, in this order, with requests of an operation for keys with this end.
    once: Vec<(Operation, String, Fault)>,
    always: BTreeMap<Operation, Fault>,
    late: Vec<Request<Full<Bytes>>>,
    held: usize,
}

type ReplyBody = UnsyncBoxBody<Bytes, io::Error>;

impl FaultProxy {
    /// A proxy, on a port of its own, that lets everything through until something is planned.
    ///
    /// # Panics
    /// When there is no port for it.
    pub async fn before(bucket: &TestBucket) -> Self {
        let endpoint = bucket.options.endpoint.as_deref().unwrap_or_default();
        let server = endpoint
            .strip_prefix("http://")
            .expect("a test's server is reached by http://");
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port is free");
        let address: SocketAddr = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            server: server.trim_end_matches('/').to_owned(),
            client: Client::builder(TokioExecutor::new()).build_http(),
            plan: Mutex::default(),
            seen: watch::Sender::default(),
            released: watch::Sender::default(),
        });
        let mut bucket = bucket.clone();
        bucket.options.endpoint = Some(format!("http://{address}"));
        let task = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                let mut connections = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    let shared = Arc::clone(&shared);
                    connections.spawn(async move {
                        let service = service_fn(|request| Arc::clone(&shared).serve(request));
                        // That connections end badly is what this is for.
                        let _ = http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                    });
                    while connections.try_join_next().is_some() {}
                }
            }
        });
        Self {
            bucket,
            shared,
            task,
        }
    }

    /// The bucket by way of the proxy.
    pub const fn bucket(&self) -> &TestBucket {
        &self.bucket
    }

    /// The next requests of this operation meet these faults, one each.
    pub fn plan(&self, operation: Operation, faults: impl IntoIterator<Item = Fault>) {
        self.plan_for(operation, "", faults);
    }

    /// The next requests of this operation for keys that end in `key` meet these faults, one each.
    pub fn plan_for(
        &self,
        operation: Operation,
        key: &str,
        faults: impl IntoIterator<Item = Fault>,
    ) {
        let faults = faults.into_iter();
        let once = faults.map(|fault| (operation, key.to_owned(), fault));
        self.shared.plan().once.extend(once);
    }

    /// All requests of this operation meet this fault, when no other is planned for them.
    pub fn always(&self, operation: Operation, fault: Fault) {
        self.shared.plan().always.insert(operation, fault);
    }

    /// How many requests of this operation came.
    pub fn seen(&self, operation: Operation) -> usize {
        let seen = self.shared.seen.borrow();
        seen.get(&operation).copied().unwrap_or_default()
    }

    /// Waits until so many requests of this operation came in all.
    ///
    /// # Panics
    /// Never: the sender lives as long as this.
    pub async fn wait_for(&self, operation: Operation, count: usize) {
        let mut seen = self.shared.seen.subscribe();
        seen.wait_for(|seen| seen.get(&operation).is_some_and(|seen| *seen >= count))
            .await
            .expect("the sender is here");
    }

    /// Lets one request more go on that is [`Fault::Held`].
    pub fn release(&self) {
        self.shared.released.send_modify(|released| *released += 1);
    }

    /// Passes on the requests that are [`Fault::Late`], in order; the server's statuses.
    ///
    /// # Panics
    /// When the server cannot be reached.
    pub async fn deliver(&self) -> Vec<u16> {
        let late = std::mem::take(&mut self.shared.plan().late);
        let mut statuses = Vec::new();
        for request in late {
            let reply = self.shared.pass_on(request).await;
            let (head, _) = reply.expect("the server answers");
            statuses.push(head.status.as_u16());
        }
        statuses
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fault that is planned for a request.
    fn fault(&self, operation: Operation, path: &str) -> Fault {
        let mut plan = self.plan();
        let planned = plan
            .once
            .iter()
            .position(|(of, key, _)| *of == operation && path.ends_with(key.as_str()));
        match planned {
            Some(position) => plan.once.remove(position).2,
            None => plan
                .always
                .get(&operation)
                .copied()
                .unwrap_or(Fault::Nothing),
        }
    }

    /// An error ends the connection without a reply.
    async fn serve(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<ReplyBody>, io::Error> {
        let operation = operation_of(request.method(), request.uri());
        let fault = self.fault(operation, request.uri().path());
        self.seen
            .send_modify(|seen| *seen.entry(operation).or_default() += 1);
        let (head, body) = request.into_parts();
        if fault == Fault::RequestCut {
            return cut_request(body).await;
        }
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let request = self.addressed(head, body);
        match fault {
            Fault::Silence => return std::future::pending().await,
            Fault::Answer(status, code) => return Ok(error(request.method(), status, code)),
            Fault::Late => {
                self.plan().late.push(request);
                return Err(cut());
            }
            Fault::Held => {
                let turn = {
                    let mut plan = self.plan();
                    plan.held += 1;
                    plan.held
                };
                let mut released = self.released.subscribe();
                let waited = released.wait_for(|released| *released >= turn).await;
                waited.map_err(io::Error::other)?;
            }
            _ => {}
        }
        let method = request.method().clone();
        let (head, body) = self.pass_on(request).await?;
        match fault {
            Fault::ReplyLost => return Err(cut()),
            Fault::ReplyCut | Fault::ReplyStall if body.is_empty() => {
                return match fault {
                    Fault::ReplyCut => Err(cut()),
                    _ => std::future::pending().await,
                };
            }
            Fault::AppliedAnswer(status, code) => return Ok(error(&method, status, code)),
            Fault::Slow(delay) => sleep(delay).await,
            _ => {}
        }
        let body = match fault {
            Fault::ReplyCut | Fault::ReplyStall => half(body, fault == Fault::ReplyCut),
            _ => whole(body),
        };
        Ok(Response::from_parts(head, body))
    }

    /// The same request, addressed to the server, with the client's `Host`.
    fn addressed(&self, mut head: request::Parts, body: Bytes) -> Request<Full<Bytes>> {
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        head.uri = Uri::builder()
            .scheme("http")
            .authority(self.server.as_str())
            .path_and_query(path)
            .build()
            .expect("it was one before");
        // It was answered here.
        head.headers.remove(header::EXPECT);
        Request::from_parts(head, Full::new(body))
    }

    async fn pass_on(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(response::Parts, Bytes), io::Error> {
        let is_head = request.method() == Method::HEAD;
        let reply = self
            .client
            .request(request)
            .await
            .map_err(io::Error::other)?;
        let (mut head, body) = reply.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        head.headers.remove(header::TRANSFER_ENCODING);
        // A reply to HEAD has the length of what it does not send.
        if !is_head && head.status != StatusCode::NO_CONTENT {
            head.headers
                .insert(header::CONTENT_LENGTH, body.len().into());
        }
        Ok((head, body))
    }
}

fn operation_of(method: &Method, uri: &Uri) -> Operation {
    let query = uri.query().unwrap_or_default();
    let has = |name: &str| {
        query
            .split('&')
            .any(|pair| pair.split('=').next() == Some(name))
    };
    let path = uri.path().trim_start_matches('/');
    let of_object = path.split_once('/').is_some_and(|(_, key)| !key.is_empty());
    match method.as_str() {
        "GET" if of_object && !has("uploadId") => Operation::GetObject,
        "GET" if has("list-type") => Operation::ListObjects,
        "HEAD" if of_object => Operation::HeadObject,
        "PUT" if has("partNumber") => Operation::UploadPart,
        "PUT" if of_object => Operation::PutObject,
        "POST" if has("uploads") => Operation::CreateUpload,
        "POST" if has("uploadId") => Operation::CompleteUpload,
        "DELETE" if has("uploadId") => Operation::AbortUpload,
        "DELETE" if of_object => Operation::DeleteObject,
        _ => Operation::Other,
    }
}

fn cut() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

/// Takes half of a request's body.
async fn cut_request(mut body: Incoming) -> Result<Response<ReplyBody>, io::Error> {
    let mut left = body.size_hint().exact().unwrap_or_default() / 2;
    while left > 0 {
        let Some(frame) = body.frame().await else {
            break;
        };
        let frame = frame.map_err(io::Error::other)?;
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len) as u64);
    }
    Err(cut())
}

fn whole(body: Bytes) -> ReplyBody {
    Full::new(body)
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

/// The first half of a body, in pieces; then the end of the connection, or nothing any more.
fn half(body: Bytes, ends: bool) -> ReplyBody {
    const PIECE_BYTES: usize = 64 << 10;
    let half = body.slice(..body.len() / 2);
    let starts = (0..half.len()).step_by(PIECE_BYTES);
    let pieces = stream::iter(starts.collect::<Vec<_>>()).then(move |start| {
        let end = (start + PIECE_BYTES).min(half.len());
        let piece = half.slice(start..end);
        async move {
            // So that what came before is sent.
            yield_now().await;
            Ok(Frame::data(piece))
        }
    });
    let end = stream::once(async move {
        yield_now().await;
        if !ends {
            std::future::pending::<()>().await;
        }
        Err(cut())
    });
    BodyExt::boxed_unsync(StreamBody::new(pieces.chain(end)))
}

/// An answer of S3 that nothing was asked of.
fn error(method: &Method, status: u16, code: &str) -> Response<ReplyBody> {
    let body = if method == Method::HEAD {
        String::new()
    } else {
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>as planned</Message></Error>"
        )
    };
    let mut reply = Response::new(whole(body.into()));
    *reply.status_mut() = StatusCode::from_u16(status).expect("tests plan possible statuses");
    reply.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/xml"),
    );
    reply
}
