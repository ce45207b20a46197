//! A key a line in, an answer a line out (<https://github.com/ndjson/ndjson-spec>): for input of any length, over one request.
//!
//! What a whole call says otherwise stands in the query. Keys are sent on in batches. Those of a claim with a name have a fixed number of
//! lines, so that the same input has the same batches and gets the same answers again; all others are sent on when nothing more comes.
//! Where something fails, nothing of that batch was sent on unless the error says so, and the last line is `{"error": …}`, with the
//! problem. The lines before it are answered.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, BodyDataStream},
    extract::Request,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use keydb_client::{Claim, KEY_BYTES_MAX};
use keydb_proto::trace;
use serde_json::json;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tracing::Instrument;

use crate::{
    Cluster,
    counters::{Call, Verb},
    input::TtlText,
    keys::{self, Encoding, KeysCall, Name, Read, Write},
    limits::{READ_TIMEOUT, WRITE_TIMEOUT},
    problem::Problem,
    query::Query,
};

/// Lines that are sent on together.
const BATCH_LINES: usize = 4096;
/// A key whose every byte is escaped as `\u00xx`, its quotes and the line's end.
const LINE_BYTES_MAX: usize = 6 * KEY_BYTES_MAX + 4;
/// So long is waited for more lines before those that are there are sent on.
const PAUSE_MAX: Duration = Duration::from_millis(10);
/// Batches of answers that wait to be read.
const ANSWERS_MAX: usize = 2;

const PARAMETERS: [&str; 4] = ["ttl", "ttlSeconds", "namespace", "encoding"];

/// Answers as the lines come in. What is wrong with the query is told at once.
pub(crate) fn serve(
    cluster: Arc<Cluster>,
    verb: Verb,
    name: Option<Name>,
    request: Request,
    call: Call,
) -> Result<Response, Problem> {
    let (stream, todo, lines) = match prepare(&cluster, verb, name, request) {
        Ok(prepared) => prepared,
        Err(problem) => return call.end(Err(problem)),
    };
    let (answers, outgoing) = mpsc::channel(ANSWERS_MAX);
    let answering = async move {
        let _stream = stream;
        let worked = call.end(work(&cluster, todo, lines, &answers).await);
        if let Err(problem) = worked {
            let error = format!("{}\n", json!({"error": problem.body()}));
            send(&answers, error.into()).await;
        }
    };
    // It ends by itself: reading, working and writing have their ends, and it stops with the server.
    tokio::spawn(answering.instrument(trace::current()));
    let kind = [(CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(ReceiverStream::new(outgoing))).into_response())
}

/// Takes in what the query says, and finds room.
fn prepare(
    cluster: &Cluster,
    verb: Verb,
    name: Option<Name>,
    request: Request,
) -> Result<(OwnedSemaphorePermit, Work, Lines), Problem> {
    let stream = cluster.stream()?;
    let call = of_query(&request)?;
    let encoding = call.encoding;
    let namespace = call.namespace();
    let may_be_short = name.is_none();
    // It has no keys of its own.
    let todo = match verb {
        Verb::Get => Work::Get(call.reader(cluster)?),
        Verb::Put => Work::Put(call.writer(cluster)?),
        Verb::Claim => Work::Claim(call.writer(cluster)?, name, namespace),
    };
    let lines = Lines {
        body: request.into_body().into_data_stream(),
        buffer: BytesMut::new(),
        is_at_end: false,
        may_be_short,
        encoding,
        count: 0,
    };
    Ok((stream, todo, lines))
}

/// What is done with each batch.
enum Work {
    Get(Read),
    Put(Write),
    Claim(Write, Option<Name>, String),
}

type Answers = mpsc::Sender<Result<Bytes, Infallible>>;

/// Whether somebody still reads what comes.
async fn send(answers: &Answers, text: Bytes) -> bool {
    let sent = timeout(WRITE_TIMEOUT, answers.send(Ok(text))).await;
    matches!(sent, Ok(Ok(())))
}

async fn work(
    cluster: &Cluster,
    mut work: Work,
    mut lines: Lines,
    answers: &Answers,
) -> Result<(), Problem> {
    for batch in 0_u64.. {
        let keys = tokio::select! {
            keys = lines.next_batch() => keys?,
            problem = cluster.stopped() => return Err(problem),
        };
        if keys.is_empty() {
            return Ok(());
        }
        let entered = cluster.enter_again().await?;
        let text = answer(&mut work, batch, keys).await?;
        // The caller may be slow to read it.
        drop(entered);
        if !send(answers, text).await {
            return Ok(());
        }
    }
    Ok(())
}

async fn answer(work: &mut Work, batch: u64, keys: Vec<Vec<u8>>) -> Result<Bytes, Problem> {
    let mut text = Vec::with_capacity(24 * keys.len());
    let mut add = |line: &str| text.extend_from_slice(line.as_bytes());
    match work {
        Work::Get(read) => {
            for present in read.client.get(&keys).await? {
                add(match present {
                    true => "{\"present\":true}\n",
                    false => "{\"present\":false}\n",
                });
            }
        }
        Work::Put(write) => {
            write.client.put(&keys, write.ttl).await?;
            keys.iter().for_each(|_| add("{\"stored\":true}\n"));
        }
        Work::Claim(write, name, namespace) => {
            write.keys = keys;
            let named = name.as_ref().map(|name| name.named(namespace, Some(batch)));
            for claim in keys::claim(write, named).await? {
                add(match claim {
                    Claim::First => "{\"claim\":\"first\"}\n",
                    Claim::Duplicate => "{\"claim\":\"duplicate\"}\n",
                    Claim::Unknown => "{\"claim\":\"unknown\"}\n",
                });
            }
        }
    }
    Ok(text.into())
}

/// What the query says of all keys.
fn of_query(request: &Request) -> Result<KeysCall, Problem> {
    let query = Query::of(request, &PARAMETERS)?;
    let seconds = query.one("ttlSeconds")?.map(|text| {
        let number = text.parse::<u64>();
        number.map_err(|_| Problem::bad_field("ttlSeconds", format!("{text:?} is not a number")))
    });
    let encoding = match query.one("encoding")?.as_deref() {
        None | Some("text") => Encoding::Text,
        Some("base64") => Encoding::Base64,
        Some(other) => {
            return Err(Problem::bad_field(
                "encoding",
                format!("{other:?} is neither text nor base64"),
            ));
        }
    };
    Ok(KeysCall {
        encoding,
        ttl: query.one("ttl")?.map(TtlText::Text),
        ttl_seconds: seconds.transpose()?,
        namespace: query.one("namespace")?,
        ..KeysCall::default()
    })
}

/// The lines of a body.
struct Lines {
    body: BodyDataStream,
    buffer: BytesMut,
    is_at_end: bool,
    /// A batch may have fewer lines because the next ones are not there yet.
    may_be_short: bool,
    encoding: Encoding,
    count: u64,
}

/// What there is of a line.
enum Line {
    Whole(Bytes),
    NotYet,
    End,
}

impl Lines {
    /// The next keys; none at the end.
    async fn next_batch(&mut self) -> Result<Vec<Vec<u8>>, Problem> {
        let mut keys = Vec::new();
        while keys.len() < BATCH_LINES {
            let may_wait = keys.is_empty() || !self.may_be_short;
            match self.next_line(may_wait).await? {
                Line::Whole(line) => keys.push(self.key(&line)?),
                Line::NotYet | Line::End => break,
            }
        }
        Ok(keys)
    }

    fn key(&self, line: &[u8]) -> Result<Vec<u8>, Problem> {
        let at = |what: &str| Problem::bad(format!("line {}: {what}", self.count));
        let key: String = serde_json::from_slice(line)
            .map_err(|error| at(&format!("it is not a key as a JSON string: {error}")))?;
        if key.is_empty() {
            return Err(at("an empty key"));
        }
        let decoded = self.encoding.decode(key);
        decoded.map_err(|problem| at(problem.words()))
    }

    async fn next_line(&mut self, may_wait: bool) -> Result<Line, Problem> {
        let mut searched = 0;
        loop {
            let end = memchr::memchr(b'\n', &self.buffer[searched..]);
            if let Some(end) = end {
                let line = self.buffer.split_to(searched + end).freeze();
                self.buffer.advance(1);
                self.count += 1;
                return Ok(Line::Whole(line));
            }
            searched = self.buffer.len();
            if searched > LINE_BYTES_MAX {
                return Err(Problem::bad(format!(
                    "line {}: it is longer than any key may be, which is {KEY_BYTES_MAX} bytes",
                    self.count + 1
                )));
            }
            if self.is_at_end {
                if self.buffer.is_empty() {
                    return Ok(Line::End);
                }
                self.count += 1;
                return Ok(Line::Whole(self.buffer.split().freeze()));
            }
            let patience = if may_wait { READ_TIMEOUT } else { PAUSE_MAX };
            match timeout(patience, self.body.next()).await {
                Ok(Some(Ok(bytes))) => self.buffer.extend_from_slice(&bytes),
                Ok(Some(Err(error))) => {
                    return Err(Problem::bad(format!("the body cannot be read: {error}")));
                }
                Ok(None) => self.is_at_end = true,
                Err(_) if !may_wait => return Ok(Line::NotYet),
                Err(_) => {
                    return Err(Problem::bad(format!(
                        "nothing more has arrived within {READ_TIMEOUT:?}"
                    )));
                }
            }
        }
    }
}
