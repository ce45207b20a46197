//! How much memory a node's keys may take: in bytes, or as a share of what the machine or the container has.

use std::{fmt, fs, str::FromStr};

use keydb_node::MemoryPolicy;

use super::parse;
use crate::output::bytes_text;

/// Less than this is never meant: an empty node takes more.
const LIMIT_MIN: usize = 16 << 20;

/// The limit on the memory of a node's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemoryLimit {
    /// There is none.
    None,
    /// So many bytes.
    Bytes(usize),
    /// So many per cent of what there is.
    Percent(u8),
}

impl FromStr for MemoryLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(digits) = text.strip_suffix('%') {
            return match digits.trim_end().parse() {
                Ok(percent @ 1..=100) => Ok(Self::Percent(percent)),
                _ => Err("is not a percentage from 1% to 100%".to_owned()),
            };
        }
        match parse::bytes(text) {
            Ok(0) => Ok(Self::None),
            Ok(bytes) if bytes >= LIMIT_MIN => Ok(Self::Bytes(bytes)),
            Ok(_) => Err(format!(
                "is less than {}, which no node gets by with; 0 means no limit",
                bytes_text(LIMIT_MIN as u64)
            )),
            Err(_) => Err(
                "is not a number of bytes; give one with KiB, MiB or GiB, such as 8GiB, a share of the memory that there is, such as 70%, or 0 for no limit"
                    .to_owned(),
            ),
        }
    }
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("0"),
            Self::Bytes(bytes) => write!(f, "{bytes}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl MemoryLimit {
    /// The limit in bytes, 0 for none, where there is so much memory.
    ///
    /// # Errors
    /// When it is a share of what nobody knows.
    pub(crate) fn bytes(self, available_bytes: Option<u64>) -> Result<usize, String> {
        match (self, available_bytes) {
            (Self::None, _) => Ok(0),
            (Self::Bytes(bytes), _) => Ok(bytes),
            (Self::Percent(percent), Some(bytes)) => {
                let share = u128::from(bytes) * u128::from(percent) / 100;
                Ok(usize::try_from(share).unwrap_or(usize::MAX))
            }
            (Self::Percent(_), None) => {
                Err("is a share of the memory that there is, but the system does not say how much that is; give a number of bytes".to_owned())
            }
        }
    }
}

/// How much memory there is for this process: what its container may take, or else what the machine has.
pub(crate) fn available_bytes() -> Option<u64> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse().ok();
    let container = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| total_bytes(&text));
    // Without a limit, the older of the two files has a number that no machine has.
    let limits = container.into_iter().filter_map(number).chain(machine);
    limits.min()
}

fn total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// `refuse` or `shed`.
pub(super) fn policy(text: &str) -> Result<MemoryPolicy, String> {
    [MemoryPolicy::Refuse, MemoryPolicy::ShedSoonest]
        .into_iter()
        .find(|policy| policy_text(policy) == text)
        .ok_or_else(|| {
            "is neither refuse (new keys are refused at the memory limit) nor shed (the keys that would expire soonest are forgotten)".to_owned()
        })
}

pub(super) fn policy_text(policy: &MemoryPolicy) -> String {
    let text = match policy {
        MemoryPolicy::Refuse => "refuse",
        MemoryPolicy::ShedSoonest => "shed",
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_bytes_a_share_or_none() {
        let limit = |text: &str| text.parse::<MemoryLimit>();
        assert_eq!(limit("8GiB"), Ok(MemoryLimit::Bytes(8 << 30)));
        assert_eq!(limit("0"), Ok(MemoryLimit::None));
        assert_eq!(limit("70%"), Ok(MemoryLimit::Percent(70)));
        for (text, right) in [
            ("0%", "1% to 100%"),
            ("101%", "1% to 100%"),
            ("-5%", "1% to 100%"),
            ("1MiB", "16.0 MiB"),
            ("8GB", "8GiB"),
            ("", "8GiB"),
        ] {
            let error = limit(text).unwrap_err();
            assert!(error.contains(right), "{text}: {error}");
        }
    }

    #[test]
    fn a_share_needs_to_know_what_there_is() {
        let half = MemoryLimit::Percent(50);
        assert_eq!(half.bytes(Some(8 << 30)), Ok(4 << 30));
        assert!(half.bytes(None).is_err());
        assert_eq!(MemoryLimit::None.bytes(None), Ok(0));
        assert_eq!(MemoryLimit::Bytes(7).bytes(None), Ok(7));
    }

    #[test]
    fn the_machines_memory_is_read_from_the_kernels_text() {
        let text = "MemTotal:        8152348 kB\nMemFree:          100 kB\n";
        assert_eq!(total_bytes(text), Some(8_152_348 * 1024));
        assert_eq!(total_bytes(""), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_memory() {
        assert!(available_bytes().is_some_and(|bytes| bytes > 0));
    }
}
