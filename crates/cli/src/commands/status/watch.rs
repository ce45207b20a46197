//! `keydb status --watch`: again and again, with what has happened in between.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use keydb_client::{ClientConfig, NodeStatus, OperationCounts};
use keydb_core::ClusterMap;
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

use super::{Answers, Nodes, as_json, as_text, ask};
use crate::{
    exit::Failure,
    output::{Stdout, say, thousands},
    signals::StopSignals,
};

/// Puts the cursor at the top left, and clears the screen.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Keys a second that nodes were asked for, since the answer before.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Rates {
    gets: f64,
    puts: f64,
    claims: f64,
}

impl Rates {
    /// Of all nodes that answered both times, and were not started in between; `None` where there is none.
    fn between(before: &Nodes, now: &Nodes) -> Option<Self> {
        let rates = now.iter().filter_map(|(node, status)| {
            let status = status.as_ref().ok()?;
            let (_, earlier) = before.iter().find(|(it, _)| it.id == node.id)?;
            Self::of_node(earlier.as_ref().ok()?, status)
        });
        rates.reduce(|sum, it| Self {
            gets: sum.gets + it.gets,
            puts: sum.puts + it.puts,
            claims: sum.claims + it.claims,
        })
    }

    fn of_node(before: &NodeStatus, now: &NodeStatus) -> Option<Self> {
        let passed_ms = now.time.0.checked_sub(before.time.0).filter(|it| *it > 0)?;
        if now.incarnation != before.incarnation {
            return None;
        }
        let rate = |before: OperationCounts, now: OperationCounts| {
            now.keys.saturating_sub(before.keys) as f64 * 1000.0 / passed_ms as f64
        };
        Some(Self {
            gets: rate(before.gets, now.gets),
            puts: rate(before.puts, now.puts),
            claims: rate(before.claims, now.claims),
        })
    }

    /// For people.
    fn line(self) -> String {
        let text = |rate: f64| thousands(rate.round() as u64);
        format!(
            "rates       gets {}, puts {}, claims {} keys a second\n",
            text(self.gets),
            text(self.puts),
            text(self.claims)
        )
    }
}

/// Shows the status again and again, until a signal comes or nobody reads any more.
pub(super) async fn run(config: ClientConfig, every: Duration, json: bool) -> Result<(), Failure> {
    let mut signals = StopSignals::listen()?;
    let mut out = Stdout::open()?;
    let is_screen = !json && io::stdout().is_terminal();
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before: Option<Answers> = None;
    loop {
        let asked = async {
            ticks.tick().await;
            ask(config.clone()).await
        };
        let asked = tokio::select! {
            _ = signals.next() => return Ok(()),
            asked = asked => asked,
        };
        let (map, nodes) = match asked {
            Ok(answers) => answers,
            // A cluster that does not answer at all is perhaps not where it is looked for.
            Err(failure) if before.is_none() => return Err(failure),
            Err(failure) => {
                say(&format!("keydb: {failure}"));
                continue;
            }
        };
        let rates = before.as_deref().and_then(|it| Rates::between(it, &nodes));
        let shown = match json {
            true => shown_as_json(&map, &nodes, rates),
            false => shown_as_text(&map, &nodes, rates, is_screen),
        };
        match out.write_unless_closed(shown.as_bytes())? {
            true => before = Some(nodes),
            false => return Ok(()),
        }
    }
}

fn shown_as_text(map: &ClusterMap, nodes: &Nodes, rates: Option<Rates>, is_screen: bool) -> String {
    let rates = rates.map(Rates::line).unwrap_or_default();
    let text = as_text(map, nodes, &rates);
    match is_screen {
        true => format!("{CLEAR}{text}"),
        false => format!("{text}\n"),
    }
}

fn shown_as_json(map: &ClusterMap, nodes: &Nodes, rates: Option<Rates>) -> String {
    let mut value = as_json(map, nodes);
    value["keys_per_second"] = json!(rates.map(|rates| json!({
        "get": rates.gets,
        "put": rates.puts,
        "claim": rates.claims,
    })));
    format!("{value}\n")
}
