//! Logs, to standard error; and traces, to a collector.
//!
//! Spans of calls have a target of their own, which the log leaves out: without a collector, none are made.

use std::{
    io::{self, IsTerminal},
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, State},
    routing::get,
};
use keydb_client::TRACE_TARGET;
use keydb_gateway::Problem;
use opentelemetry::{global, trace::TracerProvider};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracerProvider},
};
use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt,
};

use crate::{
    exit::Failure,
    settings::{LogFormat, LogSettings, log_filter},
};

/// More than any filter has.
const FILTER_BYTES_MAX: usize = 16 << 10;

/// Starts the log of a command that asks a cluster. It has no traces.
pub(crate) fn start_client(settings: &LogSettings) {
    let filter = settings.filter.as_deref().unwrap_or("warn");
    // Fails only when logging was started before, which then goes on.
    let _ = Registry::default()
        .with(lines(settings.format).with_filter(env_filter(filter)))
        .try_init();
}

/// The log and the traces of a process that serves.
#[derive(Debug)]
pub(crate) struct Logging {
    filter: Filter,
    traces: Option<SdkTracerProvider>,
}

/// What is logged, which can be changed.
#[derive(Debug, Clone)]
struct Filter {
    handle: reload::Handle<EnvFilter, Registry>,
    /// As it was given.
    text: Arc<Mutex<String>>,
}

impl Logging {
    /// Starts logging what the settings let through, or else `filter`, and, where they say so, sending spans as those of `service`.
    /// Takes a runtime, in which these are sent.
    ///
    /// # Errors
    /// When spans cannot be sent to such an address.
    pub(crate) fn start(
        settings: &LogSettings,
        filter: &str,
        service: &'static str,
    ) -> Result<Self, Failure> {
        let filter = settings.filter.as_deref().unwrap_or(filter);
        let (reloading, handle) = reload::Layer::new(env_filter(filter));
        let traces = match &settings.traces_endpoint {
            Some(endpoint) => Some(provider(endpoint, settings.traces_one_in, service)?),
            None => None,
        };
        let spans = traces.as_ref().map(|traces| {
            let only = Targets::new().with_target(TRACE_TARGET, LevelFilter::DEBUG);
            let layer = tracing_opentelemetry::layer().with_tracer(traces.tracer("keydb"));
            layer
                .with_location(false)
                .with_threads(false)
                .with_filter(only)
        });
        // Fails only when logging was started before, which then goes on.
        let _ = Registry::default()
            .with(lines(settings.format).with_filter(reloading))
            .with(spans)
            .try_init();
        let text = Arc::new(Mutex::new(filter.to_owned()));
        Ok(Self {
            filter: Filter { handle, text },
            traces,
        })
    }

    /// `/log`: tells what is logged, and takes another filter.
    pub(crate) fn router(&self) -> Router {
        Router::new()
            .route("/log", get(show).put(change))
            .layer(DefaultBodyLimit::max(FILTER_BYTES_MAX))
            .with_state(self.filter.clone())
    }

    /// Sends the spans that wait, within the exporter's timeout.
    pub(crate) async fn stop(self) {
        let Some(traces) = self.traces else { return };
        let stopping = tokio::task::spawn_blocking(move || traces.shutdown());
        match stopping.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("the last spans were not sent: {error}"),
            Err(error) => tracing::warn!("the last spans were not sent: {error}"),
        }
    }
}

/// Lines on standard error.
fn lines<S>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let lines = fmt::layer().with_writer(io::stderr);
    match format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_ansi(false).boxed(),
    }
}

/// A checked filter, without spans.
fn env_filter(filter: &str) -> EnvFilter {
    EnvFilter::new(format!("{filter},{TRACE_TARGET}=off"))
}

fn provider(
    endpoint: &str,
    one_in: u64,
    service: &'static str,
) -> Result<SdkTracerProvider, Failure> {
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint);
    let exporter = exporter
        .build()
        .map_err(|error| Failure::usage(format!("KEYDB_TRACES_ENDPOINT={endpoint}: {error}")))?;
    global::set_text_map_propagator(TraceContextPropagator::new());
    let share = Sampler::TraceIdRatioBased(1.0 / one_in as f64);
    let resource = Resource::builder().with_service_name(service);
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::ParentBased(Box::new(share)))
        .with_resource(resource.build())
        .build())
}

async fn show(State(filter): State<Filter>) -> String {
    let text = filter.text.lock().unwrap_or_else(PoisonError::into_inner);
    format!("{text}\n")
}

/// Logs by another filter from now on. One that is wrong changes nothing.
async fn change(State(filter): State<Filter>, body: String) -> Result<String, Problem> {
    let text = body.trim();
    if text.is_empty() {
        return Err(Problem::bad(
            "the body is empty; send a filter such as debug, or keydb_node=debug,info; nothing was changed",
        ));
    }
    let checked = log_filter(text)
        .map_err(|problem| Problem::bad(format!("{text:?} {problem}; nothing was changed")))?;
    let mut in_force = filter.text.lock().unwrap_or_else(PoisonError::into_inner);
    filter
        .handle
        .reload(env_filter(&checked))
        .map_err(|error| {
            Problem::unavailable(format!("the log does not take a filter: {error}"))
        })?;
    tracing::warn!("KEYDB_LOG was {in_force}, and is {checked} until the next start");
    in_force.clone_from(&checked);
    Ok(format!("{checked}\n"))
}
