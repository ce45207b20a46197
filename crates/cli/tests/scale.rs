//! `keydb scale`, `operations` and `operator` with real processes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use support::{
    Dev, Process, assert_code, assert_says, free_ports, keydb, node, stderr, stdout, wait_for_line,
};

/// Nodes of which the first is the cluster, and the others wait to become members.
struct Nodes {
    directory: tempfile::TempDir,
    addresses: Vec<String>,
    nodes: Vec<Process>,
}

impl Nodes {
    fn start(count: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ports = free_ports(count);
        let addresses: Vec<String> = ports.iter().map(|it| format!("127.0.0.1:{it}")).collect();
        let created = keydb()
            .arg("init")
            .current_dir(directory.path())
            .env("KEYDB_NODE_ADDRESSES", &addresses[0])
            .env("KEYDB_DURABILITY", "memory")
            .output()
            .unwrap();
        assert_code(&created, 0);
        let start = |(id, port): (usize, &u16)| {
            let (id, port) = (id.to_string(), port.to_string());
            let env = [("KEYDB_NODE_ID", &*id), ("KEYDB_PORT", &*port)];
            let mut node = node(directory.path(), &env);
            let said = if id == "0" {
                "serving"
            } else {
                "waiting to become a member"
            };
            wait_for_line(&mut node, said);
            node
        };
        let nodes = ports.iter().enumerate().map(start).collect();
        Self {
            directory,
            addresses,
            nodes,
        }
    }

    fn client(&self, args: &[&str]) -> Command {
        let mut command = keydb();
        command.args(args).current_dir(self.directory.path());
        command.env("KEYDB_NODE_ADDRESSES", &self.addresses[0]);
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> std::process::Output {
        self.client(args).output().unwrap()
    }
}

#[test]
fn an_operation_is_previewed_begun_shown_and_aborted() {
    let nodes = Nodes::start(2);
    let to = nodes.addresses.join(",");
    let preview = nodes.run(&["scale", "--to", &to, "--preview"]);
    assert_code(&preview, 0);
    let text = stdout(&preview);
    let joins = format!("node 1 joins  {}", nodes.addresses[1]);
    assert!(
        text.contains(&joins) && text.contains("64 hash ranges move"),
        "{text}"
    );
    let none = nodes.run(&["operations"]);
    assert_eq!(stdout(&none), "no scaling operation runs\n");

    // Nobody sits there who could be asked.
    let unasked = nodes.run(&["scale", "--to", &to]);
    assert_says(&unasked, 2, &["nothing was changed", "--yes", &joins]);
    let nobody = nodes.run(&["scale", "--to", "127.0.0.1:1", "--yes"]);
    assert_says(&nobody, 2, &["no node answers at 127.0.0.1:1"]);
    let same = nodes.run(&["scale", "--to", &nodes.addresses[0], "--yes"]);
    assert_code(&same, 0);
    assert!(stdout(&same).contains("nothing to do"), "{}", stdout(&same));

    let mut scaling = nodes.client(&["scale", "--to", &to, "--yes"]);
    let mut scaling = Process::start(scaling.stderr(Stdio::piped()));
    wait_for_line(&mut scaling, "0 of 64 hash ranges have moved");
    let shown = stdout(&nodes.run(&["operations"]));
    assert!(
        shown.contains("0 of 64 hash ranges have moved; node 1 ")
            && shown.contains(&nodes.addresses[1]),
        "{shown}"
    );
    let json = stdout(&nodes.run(&["operations", "--json"]));
    assert!(
        json.contains("\"phase\":\"hand_over\"") && json.contains("\"ranges_waiting\":64"),
        "{json}"
    );
    let status = stdout(&nodes.run(&["status"]));
    assert!(
        status.contains("scaling     to ") && status.contains("0 of 64"),
        "{status}"
    );
    let elsewhere = nodes.run(&["scale", "--to", &nodes.addresses[0], "--yes"]);
    assert_says(&elsewhere, 1, &["under way", "abort"]);

    let aborted = nodes.run(&["scale", "--abort"]);
    assert_code(&aborted, 0);
    assert!(stdout(&aborted).starts_with("aborted"));
    assert_eq!(scaling.child.wait().unwrap().code(), Some(1));
    let mut said = String::new();
    scaling
        .child
        .stderr
        .as_mut()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(said.contains("somebody aborted it"), "{said}");
    let again = nodes.run(&["scale", "--abort"]);
    assert_eq!(stdout(&again), "no scaling operation runs\n");
    drop(nodes.nodes);
}

/// What an operator answers, once it listens.
fn http(address: &str, path: &str) -> String {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let answered = TcpStream::connect(address).and_then(|mut stream| {
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes())?;
            let mut reply = String::new();
            stream.read_to_string(&mut reply).map(|_| reply)
        });
        match answered {
            Ok(reply) if reply.starts_with("HTTP/1.1 200") => return reply,
            _ => assert!(Instant::now() < end, "{answered:?}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_operator_serves_a_cluster_and_stops_on_a_signal() {
    let dev = Dev::with_args(&["--nodes", "2"]);
    // The one that runs beside the nodes.
    let at = dev.greeting.split("operator  http://").nth(1).unwrap();
    let info = http(at.split_whitespace().next().unwrap(), "/info");
    assert!(info.contains("\"clusterSize\":2"), "{info}");

    let port = free_ports(1)[0].to_string();
    let mut operator = dev.client(["operator"]);
    operator
        .env("KEYDB_OPERATOR_PORT", &port)
        .stderr(Stdio::piped());
    let mut operator = Process::start(&mut operator);
    let info = http(&format!("127.0.0.1:{port}"), "/info?nodeID=1");
    assert!(info.contains("\"nodeID\":1"), "{info}");
    operator.signal(Signal::TERM);
    assert!(operator.child.wait().unwrap().success());

    let wrong = dev
        .client(["operator"])
        .env("KEYDB_OPERATOR_PORT", "http")
        .output();
    let wrong = wrong.unwrap();
    assert_says(&wrong, 2, &["KEYDB_OPERATOR_PORT=http", "1 to 65535"]);
    assert!(!stderr(&wrong).contains("listens"));
}
