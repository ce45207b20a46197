//! A key a line in, an answer a line out (<https://github.com/ndjson/ndjson-spec>): for input of any length, over one request.
//!
//! What a whole call says otherwise stands in the query. Keys are sent on in batches of a fixed number of lines, so that a claim that
//! is sent again under its idempotency key has the same batches and gets the same answers. Where something fails, the last line is
//! `{"error": …}`, with the problem; the lines before it are answered.

use std::{collections::HashMap, convert::Infallible};

use axum::{
    body::{Body, BodyDataStream},
    extract::{Query, Request},
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use keydb_client::{KEY_BYTES_MAX, OperationId};
use serde_json::{Value, json};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    Cluster,
    http::Verb,
    input::TtlText,
    keys::{self, Encoding, KeysCall, Read, Write},
    limits::READ_TIMEOUT,
    problem::Problem,
};

/// Lines that are sent on together.
const BATCH_LINES: usize = 4096;
/// A key whose every byte is escaped as `\u00xx`, its quotes and the line's end.
const LINE_BYTES_MAX: usize = 6 * KEY_BYTES_MAX + 4;
/// Batches of answers that wait to be read.
const ANSWERS_MAX: usize = 2;

const PARAMETERS: [&str; 4] = ["ttl", "ttlSeconds", "namespace", "encoding"];

/// Answers as the lines come in. What is wrong with the query is told at once.
pub(crate) fn serve(
    cluster: &Cluster,
    verb: Verb,
    operation: Option<OperationId>,
    entered: OwnedSemaphorePermit,
    request: Request,
) -> Result<Response, Problem> {
    let call = of_query(&request)?;
    let encoding = call.encoding;
    // It has no keys of its own.
    let todo = match verb {
        Verb::Get => Work::Get(call.reader(cluster)?),
        Verb::Put => Work::Put(call.writer(cluster)?),
        Verb::Claim => Work::Claim(call.writer(cluster)?, operation),
    };
    let (answers, outgoing) = mpsc::channel(ANSWERS_MAX);
    let lines = Lines {
        body: request.into_body().into_data_stream(),
        buffer: BytesMut::new(),
        is_at_end: false,
        encoding,
        count: 0,
    };
    tokio::spawn(async move {
        let _entered = entered;
        if let Err(problem) = work(todo, lines, &answers).await {
            // Perhaps nobody reads it any more.
            let _ = answers
                .send(Ok(line(&json!({"error": problem.body()}))))
                .await;
        }
    });
    let kind = [(CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(ReceiverStream::new(outgoing))).into_response())
}

/// What is done with each batch.
enum Work {
    Get(Read),
    Put(Write),
    Claim(Write, Option<OperationId>),
}

type Answers = mpsc::Sender<Result<Bytes, Infallible>>;

async fn work(mut work: Work, mut lines: Lines, answers: &Answers) -> Result<(), Problem> {
    for batch in 0_u64.. {
        let keys = lines.next_batch().await;
        // What came before a line that cannot be read is answered.
        let (keys, wrong) = match keys {
            Ok(keys) => (keys, None),
            Err((keys, problem)) => (keys, Some(problem)),
        };
        if !keys.is_empty() {
            let text = answer(&mut work, batch, keys).await?;
            if answers.send(Ok(text)).await.is_err() {
                return Ok(());
            }
        } else if wrong.is_none() {
            return Ok(());
        }
        if let Some(problem) = wrong {
            return Err(problem);
        }
    }
    Ok(())
}

async fn answer(work: &mut Work, batch: u64, keys: Vec<Vec<u8>>) -> Result<Bytes, Problem> {
    let mut text = Vec::new();
    let mut add = |answer: Value| {
        text.extend_from_slice(answer.to_string().as_bytes());
        text.push(b'\n');
    };
    match work {
        Work::Get(read) => {
            let present = read.client.get(&keys).await?;
            present
                .into_iter()
                .for_each(|present| add(json!({"present": present})));
        }
        Work::Put(write) => {
            write.client.put(&keys, write.ttl).await?;
            keys.iter().for_each(|_| add(json!({"stored": true})));
        }
        Work::Claim(write, operation) => {
            write.keys = keys;
            let claims = keys::claim(write, operation.map(|id| id.part(batch))).await?;
            claims
                .into_iter()
                .for_each(|claim| add(json!({"claim": keys::name_of(claim)})));
        }
    }
    Ok(text.into())
}

fn line(value: &Value) -> Bytes {
    format!("{value}\n").into()
}

/// What the query says of all keys.
fn of_query(request: &Request) -> Result<KeysCall, Problem> {
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(request.uri())
        .map_err(|error| Problem::bad(format!("the query cannot be read: {error}")))?;
    let mut given = HashMap::new();
    for (name, value) in pairs {
        let Some(known) = PARAMETERS.into_iter().find(|known| *known == name) else {
            return Err(Problem::bad_field(
                &name,
                format!(
                    "there is no such parameter; there is {}",
                    PARAMETERS.join(", ")
                ),
            ));
        };
        if given.insert(known, value).is_some() {
            return Err(Problem::bad_field(known, "is given twice; give it once"));
        }
    }
    let mut take = |name| given.remove(name);
    let seconds = take("ttlSeconds").map(|text: String| {
        let number = text.parse::<u64>();
        number.map_err(|_| Problem::bad_field("ttlSeconds", format!("{text:?} is not a number")))
    });
    let encoding = match take("encoding").as_deref() {
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
        ttl: take("ttl").map(TtlText::Text),
        ttl_seconds: seconds.transpose()?,
        namespace: take("namespace"),
        ..KeysCall::default()
    })
}

/// The lines of a body.
struct Lines {
    body: BodyDataStream,
    buffer: BytesMut,
    is_at_end: bool,
    encoding: Encoding,
    count: u64,
}

impl Lines {
    /// The next keys; none at the end. Where a line cannot be read, those before it, and why.
    async fn next_batch(&mut self) -> Result<Vec<Vec<u8>>, (Vec<Vec<u8>>, Problem)> {
        let mut keys = Vec::new();
        while keys.len() < BATCH_LINES {
            match self.next_line().await {
                Ok(Some(line)) => match self.key(&line) {
                    Ok(key) => keys.push(key),
                    Err(problem) => return Err((keys, problem)),
                },
                Ok(None) => break,
                Err(problem) => return Err((keys, problem)),
            }
        }
        Ok(keys)
    }

    fn key(&self, line: &[u8]) -> Result<Vec<u8>, Problem> {
        let at = |problem| Problem::bad(format!("line {}: {problem}", self.count));
        let key: String = serde_json::from_slice(line)
            .map_err(|error| at(format!("it is not a key as a JSON string: {error}")))?;
        if key.is_empty() {
            return Err(at("an empty key".to_owned()));
        }
        self.encoding.decode(key).map_err(|problem| {
            let text = problem.body()["detail"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            at(text)
        })
    }

    async fn next_line(&mut self) -> Result<Option<Bytes>, Problem> {
        let mut searched = 0;
        loop {
            let end = self.buffer[searched..]
                .iter()
                .position(|byte| *byte == b'\n');
            if let Some(end) = end {
                let line = self.buffer.split_to(searched + end).freeze();
                self.buffer.advance(1);
                self.count += 1;
                return Ok(Some(line));
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
                    return Ok(None);
                }
                self.count += 1;
                return Ok(Some(self.buffer.split().freeze()));
            }
            match timeout(READ_TIMEOUT, self.body.next()).await {
                Ok(Some(Ok(bytes))) => self.buffer.extend_from_slice(&bytes),
                Ok(Some(Err(error))) => {
                    return Err(Problem::bad(format!("the body cannot be read: {error}")));
                }
                Ok(None) => self.is_at_end = true,
                Err(_) => {
                    return Err(Problem::bad(format!(
                        "nothing more has arrived within {READ_TIMEOUT:?}"
                    )));
                }
            }
        }
    }
}
