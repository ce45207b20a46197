//! Runs the services of docker-compose.yml as plain processes of this machine: a service's name and port become a port of
//! 127.0.0.1, a volume becomes a directory, an image becomes a program.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tempfile::TempDir;

use super::{
    file::{Condition, File, Service},
    support::{Process, free_ports, tail},
};

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Images that are no programs here. Their health is assumed.
const NOT_RUN: [&str; 2] = ["prom/prometheus:", "grafana/grafana:"];

pub(crate) struct World {
    file: File,
    directory: TempDir,
    minio: PathBuf,
    /// Which port stands for which of a service.
    ports: RefCell<BTreeMap<(String, u16), u16>>,
    running: BTreeMap<String, Process>,
    /// In their order; with those that have ended.
    pub(crate) started: Vec<String>,
}

impl World {
    pub(crate) fn new(file: File, minio: PathBuf) -> Self {
        Self {
            file,
            directory: tempfile::tempdir().unwrap(),
            minio,
            ports: RefCell::default(),
            running: BTreeMap::new(),
            started: Vec::new(),
        }
    }

    pub(crate) fn header(&self) -> Vec<String> {
        self.file.header.clone()
    }

    /// `docker compose up --wait`, with these profiles.
    pub(crate) fn up(&mut self, profiles: &[&str]) {
        let is_wanted = |service: &Service| {
            let mut of = service.profiles.iter();
            service.profiles.is_empty() || of.any(|profile| profiles.contains(&&**profile))
        };
        let services = self.file.services.iter();
        let wanted = services.filter(|(_, service)| is_wanted(service));
        let wanted: Vec<String> = wanted.map(|(name, _)| name.clone()).collect();
        for name in &wanted {
            self.start(name);
        }
        for name in &wanted {
            if self.file.services[name].healthcheck.is_some() {
                self.wait_healthy(name);
            }
        }
    }

    /// `docker compose down`: those that others wait for stop last. Returns how each has ended.
    pub(crate) fn down(&mut self) -> BTreeMap<String, ExitStatus> {
        let mut ended = BTreeMap::new();
        for name in self.started.clone().into_iter().rev() {
            if let Some(mut process) = self.running.remove(&name) {
                process.signal(Signal::TERM);
                ended.insert(name, process.child.wait().unwrap());
            }
        }
        ended
    }

    /// Starts a service behind all that it depends on, unless it has been started.
    fn start(&mut self, name: &str) {
        if self.started.iter().any(|it| it == name) {
            return;
        }
        let on = self.file.services[name].depends_on.iter();
        let on: Vec<_> = on.map(|(on, it)| (on.clone(), it.condition)).collect();
        for (on, condition) in on {
            self.start(&on);
            match condition {
                Condition::ServiceHealthy => self.wait_healthy(&on),
                Condition::ServiceCompletedSuccessfully => {
                    if let Some(status) = self.wait_ended(&on) {
                        assert!(status.success(), "{on}: {status}\n{}", self.log(&on));
                    }
                }
            }
        }
        self.started.push(name.to_owned());
        if let Some(mut command) = self.main_command(name) {
            let log = fs::File::create(self.log_path(name)).unwrap();
            command.stdin(Stdio::null());
            command.stdout(log.try_clone().unwrap()).stderr(log);
            self.running
                .insert(name.to_owned(), Process::start(&mut command));
        }
    }

    /// Waits for a service's end; `None` for one that has been waited for.
    pub(crate) fn wait_ended(&mut self, name: &str) -> Option<ExitStatus> {
        let mut process = self.running.remove(name)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = process.child.try_wait().unwrap() {
                return Some(status);
            }
            assert!(Instant::now() < deadline, "{name}\n{}", self.log(name));
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_healthy(&mut self, name: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Some(output) = self.health(name) else {
                return;
            };
            if output.status.success() {
                return;
            }
            let ended = self.child(name).try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{name} is not healthy: {output:?} {ended:?}\n{}",
                self.log(name)
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn child(&mut self, name: &str) -> &mut Child {
        &mut self.running.get_mut(name).unwrap().child
    }

    /// What a service's health check says; `None` for what is not run.
    pub(crate) fn health(&self, name: &str) -> Option<Output> {
        let check = self.file.services[name].healthcheck.as_ref().unwrap();
        let mut command = self.command(name, check.command())?;
        Some(command.output().unwrap())
    }

    /// `docker compose exec`.
    pub(crate) fn exec(&self, name: &str, command: &[String]) -> Output {
        self.command(name, command).unwrap().output().unwrap()
    }

    /// What a service runs.
    fn main_command(&self, name: &str) -> Option<Command> {
        let service = &self.file.services[name];
        let image = service.image.split([':', '@']).next().unwrap();
        let mut words: Vec<String> = match (&service.entrypoint, image) {
            (Some(entrypoint), _) => entrypoint.clone(),
            (None, "keydb") => vec!["keydb".to_owned()],
            (None, "minio/minio") => vec!["minio".to_owned()],
            // Not run.
            _ => Vec::new(),
        };
        words.extend(service.command.iter().cloned());
        let is_minio = words.first().is_some_and(|program| program == "minio");
        let mut command = self.command(name, &words)?;
        if is_minio {
            // It takes its port as an argument only.
            let port = self.port(name, 9000);
            command.args(["--address", &format!("127.0.0.1:{port}")]);
        }
        Some(command)
    }

    /// `words` with the environment of a service, in which its programs listen at ports of their own.
    fn command(&self, name: &str, words: &[String]) -> Option<Command> {
        let service = &self.file.services[name];
        if NOT_RUN.iter().any(|image| service.image.starts_with(image)) {
            return None;
        }
        let (program, arguments) = words.split_first().unwrap();
        let mut command = match &**program {
            "keydb" => Command::new(env!("CARGO_BIN_EXE_keydb")),
            "minio" => Command::new(&self.minio),
            other => Command::new(other),
        };
        command.args(arguments.iter().map(|it| self.here(name, it)));
        command.env_clear();
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command.env("HOME", self.directory.path());
        for (variable, value) in &service.environment {
            command.env(variable, self.here(name, value));
        }
        for (variable, default) in [
            ("KEYDB_PORT", 50051),
            ("KEYDB_HTTP_PORT", 50080),
            ("KEYDB_OPERATOR_PORT", 8080),
        ] {
            let given = service.environment.get(variable);
            let port = given.map_or(default, |port| port.parse().unwrap());
            command.env(variable, self.port(name, port).to_string());
        }
        command.current_dir(self.directory.path());
        Some(command)
    }

    /// Text of a service with what it names as it is called here.
    fn here(&self, of: &str, text: &str) -> String {
        let mut text = text.to_owned();
        for (source, target) in self.file.services[of].mounts() {
            let directory = self.directory.path().join(source);
            fs::create_dir_all(&directory).unwrap();
            if Path::new(&text).starts_with(target) {
                text = text.replacen(target, directory.to_str().unwrap(), 1);
            }
        }
        text = self.addresses(&text, "127.0.0.1", of);
        self.of_services(&text)
    }

    /// Text of the outside, where published ports are known.
    pub(crate) fn outside(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, service) in &self.file.services {
            for (outside, inside) in service.published() {
                let here = format!("127.0.0.1:{}", self.port(name, inside));
                text = text.replace(&format!("localhost:{outside}"), &here);
            }
        }
        self.of_services(&text)
    }

    /// `name:port` of every service as it is here.
    fn of_services(&self, text: &str) -> String {
        let names = self.file.services.keys();
        names.fold(text.to_owned(), |text, name| {
            self.addresses(&text, name, name)
        })
    }

    /// Each `host:port` as the address here of that port of a service.
    fn addresses(&self, text: &str, host: &str, of: &str) -> String {
        let pattern = format!("{host}:");
        let mut parts = text.split(&pattern);
        let mut result = parts.next().unwrap().to_owned();
        for part in parts {
            let end = part.find(|c: char| !c.is_ascii_digit());
            let (port, rest) = part.split_at(end.unwrap_or(part.len()));
            match port.parse() {
                // What has been replaced is not replaced again.
                Ok(port) if !self.ports.borrow().values().any(|it| *it == port) => {
                    let port = self.port(of, port);
                    result.push_str(&format!("127.0.0.1:{port}{rest}"));
                }
                _ => result.push_str(&format!("{host}:{part}")),
            }
        }
        result
    }

    fn port(&self, service: &str, port: u16) -> u16 {
        let mut ports = self.ports.borrow_mut();
        *ports
            .entry((service.to_owned(), port))
            .or_insert_with(|| free_ports(1)[0])
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.log"))
    }

    /// The end of what a service has logged.
    pub(crate) fn log(&self, name: &str) -> String {
        tail(&self.log_path(name), 20)
    }
}
