//! The last stage: writes the lines that stay, and those that go to where duplicates are kept.

use std::{
    fs::File,
    io::{self, Write},
};

use keydb_core::Claim;

use super::summary::{Counts, Progress};
use crate::{
    exit::Failure,
    lines::{Batch, Form},
    output::Stdout,
};

/// A batch with the answers for those of its records that have a key.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) batch: Batch,
    pub(crate) claims: Vec<Claim>,
}

/// Where lines go.
#[derive(Debug)]
pub(crate) struct Writer {
    out: Stdout,
    duplicates: Option<Duplicates>,
    progress: Progress,
    kept: Vec<u8>,
    dropped: Vec<u8>,
}

/// The file that keeps what was dropped.
#[derive(Debug)]
pub(crate) struct Duplicates {
    pub(crate) file: File,
    /// As the user called it.
    pub(crate) name: String,
}

impl Writer {
    pub(crate) fn new(out: Stdout, duplicates: Option<Duplicates>, progress: Progress) -> Self {
        Self {
            out,
            duplicates,
            progress,
            kept: Vec::new(),
            dropped: Vec::new(),
        }
    }

    /// Writes one batch.
    pub(crate) fn write(&mut self, answered: &Answered) -> Result<(), Failure> {
        let Answered { batch, claims } = answered;
        let mut counts = Counts::default();
        self.kept.clear();
        self.dropped.clear();
        let bytes = batch.bytes();
        let mut claims = claims.iter();
        let mut at = 0;
        // Neighbours that go the same way are copied together.
        let (mut run_start, mut run_is_kept) = (0, true);
        for line in batch.lines() {
            let claim = line.key.and_then(|_| claims.next().copied());
            let is_kept = claim != Some(Claim::Duplicate) && line.form != Form::HeaderAgain;
            if line.form.begins_line() {
                counts.add(claim);
            }
            if is_kept != run_is_kept {
                self.run(&bytes[run_start..at], run_is_kept);
                (run_start, run_is_kept) = (at, is_kept);
            }
            at += line.raw.len();
        }
        if run_start == 0 && run_is_kept {
            self.out.write(bytes)?;
        } else {
            self.run(&bytes[run_start..], run_is_kept);
            self.out.write(&self.kept)?;
        }
        if let Some(Duplicates { file, name }) = &mut self.duplicates {
            file.write_all(&self.dropped).map_err(|error| {
                Failure::failed(format!("cannot write duplicates to {name:?}: {error}"))
            })?;
        }
        self.progress.add(&counts);
        Ok(())
    }

    /// What was written, at the end.
    pub(crate) fn finish(self) -> Counts {
        self.progress.finish()
    }

    fn run(&mut self, bytes: &[u8], is_kept: bool) {
        if is_kept {
            self.kept.extend_from_slice(bytes);
        } else if self.duplicates.is_some() {
            self.dropped.extend_from_slice(bytes);
        }
    }
}

/// Creates the file for duplicates, empty.
pub(crate) fn create_duplicates(path: &std::path::Path) -> Result<Duplicates, Failure> {
    let name = path.display().to_string();
    let create = |path| -> io::Result<File> { File::create(path) };
    create(path)
        .map(|file| Duplicates {
            file,
            name: name.clone(),
        })
        .map_err(|error| Failure::failed(format!("cannot create {name:?}: {error}")))
}
