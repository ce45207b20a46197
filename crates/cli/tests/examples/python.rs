//! Python, with what the examples need.

use std::{path::Path, process::Command};

use tempfile::TempDir;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Python with the stubs that are generated from the service's description.
pub(crate) struct Python {
    stubs: TempDir,
}

impl Python {
    pub(crate) fn new() -> Self {
        let stubs = tempfile::tempdir().unwrap();
        let made = Command::new("python3")
            .args(["-m", "grpc_tools.protoc", "-I", "proto"])
            .arg("--python_out")
            .arg(stubs.path())
            .arg("--grpc_python_out")
            .arg(stubs.path())
            .arg("keydb/node.proto")
            .current_dir(ROOT)
            .output()
            .expect("python3 is installed (apt install python3)");
        assert!(
            made.status.success(),
            "the examples need gRPC for Python: python3 -m pip install grpcio grpcio-tools\n{}",
            String::from_utf8_lossy(&made.stderr)
        );
        Self { stubs }
    }

    /// This program of the repository.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("python3");
        command
            .arg(Path::new(ROOT).join(program))
            .env("PYTHONPATH", self.stubs.path())
            .env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }
}
