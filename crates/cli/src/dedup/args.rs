//! What `keydb dedup` can be told.

use std::{path::PathBuf, str::FromStr};

use clap::Args;
use keydb_core::OperationId;

use crate::{
    args::{ConnectArgs, NamespaceArg, TtlArg},
    lines::{Extract, Input, JsonPointer},
};

/// Shown at the end of `keydb dedup --help`.
pub(crate) const EXAMPLES: &str = "\
A line's key is the line itself without its end (a carriage return belongs to it), a field, or a JSON value. The first line
with a key is written, later ones are not, for as long as the TTL lasts, across files, runs and processes. A line without a
usable key (empty, no such field, not JSON, a key over 65,536 bytes) is written and counted, and so is one whose answer is
unknown: nothing is dropped on a doubt.

Examples:
  keydb dedup events.log > unique.log
  keydb dedup --field 2 --delimiter , orders.csv
  tail -F events.jsonl | keydb dedup --json-pointer /event/id --ttl 7d | ./consumer
  keydb dedup --embedded words.txt                      without a cluster, in this process's memory
  keydb dedup --run import-7 big.log > unique.log       can be repeated from the start after a failure:
  keydb dedup --run import-7 --again big.log > unique.log

A run that breaks off says with which --again=N it is best repeated: batches up to N are repeats, later ones are new. A
bare --again takes every batch as a repeat. Nodes remember the answers of recent batches only (KEYDB_ANSWER_MEMORY_AGE, 5
minutes, and KEYDB_ANSWER_MEMORY_BYTES); keys that they no longer remember are unknown, so their lines are written.";

#[derive(Debug, Args)]
pub(crate) struct DedupArgs {
    /// The files, one after the other; - is standard input, as is no file at all
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) ttl: TtlArg,
    /// The key is the Nth field of the line
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "json_pointer")]
    pub(crate) field: Option<u32>,
    /// The byte between fields; \t for a tab, \0 for NUL
    #[arg(long, value_name = "C", default_value = "\\t", value_parser = delimiter, requires = "field")]
    pub(crate) delimiter: u8,
    /// The key is the string, number or truth value that this JSON pointer names in the line
    #[arg(long, value_name = "POINTER", value_parser = JsonPointer::from_str)]
    pub(crate) json_pointer: Option<JsonPointer>,
    /// The first line is a header: it is written, whatever it is, and not claimed. So is the first line of each further file,
    /// unless it is the same
    #[arg(long)]
    pub(crate) header: bool,
    /// Write the lines that are dropped to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) duplicates: Option<PathBuf>,
    /// Remember the keys in this process's memory instead of a cluster
    #[arg(long, conflicts_with_all = ["addresses", "timeout", "run", "namespace"])]
    pub(crate) embedded: bool,
    /// A name for this run, so that it can be repeated with --again
    #[arg(long, value_name = "ID", value_parser = run_id)]
    pub(crate) run: Option<String>,
    /// Repeat the run with this ID: lines that it found to be first are written again. With =N, only batches up to N were sent
    #[arg(long, value_name = "N", requires = "run", require_equals = true, num_args = 0..=1, default_missing_value = "all", value_parser = again)]
    pub(crate) again: Option<Again>,
    /// Write the summary, on standard error, as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) namespace: NamespaceArg,
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

/// Which batches of a run may have been sent before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// Any of them.
    All,
    /// Those up to this one, counted from 1.
    Through(u64),
}

/// A run that can be repeated.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// What the batches' operation ids are derived from.
    pub(crate) operation: OperationId,
    /// Which batches are repeats.
    pub(crate) again: Option<Again>,
}

impl DedupArgs {
    /// Where the lines come from.
    pub(crate) fn inputs(&self) -> Vec<Input> {
        if self.files.is_empty() {
            return vec![Input::Stdin];
        }
        let input = |path: &PathBuf| {
            if path.as_os_str() == "-" {
                Input::Stdin
            } else {
                Input::File(path.clone())
            }
        };
        self.files.iter().map(input).collect()
    }

    /// How a line's key is found.
    pub(crate) fn extract(&self) -> Extract {
        match (self.field, &self.json_pointer) {
            (Some(number), _) => Extract::Field {
                index: number as usize - 1,
                delimiter: self.delimiter,
            },
            (None, Some(pointer)) => Extract::Json(pointer.clone()),
            (None, None) => Extract::WholeLine,
        }
    }

    /// The run, if it has a name.
    pub(crate) fn named_run(&self) -> Option<Run> {
        self.run.as_ref().map(|id| Run {
            operation: OperationId::from_name(id),
            again: self.again,
        })
    }
}

impl Run {
    /// Whether batch `number`, counted from 1, may have been sent before.
    pub(crate) const fn is_repeat(&self, number: u64) -> bool {
        match self.again {
            None => false,
            Some(Again::All) => true,
            Some(Again::Through(last)) => number <= last,
        }
    }

    /// Which batches may have been sent by now, if this one got as far as batch `sent`.
    pub(crate) fn sent_through(&self, sent: u64) -> Again {
        match self.again {
            None => Again::Through(sent),
            Some(Again::All) => Again::All,
            Some(Again::Through(last)) => Again::Through(last.max(sent)),
        }
    }
}

fn run_id(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("a run's ID has at least one character, such as import-7".to_owned());
    }
    Ok(text.to_owned())
}

fn again(text: &str) -> Result<Again, String> {
    match text {
        "all" => Ok(Again::All),
        _ => text.parse().map(Again::Through).map_err(|_| {
            "not a batch number; give the number that the broken run named, or --again alone"
                .to_owned()
        }),
    }
}

fn delimiter(text: &str) -> Result<u8, String> {
    match (text, text.as_bytes()) {
        ("\\t", _) => Ok(b'\t'),
        ("\\0", _) => Ok(0),
        (_, [b'\n']) => Err("a line end cannot stand between the fields of a line".to_owned()),
        (_, [byte]) => Ok(*byte),
        (_, bytes) => Err(format!(
            "has {} bytes; a delimiter is one byte, such as , or \\t",
            bytes.len()
        )),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn parse(args: &[&str]) -> Result<DedupArgs, String> {
        let args = ["keydb", "dedup"].iter().chain(args);
        match Cli::try_parse_from(args)
            .map_err(|error| error.to_string())?
            .command
        {
            Command::Dedup(args) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_field_has_a_number_from_one_and_a_delimiter_of_one_byte() {
        let args = parse(&["--field", "3", "--delimiter", ","]).unwrap();
        assert!(matches!(
            args.extract(),
            Extract::Field {
                index: 2,
                delimiter: b','
            }
        ));
        let tab = parse(&["--field", "1"]).unwrap();
        assert_eq!(tab.delimiter, b'\t');
        assert_eq!(
            parse(&["--field", "1", "--delimiter", "\\0"])
                .unwrap()
                .delimiter,
            0
        );
        for wrong in [
            &["--field", "0"][..],
            &["--field", "1", "--delimiter", "ab"],
            &["--field", "1", "--delimiter", "é"],
            &["--field", "1", "--delimiter", ""],
            &["--delimiter", ","],
            &["--field", "1", "--json-pointer", "/id"],
            &["--json-pointer", "id"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn again_needs_a_run_and_a_run_needs_a_cluster() {
        assert!(parse(&["--again"]).is_err());
        assert!(parse(&["--run", "x", "--embedded"]).is_err());
        assert!(parse(&["--run", ""]).is_err());
        assert_eq!(
            parse(&["--run", "x", "--again", "f"]).unwrap().again,
            Some(Again::All)
        );
        assert_eq!(
            parse(&["--run", "x", "--again=7"]).unwrap().again,
            Some(Again::Through(7))
        );
        assert!(parse(&["--run", "x", "--again=x"]).is_err());
    }

    #[test]
    fn a_repeat_covers_what_any_earlier_run_may_have_sent() {
        let run = |again| Run {
            operation: OperationId::from_name("x"),
            again,
        };
        assert_eq!(run(None).sent_through(5), Again::Through(5));
        assert_eq!(
            run(Some(Again::Through(9))).sent_through(5),
            Again::Through(9)
        );
        assert_eq!(run(Some(Again::All)).sent_through(5), Again::All);
        assert!(run(Some(Again::Through(9))).is_repeat(9));
        assert!(!run(Some(Again::Through(9))).is_repeat(10));
    }

    #[test]
    fn wrong_ttls_are_refused_by_name_and_limit() {
        for ttl in ["0s", "-1s", "1.5s", "60y", "5"] {
            let error = parse(&["--ttl", ttl]).unwrap_err();
            assert!(
                error.contains("--ttl") && error.contains("50 years"),
                "{error}"
            );
        }
    }
}
