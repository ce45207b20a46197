//! The fuzz targets' committed corpus, through the same checks as when fuzzing.

#![allow(clippy::unwrap_used, reason = "a test that fails here has failed")]

#[path = "../../../fuzz/drive.rs"]
#[allow(
    unreachable_pub,
    reason = "it belongs to the fuzz targets, where it is a module as well"
)]
mod drive;

use std::{fs, path::Path};

#[test]
fn every_input_of_the_corpus_is_read_or_refused_and_never_a_panic() {
    let corpus = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus"));
    for (name, target) in drive::TARGETS {
        let mut inputs = 0;
        for input in fs::read_dir(corpus.join(name)).unwrap() {
            let bytes = fs::read(input.unwrap().path()).unwrap();
            target(&bytes);
            // And what is one flip away.
            for at in (0..bytes.len()).step_by(1 + bytes.len() / 200) {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << (at % 8);
                target(&flipped);
            }
            inputs += 1;
        }
        assert!(inputs > 0, "the corpus has something for {name}");
    }
}
