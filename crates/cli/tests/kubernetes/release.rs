//! A release of the chart as plain processes of this machine: a pod's name and port become a port of 127.0.0.1, its volume a
//! directory. Probes are asked as the kubelet does; pods are not started again.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::PathBuf,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_yaml_ng::Value;
use tempfile::TempDir;

use super::{
    chart::{environment, pod},
    support::{Process, assert_code, free_ports, keydb, tail},
};

/// How long a probe may take to be passed.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Release {
    directory: TempDir,
    access_key: (String, String),
    /// Each pod as it is written.
    pods: BTreeMap<String, Value>,
    /// What is written in settings, and what it is here: addresses and directories.
    here: Vec<(String, String)>,
    /// The ports of each pod, by the number that they have in its container.
    ports: BTreeMap<(String, u64), u16>,
    running: Vec<(String, Process)>,
}

impl Release {
    /// Starts all pods of these resources, but for tests.
    pub(crate) fn start(resources: Vec<Value>, access_key: (String, String)) -> Self {
        let mut release = Self {
            directory: tempfile::tempdir().unwrap(),
            access_key,
            pods: BTreeMap::new(),
            here: Vec::new(),
            ports: BTreeMap::new(),
            running: Vec::new(),
        };
        for resource in &resources {
            let Some((spec, first)) = pod(resource) else {
                continue;
            };
            let count = match resource["kind"].as_str() {
                Some("StatefulSet") => resource["spec"]["replicas"].as_u64().unwrap(),
                _ => 1,
            };
            for id in 0..count {
                let name = first.replace("-0", &format!("-{id}"));
                release.pods.insert(name, spec.clone());
            }
        }
        release.find_names(&resources);
        let pods = release.pods.keys().filter(|name| !name.ends_with("-test"));
        for name in pods.cloned().collect::<Vec<_>>() {
            let mut command = keydb();
            let container = release.container(&name);
            let args = container["args"].as_sequence().unwrap();
            command.args(args.iter().map(|it| it.as_str().unwrap()));
            release.environment_of(&name, &mut command);
            let log = File::create(release.log(&name)).unwrap();
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log);
            let process = Process::start(&mut command);
            release.running.push((name, process));
        }
        release
    }

    /// Gives every port of every container one of this machine, and names to them as the services do.
    fn find_names(&mut self, resources: &[Value]) {
        for (name, pod) in &self.pods {
            let ports = pod["containers"][0]["ports"].as_sequence();
            for port in ports.into_iter().flatten() {
                let number = port["containerPort"].as_u64().unwrap();
                let here = free_ports(1)[0];
                self.ports.insert((name.clone(), number), here);
            }
        }
        let services = resources.iter().filter(|it| it["kind"] == "Service");
        for service in services {
            let name = service["metadata"]["name"].as_str().unwrap();
            let host = format!("{name}.keydb.svc");
            for port in service["spec"]["ports"].as_sequence().unwrap() {
                let number = port["port"].as_u64().unwrap();
                let of_operator =
                    service["spec"]["selector"]["app.kubernetes.io/component"] == "operator";
                let behind = self.ports.iter().filter(|((pod, at), _)| {
                    *at == number && pod.contains("operator") == of_operator
                });
                let is_headless = service["spec"]["clusterIP"] == "None";
                let names: Vec<(String, String)> = behind
                    .map(|((pod, _), here)| {
                        let host = if is_headless {
                            format!("{pod}.{host}")
                        } else {
                            host.clone()
                        };
                        (format!("{host}:{number}"), format!("127.0.0.1:{here}"))
                    })
                    .collect();
                // The first of those behind a service that is one address.
                let count = if is_headless { names.len() } else { 1 };
                self.here.extend(names.into_iter().take(count));
            }
        }
        // A name may be the end of a longer one, as that of a service is of its pods'.
        self.here
            .sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    }

    fn container(&self, name: &str) -> &Value {
        &self.pods[name]["containers"][0]
    }

    fn log(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.log"))
    }

    fn here(&self, text: &str) -> String {
        let here = self.here.iter();
        here.fold(text.to_owned(), |text, (name, here)| {
            text.replace(name, here)
        })
    }

    /// Sets what the container of this pod is given.
    fn environment_of(&self, name: &str, command: &mut Command) {
        let container = self.container(name);
        let volume = self.directory.path().join(name);
        fs::create_dir_all(&volume).unwrap();
        command.current_dir(&volume);
        for (variable, value) in environment(container, name) {
            let value = match &*variable {
                "KEYDB_STORAGE_ACCESSKEYID" => self.access_key.0.clone(),
                "KEYDB_STORAGE_ACCESSKEY" => self.access_key.1.clone(),
                "KEYDB_DATA_DIR" => {
                    let mounts = container["volumeMounts"].as_sequence().unwrap();
                    let mount = mounts.iter().map(|it| it["mountPath"].as_str().unwrap());
                    let inside = mount
                        .filter_map(|it| value.strip_prefix(it))
                        .next()
                        .unwrap();
                    format!("{}{inside}", volume.display())
                }
                _ => self.here(&value),
            };
            command.env(variable, value);
        }
        for (setting, number) in [
            ("KEYDB_PORT", 50051),
            ("KEYDB_HTTP_PORT", 50080),
            ("KEYDB_OPERATOR_PORT", 8080),
        ] {
            if let Some(port) = self.ports.get(&(name.to_owned(), number)) {
                command.env(setting, port.to_string());
            }
        }
    }

    /// Whether a probe of this pod is passed now.
    pub(crate) fn passes(&self, name: &str, probe: &str) -> bool {
        let container = self.container(name);
        let get = &container[probe]["httpGet"];
        let ports = container["ports"].as_sequence().unwrap();
        let port = ports.iter().find(|it| it["name"] == get["port"]).unwrap();
        let number = port["containerPort"].as_u64().unwrap();
        let here = self.ports[&(name.to_owned(), number)];
        let url = format!("http://127.0.0.1:{here}{}", get["path"].as_str().unwrap());
        let timeout = format!("{}s", container[probe]["timeoutSeconds"].as_u64().unwrap());
        let mut health = keydb();
        health.args(["health", "--url", &url, "--timeout", &timeout]);
        health.output().unwrap().status.success()
    }

    #[track_caller]
    pub(crate) fn wait_for(&self, name: &str, probes: &[&str]) {
        for probe in probes {
            let deadline = Instant::now() + PATIENCE;
            while !self.passes(name, probe) {
                let log = tail(&self.log(name), 20);
                assert!(Instant::now() < deadline, "{name}: {probe}\n{log}");
                thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// Runs a pod whose container is a shell's.
    pub(crate) fn run_to_end(&self, name: &str) {
        let container = self.container(name);
        let words = |of: &str| container[of].as_sequence().unwrap().iter();
        let words: Vec<&str> = words("command")
            .chain(words("args"))
            .map(|it| it.as_str().unwrap())
            .collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        self.environment_of(name, &mut command);
        assert_code(&command.output().unwrap(), 0);
    }

    /// `kubectl exec`.
    pub(crate) fn client(&self, name: &str, args: &[&str]) -> Output {
        let mut command = keydb();
        command.args(args.iter().map(|it| self.here(it)));
        self.environment_of(name, &mut command);
        command.output().unwrap()
    }

    /// Stops all pods, and says of each how much of its grace period was left.
    pub(crate) fn stop(mut self) -> Vec<(String, Duration)> {
        let begun = Instant::now();
        for (_, process) in &self.running {
            process.signal(Signal::TERM);
        }
        let mut left = Vec::new();
        for (name, mut process) in std::mem::take(&mut self.running) {
            let status = process.child.wait().unwrap();
            assert!(
                status.success(),
                "{name}: {status}\n{}",
                tail(&self.log(&name), 20)
            );
            let seconds = |value: &Value| Duration::from_secs(value.as_u64().unwrap_or(0));
            let grace = seconds(&self.pods[&name]["terminationGracePeriodSeconds"]);
            let hook = seconds(&self.container(&name)["lifecycle"]["preStop"]["sleep"]["seconds"]);
            left.push((name, (grace - hook).saturating_sub(begun.elapsed())));
        }
        left
    }
}
