//! What a node logs can be changed while it runs, and a call can be followed from node to node.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::time::Duration;

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::{Span, span::SpanKind},
};
use rustix::process::Signal;
use serde_json::Value;
use support::{Dev, http, http_with, wait_for_line};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

#[test]
fn the_log_is_json_if_wanted_and_takes_another_filter_while_it_runs() {
    let env = [("KEYDB_LOG_FORMAT", "json"), ("KEYDB_LOG", "info")];
    let mut dev = Dev::with(&["--nodes", "1"], &env);
    let listening = wait_for_line(&mut dev.process, "listening");
    let line: Value = serde_json::from_str(&listening).unwrap();
    assert_eq!(line["level"], "INFO", "{line}");
    assert_eq!(line["message"], "listening");
    assert!(line["target"].as_str().unwrap().starts_with("keydb_node"));
    assert!(line["timestamp"].is_string() && line["address"].is_string());

    let node = dev.http[0].clone();
    let filter = || http(&node, "GET", "/log", "");
    assert_eq!(filter(), (200, "info\n".to_owned()));
    for (wrong, words) in [
        ("loud", "no level"),
        ("keydb_node=loud", "not a log filter"),
        ("", "the body is empty"),
    ] {
        let (status, body) = http(&node, "PUT", "/log", wrong);
        assert_eq!(status, 400, "{body}");
        assert!(
            body.contains(words) && body.contains("nothing was changed"),
            "{body}"
        );
        assert_eq!(filter(), (200, "info\n".to_owned()));
    }
    assert_eq!(http(&dev.operator, "PUT", "/log", "warn").0, 200);
    assert_eq!(filter(), (200, "warn\n".to_owned()));
    let changed = wait_for_line(&mut dev.process, "KEYDB_LOG was info, and is warn");
    serde_json::from_str::<Value>(&changed).unwrap();

    // Not all of it: nobody reads while the call is answered.
    let frames = "info,h2::codec::framed_read=debug";
    assert_eq!(http(&node, "PUT", "/log", frames).0, 200);
    get_once_found(&node);
    // Of another part of the program, which had been silent; spans of calls are no part of it.
    let frames = wait_for_line(&mut dev.process, "\"target\":\"h2");
    assert!(!frames.contains("keydb_trace"), "{frames}");
}

/// Asks for a key, until the node has found its cluster.
fn get_once_found(node: &str) {
    let json = "Content-Type: application/json\r\n";
    let ask = || http_with(node, "POST", "/v1/get", json, "{\"keys\":[\"a\"]}").0;
    let not_yet = |status: &u16| *status == 503;
    let mut statuses = std::iter::repeat_with(ask).skip_while(not_yet);
    assert_eq!(statuses.next(), Some(200));
}

#[derive(Debug)]
struct Collector(mpsc::UnboundedSender<Span>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_resource in request.into_inner().resource_spans {
            for span in of_resource.scope_spans.into_iter().flat_map(|it| it.spans) {
                let _ = self.0.send(span);
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Where a test's spans come to.
async fn collector() -> (String, mpsc::UnboundedReceiver<Span>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, spans) = mpsc::unbounded_channel();
    let server = Server::builder().add_service(TraceServiceServer::new(Collector(sender)));
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    (endpoint, spans)
}

/// A call in a trace by its caller, and the names that its spans have.
struct Traced {
    path: &'static str,
    kind: &'static str,
    body: String,
    trace: &'static str,
    names: [&'static str; 2],
}

const CALLER: &str = "00f067aa0ba902b7";
/// Longer than spans are ever on their way.
const PATIENCE: Duration = Duration::from_secs(60);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The spans of a trace, once there is a call to each of three nodes.
async fn spans_of(trace: &str, spans: &mut mpsc::UnboundedReceiver<Span>, name: &str) -> Vec<Span> {
    let mut found: Vec<Span> = Vec::new();
    let at_nodes = |found: &[Span]| {
        let at_node = |it: &&Span| it.name == name && it.kind() == SpanKind::Server;
        found.iter().filter(at_node).count()
    };
    let is_whole = |found: &[Span]| {
        at_nodes(found) == 3 && found.iter().any(|it| hex(&it.parent_span_id) == CALLER)
    };
    while !is_whole(&found) {
        let Ok(span) = timeout(PATIENCE, spans.recv()).await else {
            panic!("no more spans have come; of {trace} there are {found:#?}");
        };
        let span = span.unwrap();
        if hex(&span.trace_id) == trace {
            found.push(span);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_followed_from_its_caller_through_the_node_that_it_came_to_to_the_owners_of_its_keys()
 {
    let (endpoint, mut spans) = collector().await;
    let env = [
        ("KEYDB_TRACES_ENDPOINT", &*endpoint),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
    ];
    let dev = Dev::with(&["--nodes", "3"], &env);
    get_once_found(&dev.http[0]);
    let keys = |count: usize| {
        (0..count)
            .map(|key| format!("\"key-{key}\""))
            .collect::<Vec<_>>()
    };
    let json = "application/json";
    for call in [
        // Few keys, which travel with those of others; many; and lines.
        Traced {
            path: "/v1/claim",
            kind: json,
            body: format!("{{\"ttl\":\"1h\",\"keys\":[{}]}}", keys(50).join(",")),
            trace: "4bf92f3577b34da6a3ce929d0e0e4736",
            names: ["POST /v1/claim", "keydb.shard.v1.ShardService/Claim"],
        },
        Traced {
            path: "/v1/get",
            kind: json,
            body: format!("{{\"keys\":[{}]}}", keys(500).join(",")),
            trace: "4bf92f3577b34da6a3ce929d0e0e4737",
            names: ["POST /v1/get", "keydb.shard.v1.ShardService/Get"],
        },
        Traced {
            path: "/v1/put?ttl=1h",
            kind: "application/x-ndjson",
            body: keys(500).join("\n"),
            trace: "4bf92f3577b34da6a3ce929d0e0e4738",
            names: ["POST /v1/put", "keydb.shard.v1.ShardService/Put"],
        },
    ] {
        let Traced {
            path,
            kind,
            body,
            trace,
            names,
        } = call;
        let headers = format!("traceparent: 00-{trace}-{CALLER}-01\r\nContent-Type: {kind}\r\n");
        let (status, answer) = http_with(&dev.http[0], "POST", path, &headers, &body);
        assert_eq!(status, 200, "{answer}");

        let found = spans_of(trace, &mut spans, names[1]).await;
        let with_id = |id: &[u8]| found.iter().find(|it| it.span_id == id);
        for span in &found {
            if span.name == names[0] {
                assert_eq!(hex(&span.parent_span_id), CALLER);
                continue;
            }
            assert_eq!(span.name, names[1]);
            if span.kind() == SpanKind::Server {
                let request = with_id(&span.parent_span_id).unwrap();
                assert_eq!(request.kind(), SpanKind::Client);
                let call = with_id(&request.parent_span_id).unwrap();
                assert_eq!(call.name, names[0]);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_not_there_hinders_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let dev = Dev::with(&["--nodes", "1"], &[("KEYDB_TRACES_ENDPOINT", &endpoint)]);
    assert_eq!(dev.answer(["claim", "a"]), "first\ta\n");
    // Nor does it hold up the end.
    dev.process.signal(Signal::INT);
    let mut process = dev.process;
    assert_eq!(process.child.wait().unwrap().code(), Some(0));
}
