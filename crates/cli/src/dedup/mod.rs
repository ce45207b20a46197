//! `keydb dedup`: writes each line whose key was not seen before.
//!
//! Three stages work at the same time on batches of lines: one thread reads, splits and finds keys ([`crate::lines`]), this one
//! claims the keys, one writes. Batches are claimed one after the other, so that the first line with a key in input order is the
//! one that is written; within a batch the claim itself sees to that. At most one batch waits between two stages.
//!
//! A batch's operation id is derived from the run's ID, the number of its first line and a digest of its keys. The batches of a file
//! depend on it only: [`BATCH_LIMITS`], [`line_bytes_max`] and [`KEYS_PER_REQUEST`] are part of what a repeated run must have in common
//! with the first. Of other inputs they depend on when lines came. A repeat that has other batches has other operation ids for them,
//! which nobody remembers; as it says that it is a repeat, its keys are `Unknown` then, and written.

mod args;
mod claim;
mod summary;
mod writer;

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    process::ExitCode,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
    time::Instant,
};

use keydb_core::KEY_BYTES_MAX;
use tokio::runtime;

pub(crate) use args::DedupArgs;
use args::{Again, Run};
use claim::{Claimer, ClusterClaimer};
use summary::{Counts, Progress};
use writer::{Answered, Writer, create_duplicates};

use crate::{
    connect,
    embedded::EmbeddedKeys,
    exit::Failure,
    lines::{Batch, Extract, Fill, Format, Input, Limits, Line, Lines, Stopper},
    output::{Stdout, json_line, say, shell_word, thousands},
    signals::{self, StopSignals},
};

/// What one claim has at most. Changing it makes runs of before unrepeatable.
const BATCH_LIMITS: Limits = Limits {
    records: 32_768,
    bytes: 4 << 20,
};
/// Likewise.
const KEYS_PER_REQUEST: usize = 8192;
/// A longer line has no field and no JSON value that are looked for. Likewise.
const KEYED_LINE_BYTES_MAX: usize = 16 << 20;

pub(crate) fn run(args: DedupArgs) -> Result<ExitCode, Failure> {
    args.check()?;
    let inputs = args.inputs();
    let out = Stdout::open()?;
    check_files(&args, &inputs, &out)?;
    let run = args.run();
    let claimer = claimer(&args, run.as_ref())?;
    let duplicates = match &args.duplicates {
        Some(path) => Some(create_duplicates(path)?),
        None => None,
    };
    let format = Format {
        terminator: b'\n',
        extract: args.extract(),
        line_bytes_max: line_bytes_max(&args.extract()),
        has_header: args.has_header(),
    };
    let fill = match run {
        Some(_) => Fill::FullOrSilent,
        None => Fill::WhatIsThere,
    };
    let started = Instant::now();
    let lines = Lines::start(inputs, format, BATCH_LIMITS, fill).map_err(Failure::no_thread)?;
    stop_at_signals(lines.stopper())?;
    let writer = Writer::new(out, duplicates, Progress::start());
    let (counts, sent, result) = pump(&lines, claimer, writer, args.strict)?;
    let elapsed = started.elapsed();
    if args.json {
        say(&json_line(&counts.json(elapsed))?);
    } else {
        say(&format!("keydb dedup: {}", counts.text(elapsed)));
    }
    if let Err(failure) = result {
        return Err(failure.with_line(&how_to_go_on(&args, run.as_ref(), sent)));
    }
    // To go on would be of no use: nothing was claimed.
    check_keys(&args, &counts)?;
    if counts.unknown > 0 && !args.json {
        say(&format!(
            "keydb: {} lines were written though they may be duplicates: of a run that is repeated, nodes remember what recent batches were told (KEYDB_ANSWER_MEMORY_AGE, 5 minutes), and what is not remembered is unknown where its key is there",
            thousands(counts.unknown)
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// A signal ends the input, so that what has been claimed is written; a second one ends the process.
fn stop_at_signals(stopper: Stopper) -> Result<(), Failure> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(signals::cannot_listen)?;
    let mut signals = {
        let _context = runtime.enter();
        StopSignals::listen()?
    };
    // Not joined: it waits for as long as the process runs.
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                stopper.stop(signals.next().await);
                signals.exit_at_next().await;
            });
        })
        .map_err(Failure::no_thread)?;
    Ok(())
}

/// A line with more bytes than this has no key that is looked for.
const fn line_bytes_max(extract: &Extract) -> usize {
    match extract {
        Extract::WholeLine => KEY_BYTES_MAX,
        Extract::Field { .. } | Extract::Json(_) | Extract::Csv { .. } => KEYED_LINE_BYTES_MAX,
    }
}

/// That no line at all has a key means that it was looked for in the wrong place.
fn check_keys(args: &DedupArgs, counts: &Counts) -> Result<(), Failure> {
    let is_part = !matches!(args.extract(), Extract::WholeLine);
    if !is_part || counts.lines == 0 || counts.without_key < counts.lines {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "none of the {} lines has a key where it was looked for, so nothing was claimed, and all of them were written: is the field or the JSON pointer right?",
        counts.lines
    )))
}

fn claimer(args: &DedupArgs, run: Option<&Run>) -> Result<Claimer, Failure> {
    let ttl = args.ttl.ttl;
    let Some(run) = run else {
        return Ok(Claimer::Embedded(Box::new(EmbeddedKeys::new(ttl))));
    };
    let mut config = connect::key_config(&args.keyspace)?;
    config.keys_per_request_max = KEYS_PER_REQUEST;
    config.coalescing = None;
    let runtime = connect::runtime()?;
    let client = runtime.block_on(connect::connect(config))?;
    Ok(Claimer::Cluster(Box::new(ClusterClaimer {
        runtime,
        client,
        ttl,
        run: run.clone(),
        was_used: false,
    })))
}

/// Claims batch after batch and hands each on to be written. Returns what was written, which lines may have been sent, and how it ended.
fn pump(
    lines: &Lines,
    mut claimer: Claimer,
    mut writer: Writer,
    strict: bool,
) -> Result<(Counts, Again, Result<(), Failure>), Failure> {
    let (to_writer, answered): (SyncSender<Answered>, Receiver<Answered>) = sync_channel(1);
    let (give_back, spares) = sync_channel(4);
    let writing = thread::Builder::new()
        .name("output".to_owned())
        .spawn(move || {
            let mut result = Ok(());
            for answered in answered {
                result = writer.write(&answered);
                if result.is_err() {
                    break;
                }
                // Nobody needs it back at the end.
                let _ = give_back.try_send(answered.batch);
            }
            (writer.finish(), result)
        })
        .map_err(Failure::no_thread)?;
    let mut sent = 0;
    let claiming = loop {
        let spare = spares.try_recv().unwrap_or_default();
        let batch = match lines.next(spare) {
            Ok(Some(batch)) => batch,
            Ok(None) => break Ok(()),
            Err(error) => break Err(Failure::from(error)),
        };
        if strict && let Err(failure) = check_strictly(&batch, sent) {
            break Err(failure);
        }
        let start = sent;
        sent += batch.len() as u64;
        match claimer.claim(&batch, start) {
            // The writer has failed, and says why.
            Ok(claims) => {
                if to_writer.send(Answered { batch, claims }).is_err() {
                    break Ok(());
                }
            }
            Err(failure) => break Err(failure),
        }
    };
    drop(to_writer);
    let (counts, written) = writing
        .join()
        .map_err(|_| Failure::failed("the thread that writes has failed"))?;
    // Of a run under the same ID before, nobody knows here how far it has come.
    let sent = match claimer.was_used() {
        true => Again::All,
        false => Again::Through(sent),
    };
    Ok((counts, sent, written.and(claiming)))
}

/// What somebody whose run broke off can do.
fn how_to_go_on(args: &DedupArgs, run: Option<&Run>, sent: Again) -> String {
    match run {
        Some(_) if sent == Again::Through(0) => "nothing was claimed; start it again".to_owned(),
        Some(run) => {
            let again = match run.sent_through(sent) {
                Again::All => "--again".to_owned(),
                Again::Through(last) => format!("--again={last}"),
            };
            let stdin = args.inputs().contains(&Input::Stdin);
            let words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
            let environment = from_environment(|name| std::env::var(name).ok());
            format!(
                "to go on, within minutes, give it the same input from its start{}, and discard what was written so far: {environment}{}",
                if stdin { " on standard input" } else { "" },
                repeat_command(words, &run.id, &again)
            )
        }
        None => "nothing is kept of this run; start it again".to_owned(),
    }
}

/// The settings that say which keys of which cluster are meant, as words before a command.
fn from_environment(variable: impl Fn(&str) -> Option<String>) -> String {
    let said = |name: &&str| Some(format!("{name}={} ", shell_word(&variable(name)?)));
    let names = ["KEYDB_NODE_ADDRESSES", "KEYDB_NAMESPACE"];
    names.iter().filter_map(said).collect()
}

/// A line without a key, at the earliest `before` lines after the beginning of the input.
fn check_strictly(batch: &Batch, before: u64) -> Result<(), Failure> {
    let is_keyless = |line: &Line<'_>| line.key.is_none() && line.form.begins_line();
    let Some(at) = batch.lines().position(|line| is_keyless(&line)) else {
        return Ok(());
    };
    Err(Failure::failed(format!(
        "line {} has no key (--strict); nothing was claimed from line {} on",
        before + at as u64 + 1,
        before + 1
    )))
}

/// The command that these words are, said again with the run's ID and with `again` in the place of any that it has.
fn repeat_command(words: impl IntoIterator<Item = String>, run: &str, again: &str) -> String {
    let mut repeated: Vec<String> = Vec::new();
    let words: Vec<String> = words.into_iter().collect();
    // What follows a `--` is files, whatever it looks like.
    let end = words.iter().position(|word| word == "--");
    let end = end.unwrap_or(words.len());
    let is = |word: &str, option: &str| {
        let value = word.strip_prefix(option);
        value.is_some_and(|value| value.is_empty() || value.starts_with('='))
    };
    let has_run = words[..end].iter().any(|word| is(word, "--run"));
    let mut said = false;
    for (index, word) in words.into_iter().enumerate() {
        if index < end && is(&word, "--again") {
            continue;
        }
        repeated.push(shell_word(&word));
        // The first word is the program.
        if !said && index > 0 && word == "dedup" {
            if !has_run {
                repeated.extend(["--run".to_owned(), shell_word(run)]);
            }
            repeated.push(again.to_owned());
            said = true;
        }
    }
    repeated.join(" ")
}

/// Looks at every file before anything is claimed: whether it is there, and is not written to at the same time.
fn check_files(args: &DedupArgs, inputs: &[Input], out: &Stdout) -> Result<(), Failure> {
    let same = |a: &Metadata, b: &Metadata| {
        a.is_file() && b.is_file() && (a.dev(), a.ino()) == (b.dev(), b.ino())
    };
    let output = out.file().metadata().ok();
    let duplicates = args
        .duplicates
        .as_ref()
        .and_then(|path| fs::metadata(path).ok());
    if let (Some(output), Some(duplicates)) = (&output, &duplicates)
        && same(output, duplicates)
    {
        return Err(Failure::usage(
            "--duplicates names the file that standard output goes to",
        ));
    }
    for input in inputs {
        let Input::File(path) = input else { continue };
        let metadata = fs::metadata(path).map_err(|error| input.error(error))?;
        if metadata.is_dir() {
            return Err(input.error(io::ErrorKind::IsADirectory.into()).into());
        }
        if metadata.is_file() {
            // Only a regular file: opening and closing a pipe would end its writer.
            fs::File::open(path).map_err(|error| input.error(error))?;
        }
        for (written, what) in [(&output, "standard output"), (&duplicates, "--duplicates")] {
            if written
                .as_ref()
                .is_some_and(|written| same(written, &metadata))
            {
                return Err(Failure::usage(format!(
                    "{input} is an input, and {what} goes to it as well"
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repeated(command: &str, again: &str) -> String {
        repeat_command(command.split(' ').map(str::to_owned), "7f", again)
    }

    #[test]
    fn a_run_whose_id_was_made_up_is_repeated_under_it() {
        let command = repeated("keydb dedup lines", "--again=3");
        assert_eq!(command, "keydb dedup --run 7f --again=3 lines");
        assert_eq!(
            repeated(&command, "--again=3"),
            "keydb dedup --again=3 --run 7f lines"
        );
        let file = repeated("keydb dedup -- --run", "--again=3");
        assert_eq!(file, "keydb dedup --run 7f --again=3 -- --run");
    }

    #[test]
    fn what_the_environment_says_of_cluster_and_namespace_is_said_again() {
        let none = from_environment(|_| None);
        assert_eq!(none, "");
        let set = |name: &str| (name == "KEYDB_NAMESPACE").then(|| "job a".to_owned());
        assert_eq!(from_environment(set), "KEYDB_NAMESPACE='job a' ");
    }

    #[test]
    fn however_often_a_run_breaks_off_the_command_says_again_once() {
        let first = repeated("keydb dedup --run r lines", "--again=3");
        assert_eq!(first, "keydb dedup --again=3 --run r lines");
        let second = repeated(&first, "--again=5");
        assert_eq!(second, "keydb dedup --again=5 --run r lines");
        for all in ["keydb dedup --run r --again lines", &second] {
            let command = repeated(all, "--again");
            assert_eq!(command, "keydb dedup --again --run r lines");
        }
    }

    #[test]
    fn files_after_two_dashes_are_repeated_whatever_their_names_are() {
        let command = "dedup dedup --run r -- dedup --again --again=1";
        let first = repeated(command, "--again=2");
        assert_eq!(
            first,
            "dedup dedup --again=2 --run r -- dedup --again --again=1"
        );
        assert_eq!(repeated(&first, "--again=2"), first);
    }
}
