//! Those who connect and then say little or nothing are not waited for for ever.

#![cfg(feature = "server")]
#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

use std::{fs, sync::Arc};

use axum::{Router, routing::get};
use keydb_transport::{HEADER_TIMEOUT, ListenerSecurity, OwnCertificate, ServerTls, serve_http};
use rcgen::generate_simple_self_signed;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Serves HTTP, and says where.
async fn serve(security: ListenerSecurity) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let router = Router::new().route("/live", get(async || "live\n"));
    tokio::spawn(async move {
        serve_http(listener, &security, router, CancellationToken::new()).await;
    });
    address
}

/// What is said until the connection ends, and how much time it takes, which is not really waited for.
async fn until_cut(address: &str, said: &[u8]) -> (Vec<u8>, std::time::Duration) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(said).await.unwrap();
    let began = Instant::now();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    (answer, began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_head_does_not_come_and_an_idle_connection_are_cut_off() {
    let address = serve(ListenerSecurity::default()).await;
    // Of those that have hardly said a word less is expected.
    for (said, is_begun) in [
        ("", false),
        ("GET /live HT", false),
        ("GET /live HTTP/1.1\r\nHost: node\r\n", true),
    ] {
        let (answer, took) = until_cut(&address, said.as_bytes()).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{said:?}");
        assert_eq!(took >= HEADER_TIMEOUT, is_begun, "{said:?}: {took:?}");
        assert!(took < 2 * HEADER_TIMEOUT, "{said:?}: {took:?}");
    }
    let whole = b"GET /live HTTP/1.1\r\nHost: node\r\n\r\n";
    let (answer, took) = until_cut(&address, whole).await;
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    assert!(
        took >= HEADER_TIMEOUT && took < 2 * HEADER_TIMEOUT,
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_does_not_come_is_cut_off_and_others_are_let_in_meanwhile() {
    let directory = tempfile::tempdir().unwrap();
    let signed = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let own = OwnCertificate {
        certificates: directory.path().join("own.pem"),
        key: directory.path().join("own-key.pem"),
    };
    fs::write(&own.certificates, signed.cert.pem()).unwrap();
    fs::write(&own.key, signed.signing_key.serialize_pem()).unwrap();
    let tls = Some(Arc::new(ServerTls::read(&own, None).unwrap()));
    let address = serve(ListenerSecurity {
        tls,
        ..ListenerSecurity::default()
    })
    .await;
    let silent = tokio::spawn({
        let address = address.clone();
        async move { until_cut(&address, b"").await }
    });
    let begun = until_cut(&address, &[0x16, 3, 1, 0, 200]).await;
    assert!(begun.0.is_empty() && begun.1 < HEADER_TIMEOUT, "{begun:?}");
    let (answer, took) = silent.await.unwrap();
    assert!(answer.is_empty() && took < HEADER_TIMEOUT, "{took:?}");
    let (answer, _) = until_cut(&address, b"GET /live HTTP/1.1\r\n\r\n").await;
    assert!(answer.starts_with(b"HTTP/1.1 400"));
}

#[tokio::test(start_paused = true)]
async fn a_web_page_gets_nothing_from_a_listener_that_asks_nobody_who_he_is() {
    let address = serve(ListenerSecurity::default()).await;
    let request = |more: &str| format!("GET /live HTTP/1.1\r\nHost: localhost\r\n{more}\r\n");
    let of_page = request("Origin: http://localhost\r\n");
    let (answer, _) = until_cut(&address, of_page.as_bytes()).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.starts_with("HTTP/1.1 403") && answer.contains("web page"),
        "{answer}"
    );
}
