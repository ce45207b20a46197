//! What `keydb bench` can be told.

use std::{str::FromStr, time::Duration};

use clap::Args;
use keydb_core::{Namespace, Ttl};
use serde::Serialize;

use crate::{args::ConnectArgs, exit::Failure, settings};

const EXAMPLES: &str = "\
Keys are 36 bytes long and look like UUIDs; key number i of a seed is always the same. Claims and puts take new keys, one
after the other; gets take keys of the preload (the hit share of them) and keys that are never stored.

With --rate, calls are due at fixed times, and a call's latency counts from when it was due, also when it could only be made
later (corrected for coordinated omission). Without it, each of the concurrent callers makes its next call when the one
before has been answered.

What is stored lies in the namespace keydb-bench and lives for ten minutes, unless --namespace and --ttl say otherwise. Before
anything is stored in a cluster that has keys, bench asks; --yes answers that, also where there is no terminal to ask at.

Examples:
  keydb bench                                                        claims of new keys, as fast as it goes
  keydb bench --preload 10000000 --mix get=90,claim=10 --hit-share 0.5
  keydb bench --batch 1 --concurrency 512                            single keys, batched by the client library
  keydb bench --mix claim=1 --rate 100000 --duration 60s --json
  keydb bench --embedded --operations 20000000                       the key set alone, on one thread";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BenchArgs {
    /// How often each operation is called, relative to the others: claim, get, put
    #[arg(long, value_name = "OP=N,…", default_value = "claim=100")]
    pub(crate) mix: Mix,
    /// Keys in a call; 1 uses single-key calls, which the client library puts together
    #[arg(long, value_name = "KEYS", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) batch: u32,
    /// Calls at the same time [default: 16, or 512 with --batch 1, or 1 with --embedded]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) concurrency: Option<u32>,
    /// Different keys that claims and puts take before they begin again with the first [default: always new ones]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) keys: Option<u64>,
    /// Keys to store before the measurement
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preload: u64,
    /// Share of the keys of gets that are of the preload, 0 to 1 [default: 1, or 0 without a preload]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub(crate) hit_share: Option<f64>,
    /// How long to go on [default: 10s, unless --operations is given]
    #[arg(long, value_name = "TIME", value_parser = settings::duration)]
    pub(crate) duration: Option<Duration>,
    /// How many keys to stop after
    #[arg(long, value_name = "KEYS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) operations: Option<u64>,
    /// Keys a second, at fixed times [default: as fast as it goes]
    #[arg(long, value_name = "KEYS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rate: Option<u64>,
    /// Which keys: the same seed gives the same ones [default: random]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// How long the keys live that are stored: 1s to 50y, a whole number with a unit (s, m, h, d, w, y)
    #[arg(
        long,
        value_name = "TTL",
        default_value = "10m",
        allow_hyphen_values = true
    )]
    pub(crate) ttl: Ttl,
    /// Write into a cluster that has keys without asking
    #[arg(long)]
    pub(crate) yes: bool,
    /// Measure a key set of this process instead of a cluster
    #[arg(long, conflicts_with_all = ["addresses", "timeout"])]
    pub(crate) embedded: bool,
    /// Answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The key space [default: keydb-bench]
    #[arg(long, value_name = "NAME", value_parser = settings::namespace, conflicts_with = "embedded")]
    pub(crate) namespace: Option<Namespace>,
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Claim,
    Get,
    Put,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Claim, Self::Get, Self::Put];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Get => "get",
            Self::Put => "put",
        }
    }
}

/// How often each operation is called, relative to the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mix([u32; 3]);

impl Mix {
    /// The weight of an operation.
    pub(crate) const fn weight(&self, kind: Kind) -> u32 {
        self.0[kind as usize]
    }

    /// The operation that random bits choose.
    pub(crate) fn choose(&self, random: u64) -> Kind {
        let total: u64 = self.0.iter().map(|weight| u64::from(*weight)).sum();
        let mut at = random % total;
        for kind in Kind::ALL {
            let weight = u64::from(self.weight(kind));
            if at < weight {
                return kind;
            }
            at -= weight;
        }
        Kind::Claim
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let right = "a mix is claim, get and put with their weights, such as claim=10,get=90";
        let mut weights = [0; 3];
        for part in text.split(',') {
            let (name, weight) = part
                .split_once('=')
                .ok_or_else(|| format!("{part:?} has no weight; {right}"))?;
            let kind = Kind::ALL
                .into_iter()
                .find(|kind| kind.name() == name.trim())
                .ok_or_else(|| format!("there is no operation {name:?}; {right}"))?;
            weights[kind as usize] = weight
                .trim()
                .parse()
                .map_err(|_| format!("{weight:?} is not a weight; {right}"))?;
        }
        if weights == [0; 3] {
            return Err(format!("all weights are 0; {right}"));
        }
        Ok(Self(weights))
    }
}

fn share(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| "is not a number from 0 to 1".to_owned())
}

/// What the arguments come to.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) mix: Mix,
    pub(crate) batch: usize,
    pub(crate) concurrency: usize,
    pub(crate) distinct_keys: Option<u64>,
    pub(crate) preload: u64,
    pub(crate) hit_share: f64,
    pub(crate) duration: Option<Duration>,
    pub(crate) operations: Option<u64>,
    pub(crate) rate: Option<u64>,
    pub(crate) seed: u64,
}

impl Plan {
    /// Whether keys are stored.
    pub(crate) const fn is_writing(&self) -> bool {
        self.preload > 0 || self.mix.weight(Kind::Claim) > 0 || self.mix.weight(Kind::Put) > 0
    }
}

/// How long a measurement takes when nothing else ends it.
const DURATION_DEFAULT: Duration = Duration::from_secs(10);

impl BenchArgs {
    /// Fills in what was left out; `seed` is for when none was given.
    pub(crate) fn plan(&self, seed: u64) -> Result<Plan, Failure> {
        let concurrency = match (self.concurrency, self.embedded, self.batch) {
            (None, true, _) => 1,
            (None, false, 1) => 512,
            (None, false, _) => 16,
            (Some(1), true, _) => 1,
            (Some(count), true, _) => {
                return Err(Failure::usage(format!(
                    "--concurrency {count}: an embedded key set is measured on one thread; leave it out or give 1"
                )));
            }
            (Some(count), false, _) => count as usize,
        };
        let hit_share = match self.hit_share {
            None if self.preload > 0 => 1.0,
            None => 0.0,
            Some(share) if share > 0.0 && self.preload == 0 && self.mix.weight(Kind::Get) > 0 => {
                return Err(Failure::usage(format!(
                    "--hit-share {share} needs keys that are there: give --preload"
                )));
            }
            Some(share) => share,
        };
        Ok(Plan {
            mix: self.mix.clone(),
            batch: self.batch as usize,
            concurrency,
            distinct_keys: self.keys,
            preload: self.preload,
            hit_share,
            duration: match (self.duration, self.operations) {
                (None, None) => Some(DURATION_DEFAULT),
                (duration, _) => duration,
            },
            operations: self.operations,
            rate: self.rate,
            seed: self.seed.unwrap_or(seed),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mix_names_operations_and_their_weights() {
        let mix: Mix = "get=90, claim=10".parse().unwrap();
        assert_eq!((mix.weight(Kind::Get), mix.weight(Kind::Claim)), (90, 10));
        let gets = (0..100)
            .filter(|random| mix.choose(*random) == Kind::Get)
            .count();
        assert_eq!(gets, 90);
        for wrong in ["", "get", "get=", "get=-1", "del=1", "get=0,put=0"] {
            assert!(wrong.parse::<Mix>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_share_is_between_nothing_and_all() {
        assert_eq!(share("0.25"), Ok(0.25));
        for wrong in ["-0.1", "1.1", "NaN", "half"] {
            assert!(share(wrong).is_err(), "{wrong:?}");
        }
    }
}
