//! TLS, client certificates and tokens between real processes, and who is kept out.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "security/authority.rs"]
mod authority;
mod support;

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use authority::Authority;
use keydb_client::{Claim, Client, ClientConfig, ClientTls, Outgoing, OwnCertificate};
use support::{Process, assert_code, assert_says, free_ports, keydb, node, stdout, wait_for_line};

const WELL: i64 = 3600;
const ADMIN: &str = "an-admin-token-of-ours";
const WRITE: &str = "a-token-that-may-write";
const READ: &str = "a-token-that-may-read";

/// A directory with certificates and tokens: `node`, `client`, `expired` of the CA `our`, and `foreign` of another.
struct Secured {
    directory: tempfile::TempDir,
    ours: Authority,
    ports: Vec<u16>,
}

type Settings = Vec<(&'static str, String)>;

impl Secured {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let ours = Authority::new(at, "our");
        ours.sign(at, "node", WELL);
        ours.sign(at, "client", WELL);
        ours.sign(at, "expired", -60);
        Authority::new(at, "foreign").sign(at, "foreign", WELL);
        let tokens = format!("# who may what\nadmin {ADMIN}\nwrite {WRITE}\nread {READ}\n");
        fs::write(at.join("tokens"), tokens).unwrap();
        for (name, token) in [("admin", ADMIN), ("write", WRITE), ("read", READ)] {
            fs::write(at.join(name), format!("{token}\n")).unwrap();
        }
        fs::write(at.join("unknown"), "a-token-that-nobody-knows").unwrap();
        Self {
            directory,
            ours,
            ports: free_ports(12),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The settings of whoever has this certificate, and trusts the servers of this CA.
    fn tls(&self, own: &str, ca: &str) -> Settings {
        let mut settings = vec![("KEYDB_TLS_CA_FILE", self.text(&format!("{ca}-ca.pem")))];
        if !own.is_empty() {
            settings.push(("KEYDB_TLS_CERT_FILE", self.text(&format!("{own}.pem"))));
            settings.push(("KEYDB_TLS_KEY_FILE", self.text(&format!("{own}-key.pem"))));
        }
        settings
    }

    fn asks_for_certificates(&self) -> (&'static str, String) {
        ("KEYDB_TLS_CLIENT_CA_FILE", self.text("our-ca.pem"))
    }

    fn accepts_tokens(&self) -> [(&'static str, String); 2] {
        [
            ("KEYDB_ACCEPTED_TOKENS_FILE", self.text("tokens")),
            ("KEYDB_TOKEN_FILE", self.text("admin")),
        ]
    }

    fn address(&self, id: usize) -> String {
        format!("localhost:{}", self.ports[id])
    }

    fn http_port(&self, id: usize) -> u16 {
        self.ports[6 + id]
    }

    fn operator_port(&self) -> u16 {
        self.ports[3]
    }

    /// Nodes 0 and 1 are the cluster, and 2 waits to become a member.
    fn start(&self, listeners: &Settings) -> Vec<Process> {
        let addresses = [self.address(0), self.address(1)].join(",");
        let create = keydb()
            .arg("init")
            .current_dir(self.directory.path())
            .env("KEYDB_NODE_ADDRESSES", addresses)
            .env("KEYDB_TOTAL_HASH_RANGES", "8")
            .output()
            .unwrap();
        assert_code(&create, 0);
        let mut nodes: Vec<_> = (0..3).map(|id| self.start_node(id, listeners)).collect();
        for node in &mut nodes[..2] {
            wait_for_line(node, "found the cluster");
        }
        nodes
    }

    fn start_node(&self, id: usize, listeners: &Settings) -> Process {
        let own = [
            ("KEYDB_NODE_ID", id.to_string()),
            ("KEYDB_PORT", self.ports[id].to_string()),
            ("KEYDB_HTTP_PORT", self.http_port(id).to_string()),
            ("KEYDB_DATA_DIR", self.text(&format!("data-{id}"))),
            // Only a protected one may listen there.
            ("KEYDB_BIND_ADDRESS", "0.0.0.0".to_owned()),
        ];
        let settings = own.iter().chain(listeners);
        let settings: Vec<_> = settings.map(|(name, value)| (*name, &**value)).collect();
        node(self.directory.path(), &settings)
    }

    fn start_operator(&self, settings: &Settings) -> Process {
        let mut command = keydb();
        command
            .arg("operator")
            .env("KEYDB_OPERATOR_PORT", self.operator_port().to_string())
            .env("KEYDB_BIND_ADDRESS", "0.0.0.0")
            .env("KEYDB_NODE_ADDRESSES", self.address(0))
            .envs(settings.iter().cloned())
            .stderr(std::process::Stdio::piped());
        let mut operator = Process::start(&mut command);
        wait_for_line(&mut operator, "found the cluster");
        operator
    }

    /// A client's command.
    fn run(&self, settings: &Settings, args: &[&str]) -> Output {
        let mut command = keydb();
        command
            .args(args)
            .env("KEYDB_NODE_ADDRESSES", self.address(0))
            .envs(settings.iter().cloned());
        command.output().unwrap()
    }

    fn outgoing(&self, own: Option<&str>) -> Outgoing {
        let own = own.map(|own| OwnCertificate {
            certificates: self.path(&format!("{own}.pem")),
            key: self.path(&format!("{own}-key.pem")),
        });
        let tls = ClientTls::read(self.path("our-ca.pem"), own).unwrap();
        Outgoing::plain().with_tls(tls)
    }

    /// What is answered over HTTPS, head and body.
    fn https(&self, own: Option<&str>, port: u16, request: &str) -> String {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let outgoing = self.outgoing(own);
        let mut stream = outgoing.handshake("localhost", stream).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }
}

fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[track_caller]
fn assert_answers(answer: &str, status: u16, words: &str) {
    let begin = format!("HTTP/1.1 {status} ");
    assert!(
        answer.starts_with(&begin) && answer.contains(words),
        "{answer}"
    );
}

#[test]
fn a_cluster_with_certificates_serves_scales_and_is_asked_for_health_and_lets_nobody_else_in() {
    let secured = Secured::new();
    let mut listeners = secured.tls("node", "our");
    listeners.push(secured.asks_for_certificates());
    let mut nodes = secured.start(&listeners);
    let client = secured.tls("client", "our");
    let claimed = secured.run(&client, &["claim", "--ttl", "1h", "a", "b", "a"]);
    assert_code(&claimed, 0);
    assert_eq!(stdout(&claimed), "first\ta\nfirst\tb\nduplicate\ta\n");

    // Nodes reach each other.
    let all = [0, 1, 2].map(|id| secured.address(id)).join(",");
    assert_code(&secured.run(&client, &["scale", "--to", &all, "--yes"]), 0);
    let got = secured.run(&client, &["get", "a", "b", "c"]);
    assert_eq!(stdout(&got), "present\ta\npresent\tb\nabsent\tc\n");
    let status = stdout(&secured.run(&client, &["status"]));
    assert!(status.contains(&secured.address(2)), "{status}");

    // So does an operator, and those who are beside them.
    let operator = secured.start_operator(&listeners);
    let get = request("POST", "/v1/get", "", r#"{"keys":["a","c"]}"#);
    for port in [secured.http_port(1), secured.operator_port()] {
        let answer = secured.https(Some("client"), port, &get);
        assert_answers(&answer, 200, r#""present":[true,false]"#);
        // Probes have no certificate.
        let ready = request("GET", "/ready", "", "");
        assert_answers(&secured.https(None, port, &ready), 200, "ready");
        let answer = secured.https(None, port, &get);
        assert_answers(&answer, 401, "a client certificate is needed");
        let mut plain = TcpStream::connect(("127.0.0.1", port)).unwrap();
        plain.write_all(get.as_bytes()).unwrap();
        let mut answer = String::new();
        plain.read_to_string(&mut answer).unwrap();
        assert_answers(&answer, 400, "this port speaks TLS");
    }
    let health = |more: &[&str]| {
        let mut command = keydb();
        command
            .arg("health")
            .args(more)
            .env("KEYDB_NODE_ID", "0")
            .env("KEYDB_BIND_ADDRESS", "0.0.0.0")
            .env("KEYDB_HTTP_PORT", secured.http_port(0).to_string())
            .env("KEYDB_OPERATOR_PORT", secured.operator_port().to_string())
            .envs(listeners.iter().cloned());
        command.output().unwrap()
    };
    assert_code(&health(&[]), 0);
    assert_code(&health(&["--operator"]), 0);

    let refused = |settings: &Settings, code: i32, words: &str| {
        let put = ["put", "--timeout", "2s", "--ttl", "1h", "never"];
        assert_says(&secured.run(settings, &put), code, &[words]);
    };
    refused(&vec![], 1, "this port speaks TLS");
    refused(&secured.tls("client", "foreign"), 3, "UnknownIssuer");
    refused(&secured.tls("", "our"), 3, "CertificateRequired");
    refused(&secured.tls("expired", "our"), 3, "CertificateExpired");
    refused(&secured.tls("foreign", "our"), 3, "UnknownCA");
    let got = secured.run(&client, &["get", "never"]);
    assert_eq!(stdout(&got), "absent\tnever\n");

    // A node that others would not let in is none of the cluster's.
    drop(nodes.pop());
    drop(operator);
    let mut foreign = secured.tls("foreign", "our");
    foreign.push(secured.asks_for_certificates());
    let mut stranger = secured.start_node(2, &foreign);
    wait_for_line(&mut stranger, "UnknownIssuer");
}

#[test]
fn a_token_allows_what_its_role_does_and_only_as_long_as_it_is_accepted() {
    let secured = Secured::new();
    let mut listeners = secured.tls("node", "our");
    listeners.extend(secured.accepts_tokens());
    let _nodes = secured.start(&listeners);
    let with = |token: &str| {
        let mut settings = secured.tls("", "our");
        if !token.is_empty() {
            settings.push(("KEYDB_TOKEN_FILE", secured.text(token)));
        }
        settings
    };
    let claim = ["claim", "--ttl", "1h", "a"];
    assert_says(&secured.run(&with(""), &claim), 1, &["a token is needed"]);
    let unknown = secured.run(&with("unknown"), &claim);
    assert_says(&unknown, 1, &["not one of those that are accepted"]);
    let reader = secured.run(&with("read"), &claim);
    assert_says(&reader, 1, &["the role read; this needs write"]);
    assert_eq!(
        stdout(&secured.run(&with("read"), &["get", "a"])),
        "absent\ta\n"
    );
    assert_eq!(stdout(&secured.run(&with("write"), &claim)), "first\ta\n");
    let snapshot = secured.run(&with("write"), &["snapshot", "create"]);
    assert_code(&snapshot, 3);
    assert!(stdout(&snapshot).contains("the role write; this needs admin"));
    let all = [0, 1, 2].map(|id| secured.address(id)).join(",");
    let scale = ["scale", "--to", &all, "--yes"];
    assert_says(
        &secured.run(&with("write"), &scale),
        1,
        &["this needs admin"],
    );
    assert_code(&secured.run(&with("admin"), &scale), 0);
    assert_eq!(
        stdout(&secured.run(&with("read"), &["get", "a"])),
        "present\ta\n"
    );

    let port = secured.http_port(1);
    let get = |headers: &str, method: &str, path: &str, body: &str| {
        secured.https(None, port, &request(method, path, headers, body))
    };
    let keys = r#"{"keys":["a"],"ttl":"1h"}"#;
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let none = get("", "POST", "/v1/get", r#"{"keys":["a"]}"#);
    assert_answers(&none, 401, "a token is needed");
    assert!(
        none.to_lowercase().contains("www-authenticate: bearer"),
        "{none}"
    );
    assert_answers(&get("", "GET", "/metrics", ""), 401, "a token is needed");
    assert_answers(&get(&bearer(READ), "GET", "/metrics", ""), 200, "keydb_");
    let denied = get(&bearer(READ), "POST", "/v1/put", keys);
    assert_answers(&denied, 403, "the role read; this needs write");
    assert_answers(&get(&bearer(WRITE), "POST", "/v1/put", keys), 200, "");
    assert_answers(&get("", "GET", "/live", ""), 200, "live");

    // An operator has the token of an admin, and lends it to nobody.
    let mut of_operator = secured.tls("node", "our");
    of_operator.extend(secured.accepts_tokens());
    let operator = secured.start_operator(&of_operator);
    let moves = format!("/hashRangeMovements?addresses={}", secured.address(0));
    let ask = |token: &str, path: &str| {
        let asked = request("GET", path, &bearer(token), "");
        secured.https(None, secured.operator_port(), &asked)
    };
    assert_answers(&ask(READ, &moves), 403, "this needs admin");
    assert_answers(&ask(ADMIN, &moves), 200, "movements");
    assert_answers(&ask(READ, "/get?keys=a"), 200, "true");
    drop(operator);

    // Another process of a node, with the tokens of others, does not take the one that it cannot ask for gone.
    let copied = std::process::Command::new("cp")
        .args(["-r", &secured.text("data-0"), &secured.text("data-5")])
        .status();
    assert!(copied.unwrap().success());
    let _ = fs::remove_file(secured.path("data-5/lock"));
    let strange = "an-admin-token-of-others";
    fs::write(secured.path("strange"), strange).unwrap();
    fs::write(secured.path("stranges"), format!("admin {strange}\n")).unwrap();
    let mut copy = secured.tls("node", "our");
    copy.push(("KEYDB_ACCEPTED_TOKENS_FILE", secured.text("stranges")));
    copy.push(("KEYDB_TOKEN_FILE", secured.text("strange")));
    copy.push(("KEYDB_NODE_ID", "0".to_owned()));
    let mut copy = secured.start_node(5, &copy);
    wait_for_line(&mut copy, "cannot be asked who it is");
    assert_eq!(copy.child.wait().unwrap().code(), Some(1));

    // It counts no more once it has left the file, and others go on.
    let tokens = format!("admin {ADMIN}\nread {READ}\n");
    fs::write(secured.path("tokens"), tokens).unwrap();
    let mut answer = String::new();
    for _ in 0..100 {
        answer = get(&bearer(WRITE), "POST", "/v1/put", keys);
        if answer.starts_with("HTTP/1.1 401") {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    assert_answers(&answer, 401, "not one of those");
    assert_answers(&get(&bearer(READ), "GET", "/metrics", ""), 200, "keydb_");
}

/// The certificate that is shown at a port.
fn shown(secured: &Secured, port: u16) -> Vec<u8> {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let outgoing = secured.outgoing(None);
    let mut stream = outgoing.handshake("localhost", stream).unwrap();
    stream
        .write_all(request("GET", "/live", "", "").as_bytes())
        .unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
    stream.conn.peer_certificates().unwrap()[0].to_vec()
}

#[test]
fn certificates_are_replaced_under_load_and_a_file_that_cannot_be_used_changes_nothing() {
    let secured = Secured::new();
    let mut listeners = secured.tls("node", "our");
    listeners.push(secured.asks_for_certificates());
    let _nodes = secured.start(&listeners);
    let is_over = Arc::new(AtomicBool::new(false));
    let load = {
        let (config, is_over) = (
            ClientConfig::new([secured.address(0)]).with_outgoing(secured.outgoing(Some("client"))),
            Arc::clone(&is_over),
        );
        thread::spawn(move || claim_until(config, &is_over))
    };
    let replaced = |what: &str| {
        let before = shown(&secured, secured.http_port(0));
        secured.ours.sign(secured.directory.path(), "node", WELL);
        secured.ours.sign(secured.directory.path(), "client", WELL);
        for _ in 0..100 {
            if shown(&secured, secured.http_port(0)) != before {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
        panic!("{what}: the certificate that is shown has not changed");
    };
    replaced("first");
    // A new client finds the new ones.
    let got = secured.run(&secured.tls("client", "our"), &["get", "nothing"]);
    assert_code(&got, 0);
    fs::write(secured.path("node.pem"), "half of a certi").unwrap();
    let good = shown(&secured, secured.http_port(0));
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(shown(&secured, secured.http_port(0)), good);
    replaced("after a broken file");

    // The time of the one that is shown is over: new connections are refused with the reason, the others live.
    secured.ours.sign(secured.directory.path(), "node", -1);
    let expired = (0..100).any(|_| {
        let get = ["get", "--timeout", "2s", "nothing"];
        let output = secured.run(&secured.tls("client", "our"), &get);
        thread::sleep(Duration::from_millis(100));
        output.status.code() == Some(3)
            && String::from_utf8_lossy(&output.stderr).contains("certificate expired")
    });
    assert!(expired);
    is_over.store(true, Relaxed);
    let claims = load.join().unwrap();
    assert!(claims > 100, "{claims}");
}

/// Claims new keys, each of which is the first, with no error.
fn claim_until(config: ClientConfig, is_over: &AtomicBool) -> u64 {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = Client::connect(config).await.unwrap();
        let hour = "1h".parse().unwrap();
        let mut calls = 0_u64;
        while !is_over.load(Relaxed) {
            let keys = (0..50).map(|key| format!("{calls}-{key}"));
            let claims = client.claim(keys, hour).await.unwrap();
            assert!(claims.iter().all(|claim| *claim == Claim::First));
            calls += 1;
        }
        calls
    })
}

#[test]
fn what_does_not_fit_together_stops_the_start_and_names_it() {
    let secured = Secured::new();
    let check = |command: &[&str], settings: Settings| {
        keydb()
            .args(command)
            .current_dir(secured.directory.path())
            .env("KEYDB_NODE_ID", "0")
            .envs(settings)
            .output()
            .unwrap()
    };
    let at_all = ("KEYDB_BIND_ADDRESS", "0.0.0.0".to_owned());
    let node = ["node", "--check"];
    let tls = || secured.tls("node", "our");
    let [accepted, token] = secured.accepts_tokens();
    let file = |name: &str| secured.text(name);
    fs::write(
        secured.path("tokens-bad"),
        format!("admin {ADMIN}\n{WRITE}\n"),
    )
    .unwrap();
    fs::write(secured.path("empty"), "").unwrap();
    let foreign_key = ("KEYDB_TLS_KEY_FILE", file("foreign-key.pem"));
    for (settings, words) in [
        (
            vec![at_all.clone()],
            vec![
                "KEYDB_BIND_ADDRESS=0.0.0.0",
                "KEYDB_INSECURE=true",
                "50051",
                "50080",
            ],
        ),
        (
            [tls(), vec![at_all.clone()]].concat(),
            vec!["KEYDB_TLS_CLIENT_CA_FILE or KEYDB_ACCEPTED_TOKENS_FILE"],
        ),
        (
            vec![("KEYDB_HTTP_BIND_ADDRESS", "::".to_owned())],
            vec!["KEYDB_HTTP_BIND_ADDRESS=::", "50080"],
        ),
        (
            vec![("KEYDB_BIND_ADDRESS", "everywhere".to_owned())],
            vec!["is not an IP address"],
        ),
        (
            vec![("KEYDB_TLS_CERT_FILE", file("node.pem"))],
            vec!["KEYDB_TLS_KEY_FILE is not"],
        ),
        (tls()[1..].to_vec(), vec!["KEYDB_TLS_CA_FILE is not"]),
        (vec![tls()[0].clone()], vec!["KEYDB_TLS_CERT_FILE is not"]),
        (
            vec![secured.asks_for_certificates()],
            vec!["KEYDB_TLS_CLIENT_CA_FILE is set, but KEYDB_TLS_CERT_FILE is not"],
        ),
        (
            [tls(), vec![foreign_key]].concat(),
            vec!["KEYDB_TLS_KEY_FILE=", "is not the key of the certificate"],
        ),
        (
            vec![("KEYDB_TLS_CA_FILE", file("nowhere"))],
            vec!["KEYDB_TLS_CA_FILE=", "nowhere", "No such file"],
        ),
        (
            vec![("KEYDB_TLS_CA_FILE", file("tokens"))],
            vec!["KEYDB_TLS_CA_FILE=", "no PEM certificate"],
        ),
        (vec![accepted.clone()], vec!["KEYDB_TOKEN_FILE is not"]),
        (
            vec![accepted.clone(), ("KEYDB_TOKEN_FILE", file("read"))],
            vec!["has the role read"],
        ),
        (
            vec![accepted.clone(), ("KEYDB_TOKEN_FILE", file("unknown"))],
            vec!["is not in KEYDB_ACCEPTED_TOKENS_FILE"],
        ),
        (
            vec![
                ("KEYDB_ACCEPTED_TOKENS_FILE", file("tokens-bad")),
                token.clone(),
            ],
            vec!["KEYDB_ACCEPTED_TOKENS_FILE=", "line 2"],
        ),
        (
            vec![("KEYDB_TOKEN_FILE", file("empty"))],
            vec!["KEYDB_TOKEN_FILE=", "one word"],
        ),
        (
            vec![("KEYDB_INSECURE", "yes".to_owned())],
            vec!["KEYDB_INSECURE=yes", "neither true nor false"],
        ),
    ] {
        let output = check(&node, settings);
        assert_says(&output, 2, &words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            ![ADMIN, WRITE, READ, "PRIVATE"]
                .iter()
                .any(|it| said.contains(it)),
            "{said}"
        );
    }
    assert_says(
        &check(&["operator"], vec![at_all.clone()]),
        2,
        &["8080", "KEYDB_INSECURE=true"],
    );
    let insecure = ("KEYDB_INSECURE", "true".to_owned());
    assert_code(&check(&node, vec![at_all.clone(), insecure]), 0);
    assert_code(
        &check(&node, [tls(), vec![at_all, accepted, token]].concat()),
        0,
    );
}

#[test]
fn certs_makes_what_nodes_and_clients_take_and_renews_it_with_the_same_ca() {
    let directory = tempfile::tempdir().unwrap();
    let certs = |args: &[&str]| {
        let output = keydb()
            .arg("certs")
            .args(args)
            .current_dir(directory.path())
            .output()
            .unwrap();
        (
            output,
            fs::read(directory.path().join("keydb-certs/keydb-ca.pem")).ok(),
        )
    };
    let (bad, _) = certs(&["a name"]);
    assert_says(&bad, 2, &["a name"]);
    let (first, ca) = certs(&["*.keydb.prod.svc", "10.0.0.7"]);
    assert_code(&first, 0);
    let file = |name: &str| directory.path().join("keydb-certs").join(name);
    let node_before = fs::read(file("node.pem")).unwrap();
    let (again, same_ca) = certs(&[]);
    assert_code(&again, 0);
    assert_eq!(ca, same_ca);
    assert_ne!(fs::read(file("node.pem")).unwrap(), node_before);
    for key in ["keydb-ca-key.pem", "node-key.pem", "client-key.pem"] {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(file(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{key}");
    }
    // What it says to export is what a node takes.
    let settings = exported(&stdout(&again));
    let check = keydb()
        .args(["node", "--check"])
        .current_dir(directory.path())
        .env("KEYDB_NODE_ID", "0")
        .env("KEYDB_BIND_ADDRESS", "::")
        .envs(settings)
        .output()
        .unwrap();
    assert_code(&check, 0);
    fs::remove_file(file("keydb-ca-key.pem")).unwrap();
    assert_says(&certs(&[]).0, 1, &["keydb-ca-key.pem is not"]);
}

/// The first block of exports.
fn exported(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().skip(1);
    let lines = lines.take_while(|line| line.starts_with("  export "));
    let words = lines.flat_map(|line| line.split_whitespace().skip(1));
    words
        .map(|word| word.split_once('=').unwrap())
        .map(|(name, value)| (name.to_owned(), Path::new(value).display().to_string()))
        .collect()
}
