//! Callers that are broken, or mean no good: each is refused or cut off, and others are served all the while.

#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

mod support;

use bytes::Bytes;
use h2::{Reason, client::SendRequest};
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

fn request(header: &str) -> Request<()> {
    Request::builder()
        .method(Method::POST)
        .uri(format!("http://node{GET}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("x-more", header)
        .body(())
        .unwrap()
}

/// The gRPC status of what is answered to one message, as bytes.
async fn status_of(mut requests: SendRequest<Bytes>, message: &[u8]) -> String {
    let (answer, mut body) = requests.send_request(request("none"), false).unwrap();
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
    let (answer, _) = requests.clone().send_request(request(&huge), true).unwrap();
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
        status_of(requests.clone(), &compressed).await,
        unimplemented
    );
    // One that says that it is larger than any may be, and is not there.
    let out_of_range = "11";
    let announced = [0, 0xff, 0xff, 0xff, 0xff, 1];
    let status = status_of(requests.clone(), &announced).await;
    assert!(status == out_of_range || status == "3", "{status}");
    // One that breaks off.
    let status = status_of(requests, &[0, 0, 0, 1, 0, 1, 2]).await;
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
    // It comes to an end.
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said).await;
    serves(&mut client).await;

    // What is no HTTP/2 at all.
    for noise in [
        &b"GET / HTTP/1.1\r\nHost: node\r\n\r\n"[..],
        &[0x16, 3, 1, 0, 5, 1, 2, 3, 4, 5],
        &[0; 64],
    ] {
        let mut stream = TcpStream::connect(&node.address).await.unwrap();
        stream.write_all(noise).await.unwrap();
        stream.shutdown().await.unwrap();
        let _ = stream.read_to_end(&mut said).await;
    }
    serves(&mut client).await;
    node.stop().await;
}

#[tokio::test]
async fn who_gives_up_requests_faster_than_they_can_be_looked_at_is_cut_off() {
    let (cluster, map, node, mut client) = one_node().await;
    let present = keys(&map, 0..10);
    let (mut requests, connection) = by_hand(&node.address).await;
    for _ in 0..20_000 {
        // It is over where the node has ended the connection.
        let Ok(ready) = requests.clone().ready().await else {
            break;
        };
        requests = ready;
        let Ok((_answer, mut body)) = requests.send_request(request("none"), false) else {
            break;
        };
        body.send_reset(Reason::CANCEL);
    }
    let ended = connection.await.unwrap();
    let error = ended.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM), "{error}");
    client
        .get(cluster.get_request(&map, &present))
        .await
        .unwrap();
    node.stop().await;
}
