//! Runs the real binary.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod cluster;

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// The binary, with no setting of the machine that the test runs on.
pub(crate) fn keydb() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keydb"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("KEYDB_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs the binary to its end.
pub(crate) fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    keydb().args(args).stdin(Stdio::null()).output().unwrap()
}

/// Starts a command whose input and output are the test's.
pub(crate) fn piped(command: &mut Command) -> Child {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs a command to its end with this on its standard input.
pub(crate) fn with_input(command: &mut Command, input: &[u8]) -> Output {
    let mut child = piped(command);
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeding = thread::spawn(move || {
        // A command that ends early does not read the rest.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    feeding.join().unwrap();
    output
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Asserts the exit code, and shows what was said if it is another.
#[track_caller]
pub(crate) fn assert_code(output: &Output, code: i32) {
    assert_eq!(
        output.status.code(),
        Some(code),
        "stdout: {}\nstderr: {}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Asserts the exit code, and that all of `words` were said.
#[track_caller]
pub(crate) fn assert_says(output: &Output, code: i32, words: &[&str]) {
    assert_code(output, code);
    let said = stderr(output);
    for words in words {
        assert!(said.contains(words), "{words:?} in {said}");
    }
}

/// A process that is killed when the test is over.
pub(crate) struct Process {
    pub(crate) child: Child,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self {
            child: command.spawn().unwrap(),
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }
}

impl Process {
    /// Freezes the process; from then on it does nothing, and keeps its ports.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
        let pid = Pid::from_child(&self.child);
        let (_, status) = waitpid(Some(pid), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A cluster in one process.
pub(crate) struct Dev {
    pub(crate) process: Process,
    /// All it printed before it was ready.
    pub(crate) greeting: String,
    /// Of all its nodes.
    pub(crate) addresses: Vec<String>,
    /// The same for HTTP.
    pub(crate) http: Vec<String>,
    pub(crate) operator: String,
}

impl Dev {
    pub(crate) fn start() -> Self {
        Self::with_args(&[])
    }

    pub(crate) fn with_args(args: &[&str]) -> Self {
        Self::with(args, &[])
    }

    pub(crate) fn with(args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut process = Process::start(
            keydb()
                .arg("dev")
                .args(args)
                .envs(env.iter().copied())
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
        );
        let mut out = BufReader::new(process.child.stdout.take().unwrap());
        let mut greeting = String::new();
        while !greeting.ends_with("Ctrl-C stops it.\n") {
            if out.read_line(&mut greeting).unwrap() == 0 {
                let mut said = String::new();
                let mut stderr = process.child.stderr.take().unwrap();
                stderr.read_to_string(&mut said).unwrap();
                panic!("it ended before it was ready: {greeting}{said}");
            }
        }
        let words =
            |line: &str| -> Vec<String> { line.split_whitespace().map(str::to_owned).collect() };
        let of_http = |line: &Vec<String>| {
            let url = line.iter().find_map(|word| word.strip_prefix("http://"));
            url.unwrap().to_owned()
        };
        let lines = greeting.lines().map(words);
        let nodes: Vec<_> = lines
            .clone()
            .filter(|line| line.first().is_some_and(|it| it == "node"))
            .collect();
        let operator = lines.filter(|line| line.first().is_some_and(|it| it == "operator"));
        Self {
            addresses: nodes.iter().map(|line| line[2].clone()).collect(),
            http: nodes.iter().map(of_http).collect(),
            operator: operator.map(|line| of_http(&line)).next().unwrap(),
            process,
            greeting,
        }
    }

    /// A client command for this cluster.
    pub(crate) fn client<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = keydb();
        command
            .args(args)
            .env("KEYDB_NODE_ADDRESSES", self.addresses.join(","))
            .stdin(Stdio::null());
        command
    }

    /// Runs a client command to its end and returns what it wrote.
    #[track_caller]
    pub(crate) fn answer<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        let output = self.client(args).output().unwrap();
        assert_code(&output, 0);
        stdout(&output)
    }
}

/// Asks over HTTP; the status and the body of the answer.
pub(crate) fn http(address: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    http_with(address, method, path, "", body)
}

/// The same with further header lines.
pub(crate) fn http_with(
    address: &str,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: x\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    )
    .unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

/// The last lines of a log, as far as it is there.
pub(crate) fn tail(log: &Path, count: usize) -> String {
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Ports that are free, each handed out once. They lie below those that the system gives to connections, so that none is
/// taken before its node starts.
pub(crate) fn free_ports(count: usize) -> Vec<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let candidates = std::iter::repeat_with(|| {
        let next = NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id() * 64;
        (10_000 + next % 20_000) as u16
    });
    candidates
        .take(20_000)
        .filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .take(count)
        .collect()
}

/// A node with the settings of `env`, working in `directory`, without HTTP unless `env` says otherwise. Logs are read from its
/// standard error.
pub(crate) fn node(directory: &Path, env: &[(&str, &str)]) -> Process {
    Process::start(
        keydb()
            .arg("node")
            .current_dir(directory)
            .env("KEYDB_HTTP_PORT", "off")
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped()),
    )
}

/// Reads a process's standard error up to the first line that has `text` in it; panics when it ends before.
#[track_caller]
pub(crate) fn wait_for_line(process: &mut Process, text: &str) -> String {
    let stderr = process.child.stderr.as_mut().unwrap();
    let mut seen = String::new();
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        let count = stderr.read(&mut byte).unwrap();
        assert_ne!(count, 0, "it ended without {text:?}:\n{seen}");
        line.push(byte[0]);
        if byte[0] == b'\n' {
            let text_line = String::from_utf8_lossy(&line).into_owned();
            seen.push_str(&text_line);
            if text_line.contains(text) {
                return text_line;
            }
            line.clear();
        }
    }
}
