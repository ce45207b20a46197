//! How much is received of requests before anybody has looked at them.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use axum::body::Bytes;
use http_body::{Frame, SizeHint};
use tonic::{Status, body::Body, codegen::http};

/// What a listener holds of requests that are being received, all connections together.
pub const UNREAD_BYTES_MAX: usize = 256 << 20;

/// Sessions of moves have no end, and a limit of their own.
const SESSIONS: &str = "/keydb.shard.v1.MoveService/Session";

/// The bytes that a listener's requests hold until they are decoded. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Unread(Arc<AtomicUsize>);

impl Unread {
    /// The same request, whose body counts.
    pub(crate) fn counted(&self, request: http::Request<Body>) -> http::Request<Body> {
        if request.uri().path() == SESSIONS {
            return request;
        }
        request.map(|body| {
            Body::new(Counted {
                body,
                unread: self.clone(),
                held: 0,
            })
        })
    }
}

struct Counted {
    body: Body,
    unread: Unread,
    held: usize,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)) else {
            return Poll::Ready(None);
        };
        let frame = frame?;
        let more = frame.data_ref().map_or(0, Bytes::len);
        let before = self.unread.0.fetch_add(more, Relaxed);
        self.held += more;
        if before + more > UNREAD_BYTES_MAX {
            let status = Status::resource_exhausted(format!(
                "requests that are being received hold {UNREAD_BYTES_MAX} bytes, which is the limit; nothing was applied"
            ));
            return Poll::Ready(Some(Err(status)));
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.unread.0.fetch_sub(self.held, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// What comes of a request's body of so many bytes while others hold the rest.
    async fn received(unread: &Unread, bytes: usize) -> Option<Result<usize, Status>> {
        let body = Body::new(axum::body::Body::from(vec![0; bytes]));
        let request = http::Request::builder().uri("/keydb.NodeService/Get");
        let counted = unread.counted(request.body(body).unwrap());
        let mut body = Box::pin(counted.into_body());
        let frame = poll_fn(|context| http_body::Body::poll_frame(body.as_mut(), context)).await;
        frame.map(|frame| frame.map(|it| it.data_ref().unwrap().len()))
    }

    #[tokio::test]
    async fn what_does_not_fit_is_refused_and_what_is_done_with_makes_room() {
        let unread = Unread::default();
        unread.0.store(UNREAD_BYTES_MAX - 10, Relaxed);
        let refused = received(&unread, 11).await.unwrap().unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(refused.message().contains("nothing was applied"));
        for _ in 0..3 {
            assert_eq!(received(&unread, 10).await.unwrap().unwrap(), 10);
        }
        assert_eq!(unread.0.load(Relaxed), UNREAD_BYTES_MAX - 10);
    }
}
