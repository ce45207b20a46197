//! Callers that are broken, or mean no good: each is refused or cut off, and others are served all the while.

#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

mod support;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request};
use support::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const GET: &str = "/keydb.shard.v1.ShardService/Get";

/// HTTP/2 by hand; what ends the connection comes out of the task.
async fn by_hand(
    address: &str,
) -> (
    SendRequest<Bytes>,
    tokio::task::JoinHandle<Result<(), h2::Error>>,
) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (requests, connection) = h2::client::handshake(stream).await.unwrap();
    (requests, tokio::spawn(connection))
}

fn request(name: &str, value: &str) -> Request<()> {
    Request::builder()
        .method(Method::POST)
        .uri(format!("http://node{GET}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header(name, value)
        .body(())
        .unwrap()
}

/// The gRPC status of what is answered to one message, as bytes.
async fn status_of(mut requests: SendRequest<Bytes>, encoding: &str, message: &[u8]) -> String {
    let request = request("grpc-encoding", encoding);
    let (answer, mut body) = requests.send_request(request, false).unwrap();
    body.send_data(Bytes::copy_from_slice(message), true)
        .unwrap();
    let answer = answer.await.unwrap();
    let in_headers = answer.headers().get("grpc-status").cloned();
    let status = match in_headers {
        Some(status) => status,
        None => {
            let mut body = answer.into_body();
            while let Some(data) = body.data().await {
                data.unwrap();
            }
            let trailers = body.trailers().await.unwrap().unwrap();
            trailers.get("grpc-status").unwrap().clone()
        }
    };
    status.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn who_sends_what_no_client_does_is_refused_and_others_are_served() {
    let (cluster, map, node, mut client) = one_node().await;
    let present = keys(&map, 0..10);
    let serves = async |client: &mut Client| {
        client
            .get(cluster.get_request(&map, &present))
            .await
            .unwrap();
    };
    serves(&mut client).await;

    // Headers beyond what is read.
    let (requests, _connection) = by_hand(&node.address).await;
    let huge = "h".repeat(40 << 10);
    let (answer, _) = requests
        .clone()
        .send_request(request("x-more", &huge), true)
        .unwrap();
    let refused = match answer.await {
        Ok(answer) => answer.status() == 431,
        Err(error) => error.is_reset() || error.is_go_away(),
    };
    assert!(refused);
    serves(&mut client).await;

    // A compressed message, which could be a bomb: compression is not spoken.
    let (requests, _connection) = by_hand(&node.address).await;
    let unimplemented = "12";
    let compressed = [1, 0, 0, 0, 4, 1, 2, 3, 4];
    assert_eq!(
        status_of(requests.clone(), "gzip", &compressed).await,
        unimplemented
    );
    // One that says that it is larger than any may be, and is not there.
    let out_of_range = "11";
    let announced = [0, 0xff, 0xff, 0xff, 0xff, 1];
    let status = status_of(requests.clone(), "identity", &announced).await;
    assert!(status == out_of_range || status == "3", "{status}");
    // One that breaks off.
    let status = status_of(requests, "identity", &[0, 0, 0, 1, 0, 1, 2]).await;
    assert_ne!(status, "0");
    serves(&mut client).await;

    // A frame beyond the size that was agreed on.
    let mut stream = TcpStream::connect(&node.address).await.unwrap();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    stream
        .write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])
        .await
        .unwrap();
    let _ = stream
        .write_all(&[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1])
        .await;
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said).await;
    assert_eq!(reason(&said), Some(FRAME_SIZE_ERROR));
    serves(&mut client).await;

    // What is no HTTP/2 at all.
    for noise in [
        &b"GET / HTTP/1.1\r\nHost: node\r\n\r\n"[..],
        &[0x16, 3, 1, 0, 5, 1, 2, 3, 4, 5],
        &[0; 64],
    ] {
        let mut stream = TcpStream::connect(&node.address).await.unwrap();
        stream.write_all(noise).await.unwrap();
        said.clear();
        let _ = stream.read_to_end(&mut said).await;
        assert!(frames(&said).all(|(kind, _)| kind != HEADERS), "{said:?}");
    }
    serves(&mut client).await;
    node.stop().await;
}

/// A frame of HTTP/2 (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The kind and the payload of each frame that is whole.
fn frames(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = bytes.split_at_checked(9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (payload, rest) = rest.split_at_checked(length)?;
        bytes = rest;
        Some((head[3], payload))
    })
}

/// Why the node has ended the connection.
fn reason(said: &[u8]) -> Option<u8> {
    let end = frames(said).find(|(kind, _)| *kind == GO_AWAY)?;
    Some(end.1[7])
}

const FRAME_SIZE_ERROR: u8 = 6;
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 4;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GO_AWAY: u8 = 7;
const CANCEL: [u8; 4] = [0, 0, 0, 8];
const ENHANCE_YOUR_CALM: u8 = 0xb;

#[tokio::test]
async fn who_gives_up_requests_faster_than_they_can_be_looked_at_is_cut_off() {
    let (cluster, map, node, mut client) = one_node().await;
    let present = keys(&map, 0..10);
    // POST, http, the path, and the authority (RFC 7541, appendix A).
    let mut block = vec![0x83, 0x86, 4, GET.len() as u8];
    block.extend(GET.as_bytes());
    block.extend([1, 4]);
    block.extend(b"node");
    let mut all = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    all.extend(frame(SETTINGS, 0, 0, &[]));
    for stream in (1..20_000).step_by(2) {
        all.extend(frame(HEADERS, END_HEADERS, stream, &block));
        all.extend(frame(RST_STREAM, 0, stream, &CANCEL));
    }
    let stream = TcpStream::connect(&node.address).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let writing = tokio::spawn(async move {
        // It is over where the node has ended the connection.
        let _ = write.write_all(&all).await;
    });
    let mut said = Vec::new();
    let _ = read.read_to_end(&mut said).await;
    assert_eq!(reason(&said), Some(ENHANCE_YOUR_CALM));
    writing.await.unwrap();
    client
        .get(cluster.get_request(&map, &present))
        .await
        .unwrap();
    node.stop().await;
}
