//! Compiles the wire contract with a compiler written in Rust: nothing to install, nothing generated to commit.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let root = "../../proto";
    println!("cargo::rerun-if-changed={root}");
    let descriptors = protox::compile(
        [
            "keydb/node.proto",
            "keydb/shard/v1/admin.proto",
            "keydb/shard/v1/moves.proto",
        ],
        [root],
    )?;
    // For reflection.
    let path = PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin");
    fs::write(path, descriptors.encode_to_vec())?;
    // `Bytes` shares the receive buffer: fingerprints are not copied on their way in.
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
