//! `keydb scale`: changes which nodes the cluster has. It needs no operator: any member does what is asked.

pub(crate) mod operations;

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use keydb_client::{AdminClient, NodeId, ScalePreview, ScaleProgress};
use serde_json::{Value, json};

use crate::{
    args::{Addresses, ConnectArgs, addresses},
    connect,
    exit::Failure,
    output::{answer, bytes_text, say, thousands},
};

const EXAMPLES: &str = "\
New nodes must run already, with the cluster's object storage; they wait until they are members. Clients go on all the while. Interrupted,
the operation goes on by itself: the same command shows it again, `keydb operations` as well.

Examples:
  keydb scale --to keydb-0:50051,keydb-1:50051,keydb-2:50051 --preview
  keydb scale --to keydb-0:50051,keydb-1:50051,keydb-2:50051
  keydb scale --abort";

/// An operation that takes longer is no longer watched.
const WATCH_MAX: Duration = Duration::from_secs(86_400);
/// How often a line is written where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
const BAR_WIDTH: usize = 40;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ScaleArgs {
    /// All nodes that the cluster is to have, host:port with commas between
    #[arg(long, value_name = "ADDRESSES", value_parser = addresses, required_unless_present = "abort", conflicts_with = "abort")]
    pub(crate) to: Option<Addresses>,
    /// Say what would move, and change nothing
    #[arg(long, conflicts_with = "abort")]
    pub(crate) preview: bool,
    /// Do not ask first
    #[arg(long)]
    pub(crate) yes: bool,
    /// Give up what has not moved yet of the operation that runs
    #[arg(long)]
    pub(crate) abort: bool,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

pub(crate) fn run(args: &ScaleArgs) -> Result<ExitCode, Failure> {
    let config = connect::config(&args.connect)?;
    connect::runtime()?.block_on(async {
        let admin = AdminClient::from(connect::connect(config).await?);
        let done = match &args.to {
            Some(Addresses(to)) => scale(&admin, to, args).await,
            None => abort(&admin, args.json).await,
        };
        admin.close(Duration::ZERO).await;
        done
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn abort(admin: &AdminClient, json: bool) -> Result<(), Failure> {
    let aborted = admin.abort(None).await?;
    let text = match aborted {
        true => "aborted: what had not moved stays where it is\n",
        false => "no scaling operation runs\n",
    };
    answer(json, || json!({"aborted": aborted}), || text.to_owned())
}

async fn scale(admin: &AdminClient, to: &[String], args: &ScaleArgs) -> Result<(), Failure> {
    let preview = admin.preview(to).await?;
    if args.preview {
        return answer(args.json, || as_json(&preview), || as_text(&preview));
    }
    let runs = admin.operation().await?.is_some();
    if !preview.planned.changed && !runs {
        let text = || "nothing to do: the cluster has these nodes\n".to_owned();
        return answer(args.json, || as_json(&preview), text);
    }
    say(as_text(&preview).trim_end());
    if !args.yes {
        confirm()?;
    }
    let mut bar = Bar::new();
    let done = admin
        .auto_scale(to, WATCH_MAX, |progress| bar.show(progress))
        .await;
    bar.end();
    done?;
    let text = || format!("done: the cluster has {} nodes\n", to.len());
    answer(args.json, || as_json(&preview), text)
}

/// Asks whoever sits there.
fn confirm() -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(
            "nothing was changed: say --yes to go on without being asked",
        ));
    }
    let _ = write!(io::stderr(), "Go on? [y/N] ");
    let mut line = String::new();
    let read = io::stdin().read_line(&mut line);
    match (read, line.trim()) {
        (Ok(_), "y" | "Y" | "yes") => Ok(()),
        _ => Err(Failure::failed("nothing was changed")),
    }
}

fn as_text(preview: &ScalePreview) -> String {
    let planned = &preview.planned;
    let mut text = String::new();
    for (verb, members) in [("joins", &planned.joins), ("leaves", &planned.leaves)] {
        for (id, address) in members {
            let _ = writeln!(text, "node {id} {verb}  {address}");
        }
    }
    let _ = writeln!(
        text,
        "{} hash ranges move: {} keys, about {} and {:.0} s",
        planned.moves.len(),
        thousands(preview.keys),
        bytes_text(preview.bytes),
        preview.expected.as_secs_f64().ceil()
    );
    if !preview.silent.is_empty() {
        let silent: Vec<String> = preview.silent.iter().map(NodeId::to_string).collect();
        let _ = writeln!(
            text,
            "without the keys of nodes that did not answer: {}",
            silent.join(", ")
        );
    }
    text
}

fn as_json(preview: &ScalePreview) -> Value {
    let planned = &preview.planned;
    let members = |members: &[(NodeId, String)]| -> Value {
        let members = members.iter();
        members
            .map(|(id, address)| json!({"node": id, "address": address}))
            .collect()
    };
    let moves = planned.moves.iter();
    json!({
        "changed": planned.changed,
        "joins": members(&planned.joins),
        "leaves": members(&planned.leaves),
        "moves": moves.map(|it| json!({"range": it.range, "from": it.from, "to": it.to})).collect::<Vec<_>>(),
        "keys": preview.keys,
        "bytes": preview.bytes,
        "expected_ms": preview.expected.as_millis() as u64,
        "silent_nodes": preview.silent,
    })
}

/// Shows how far an operation is: a bar on a terminal, a line now and then otherwise.
struct Bar {
    is_terminal: bool,
    last_line: Option<(Instant, usize)>,
}

impl Bar {
    fn new() -> Self {
        Self {
            is_terminal: io::stderr().is_terminal(),
            last_line: None,
        }
    }

    fn show(&mut self, progress: &ScaleProgress) {
        if self.is_terminal {
            let done = BAR_WIDTH * progress.moved() / progress.moves.max(1);
            let _ = write!(
                io::stderr(),
                "\r[{:<BAR_WIDTH$}] {}\x1b[K",
                "#".repeat(done),
                operations::line(progress)
            );
            self.last_line = Some((Instant::now(), progress.moved()));
            return;
        }
        let is_due = self.last_line.is_none_or(|(at, moved)| {
            let has_news = moved != progress.moved() || !progress.waits_for.is_empty();
            at.elapsed() >= LINE_INTERVAL && has_news
        });
        if is_due {
            say(&operations::line(progress));
            self.last_line = Some((Instant::now(), progress.moved()));
        }
    }

    fn end(&self) {
        if self.is_terminal && self.last_line.is_some() {
            say("");
        }
    }
}
