//! Compiles the wire contract with a compiler written in Rust: nothing to install, nothing generated to commit.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let root = "../../proto";
    println!("cargo::rerun-if-changed={root}");
    let descriptors = protox::compile(
        ["keydb/shard/v1/admin.proto", "keydb/shard/v1/moves.proto"],
        [root],
    )?;
    // `Bytes` shares the receive buffer: fingerprints are not copied on their way in.
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
