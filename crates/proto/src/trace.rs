//! Traces: what belongs to one call, across processes.
//!
//! The context goes along with requests as W3C has it (<https://www.w3.org/TR/trace-context/>), by whatever propagator the process has
//! set (`opentelemetry::global`). Spans have a target of their own, [`TARGET`], and the level `debug`. Where nobody takes such spans, none
//! are made: all that is left is to look at whether somebody does, which is one comparison.

use std::collections::HashMap;

use opentelemetry::{global, propagation::Injector};
use tonic::{
    Request,
    metadata::{MetadataKey, MetadataMap},
};
use tracing::{Level, Span, debug_span, field::Empty, span_enabled};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The target of all spans.
pub const TARGET: &str = "keydb_trace";

/// The span of a request for so many keys to a node, within the current one.
pub fn client(name: &'static str, node: u32, keys: usize) -> Span {
    debug_span!(
        target: TARGET,
        "request",
        otel.name = name,
        otel.kind = "client",
        otel.status_code = Empty,
        keydb.node = node,
        keydb.keys = keys,
    )
}

/// The span of a call that comes in, within the one that its caller tells of; `header` returns the value of a header.
pub fn server<'a>(name: &'static str, header: impl Fn(&str) -> Option<&'a str>) -> Span {
    let span = debug_span!(
        target: TARGET,
        "call",
        otel.name = name,
        otel.kind = "server",
        otel.status_code = Empty,
        keydb.node = Empty,
        keydb.keys = Empty,
    );
    if !span.is_disabled() {
        let caller = global::get_text_map_propagator(|propagator| {
            let headers = propagator.fields();
            let headers =
                headers.filter_map(|name| Some((name.to_owned(), header(name)?.to_owned())));
            propagator.extract(&headers.collect::<HashMap<_, _>>())
        });
        // Refused only for a span that has begun.
        let _ = span.set_parent(caller);
    }
    span
}

/// What `span` stands for has failed.
pub fn failed(span: &Span) {
    span.record("otel.status_code", "ERROR");
}

/// A request that tells of `span`.
pub fn carrying<T>(span: &Span, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if !span.is_disabled() {
        let metadata = &mut Metadata(request.metadata_mut());
        global::get_text_map_propagator(|it| it.inject_context(&span.context(), metadata));
    }
    request
}

/// The current span, where spans are taken.
#[inline]
pub fn current() -> Span {
    match span_enabled!(target: TARGET, Level::DEBUG) {
        true => Span::current(),
        false => Span::none(),
    }
}

struct Metadata<'a>(&'a mut MetadataMap);

impl Injector for Metadata<'_> {
    fn set(&mut self, key: &str, value: String) {
        // A propagator's own headers are valid ones.
        if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), value.parse()) {
            self.0.insert(key, value);
        }
    }
}
