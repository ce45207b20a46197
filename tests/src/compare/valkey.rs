//! Valkey over its own protocol (RESP2), pipelined 64 deep on 16 connections.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    ops::Range,
    path::Path,
    process::Command,
    sync::Arc,
    thread,
};

use crate::{
    keys::Keys,
    load::{Store, TASKS, check},
    process::{Server, free_port},
};

const CONNECTIONS: usize = 16;
const PIPELINE: usize = 64;

pub(crate) struct Valkey {
    server: Server,
    connections: Vec<TcpStream>,
    _directory: tempfile::TempDir,
}

/// What a server keeps of its keys.
#[derive(Clone, Copy)]
pub(crate) enum Persistence {
    /// Nothing: no snapshots, no log.
    None,
    /// A log, `appendfsync always`.
    SyncedLog,
}

/// What the replies were.
#[derive(Clone, Copy, Default)]
struct Answers {
    /// `+OK` or `:1`.
    yes: usize,
    /// A null bulk string or `:0`.
    no: usize,
}

impl Valkey {
    /// Starts a server that keeps nothing, or one that has every write synced in its log before it answers.
    pub(crate) fn start(binary: &Path, persistence: Persistence) -> io::Result<Self> {
        let port = free_port()?;
        let directory = tempfile::tempdir()?;
        let append_only = match persistence {
            Persistence::None => "no",
            Persistence::SyncedLog => "yes",
        };
        let mut command = Command::new(binary);
        command
            .current_dir(directory.path())
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendfsync", "always"])
            .args(["--appendonly", append_only]);
        let server = Server::start(&mut command, port)?;
        let connect = || {
            let stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        let connections = (0..CONNECTIONS)
            .map(|_| connect())
            .collect::<io::Result<_>>()?;
        Ok(Self {
            server,
            connections,
            _directory: directory,
        })
    }

    /// Sends one command a key, spread over all connections, `pipeline` at a time.
    fn send<'k>(
        &mut self,
        total: usize,
        pipeline: usize,
        key: impl Fn(usize) -> &'k [u8] + Sync,
        command: fn(&mut Vec<u8>, &[u8]),
    ) -> io::Result<Answers> {
        let share = total.div_ceil(self.connections.len());
        thread::scope(|scope| {
            let threads: Vec<_> = (0..total)
                .step_by(share)
                .zip(&mut self.connections)
                .map(|(start, stream)| {
                    let key = &key;
                    let range = start..(start + share).min(total);
                    scope.spawn(move || exchange(stream, range, pipeline, key, command))
                })
                .collect();
            threads
                .into_iter()
                .try_fold(Answers::default(), |sum, thread| {
                    let answers = thread
                        .join()
                        .map_err(|_| io::Error::other("a connection's thread panicked"))??;
                    Ok(Answers {
                        yes: sum.yes + answers.yes,
                        no: sum.no + answers.no,
                    })
                })
        })
    }
}

fn exchange<'k>(
    stream: &mut TcpStream,
    range: Range<usize>,
    pipeline: usize,
    key: &(impl Fn(usize) -> &'k [u8] + Sync),
    command: fn(&mut Vec<u8>, &[u8]),
) -> io::Result<Answers> {
    let mut answers = Answers::default();
    let (mut request, mut reply) = (Vec::new(), vec![0; 16 * 1024]);
    for start in range.clone().step_by(pipeline) {
        let end = (start + pipeline).min(range.end);
        request.clear();
        (start..end).for_each(|index| command(&mut request, key(index)));
        stream.write_all(&request)?;
        let (mut lines, mut partial) = (0, 0);
        while lines < end - start {
            let read = stream.read(&mut reply[partial..])?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let filled = partial + read;
            let complete = reply[..filled]
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |at| at + 1);
            for line in reply[..complete].split_inclusive(|byte| *byte == b'\n') {
                match line {
                    b"+OK\r\n" | b":1\r\n" => answers.yes += 1,
                    b"$-1\r\n" | b":0\r\n" => answers.no += 1,
                    other => {
                        return Err(io::Error::other(format!(
                            "unexpected reply {:?}",
                            String::from_utf8_lossy(other)
                        )));
                    }
                }
                lines += 1;
            }
            reply.copy_within(complete..filled, 0);
            partial = filled - complete;
        }
    }
    Ok(answers)
}

fn set_nx_ex(out: &mut Vec<u8>, key: &[u8]) {
    out.extend_from_slice(b"*6\r\n$3\r\nSET\r\n$36\r\n");
    out.extend_from_slice(key);
    out.extend_from_slice(b"\r\n$1\r\n1\r\n$2\r\nNX\r\n$2\r\nEX\r\n$4\r\n3600\r\n");
}

fn exists(out: &mut Vec<u8>, key: &[u8]) {
    out.extend_from_slice(b"*2\r\n$6\r\nEXISTS\r\n$36\r\n");
    out.extend_from_slice(key);
    out.extend_from_slice(b"\r\n");
}

impl Store for Valkey {
    fn claim_new(&mut self, keys: &Arc<Keys>, range: Range<usize>) -> io::Result<()> {
        let total = range.len();
        let answers = self.send(total, PIPELINE, |at| keys.get(range.start + at), set_nx_ex)?;
        check("new keys set", total, answers.yes)
    }

    fn claim_again(&mut self, keys: &Arc<Keys>, range: Range<usize>) -> io::Result<()> {
        let total = range.len();
        let answers = self.send(total, PIPELINE, |at| keys.get(range.start + at), set_nx_ex)?;
        check("present keys refused", total, answers.no)
    }

    fn get(&mut self, keys: &Arc<Keys>) -> io::Result<()> {
        let answers = self.send(keys.len(), PIPELINE, |at| keys.get(at), exists)?;
        check("keys present", keys.len() / 2, answers.yes)?;
        check("keys absent", keys.len() / 2, answers.no)
    }

    /// Its clients do not batch by themselves: as its pipelined claims, the yardstick.
    fn claim_single(&mut self, keys: &Arc<Keys>, range: Range<usize>) -> io::Result<()> {
        const { assert!(CONNECTIONS * PIPELINE >= TASKS) };
        self.claim_new(keys, range)
    }

    fn resident_bytes(&self) -> io::Result<u64> {
        self.server.resident_bytes()
    }
}
