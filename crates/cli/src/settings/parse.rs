//! Reading single values. Each error says what would be right; the caller adds the variable and the value.

use std::{
    fmt::Display,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use keydb_core::{Durability, Namespace, NodeId};

use super::log::LogFormat;
use crate::output::bytes_text;

/// `host:port`, addresses separated by commas or as a JSON array of strings.
pub(crate) fn addresses(text: &str) -> Result<Vec<String>, String> {
    let example = r#"give a comma list such as "keydb-0:50051,keydb-1:50051" or a JSON array such as ["keydb-0:50051","keydb-1:50051"]"#;
    let text = text.trim();
    // An IPv6 host begins with a bracket as well.
    let in_brackets = text.strip_prefix('[').map(str::trim_start);
    let list: Vec<String> = if in_brackets.is_some_and(|inside| inside.starts_with(['"', ']'])) {
        serde_json::from_str(text)
            .map_err(|error| format!("is not a JSON array of strings ({error}); {example}"))?
    } else {
        text.split(',').map(|part| part.trim().to_owned()).collect()
    };
    if list.is_empty() {
        return Err(format!("has no address; {example}"));
    }
    for (index, address) in list.iter().enumerate() {
        host_and_port(address).map_err(|problem| {
            format!("has the address {address:?}, which {problem}; {example}")
        })?;
        if list[..index].contains(address) {
            return Err(format!(
                "has the address {address:?} twice; each node has its own"
            ));
        }
    }
    Ok(list)
}

/// Splits `host:port`; an IPv6 host stands in brackets.
pub(crate) fn host_and_port(address: &str) -> Result<(&str, u16), String> {
    let (host, port) = address
        .rsplit_once(':')
        .ok_or("has no port (host:port is expected)")?;
    let bare_colon = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | '@' | '"');
    if host.is_empty() || bare_colon || host.chars().any(odd) {
        return Err(format!("has no usable host ({host:?})"));
    }
    match port.parse() {
        Ok(port) if port != 0 => Ok((host, port)),
        _ => Err(format!(
            "has the port {port:?}; a port is a number from 1 to 65535"
        )),
    }
}

/// A node's number: as such, or as the end of a host name such as `keydb-3`.
pub(super) fn node_id(text: &str) -> Result<NodeId, String> {
    let label = text.split('.').next().unwrap_or(text);
    let digits = match label.rsplit_once('-') {
        Some((name, digits)) if !name.is_empty() => digits,
        _ => text,
    };
    Some(digits)
        .filter(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok())
        .map(NodeId)
        .ok_or_else(|| {
            "is neither a number nor a host name that ends in -N; give a number such as 0, or a host name such as keydb-0".to_owned()
        })
}

/// A whole number within bounds.
pub(super) fn number<T>(bounds: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String>
where
    T: FromStr + PartialOrd + Display,
{
    move |text| {
        let number = text.parse().ok().filter(|number| bounds.contains(number));
        let [least, most] = [bounds.start(), bounds.end()];
        number.ok_or_else(|| format!("is not a whole number from {least} to {most}"))
    }
}

/// So many bytes at least.
pub(super) fn bytes_from(least: u64) -> impl Fn(&str) -> Result<u64, String> {
    move |text| {
        let number = bytes(text)? as u64;
        let is_enough = number >= least;
        is_enough
            .then_some(number)
            .ok_or_else(|| format!("is less than {}", bytes_text(least)))
    }
}

/// `true` or `false`.
pub(super) fn truth(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("is neither true nor false".to_owned()),
    }
}

/// A whole number of bytes, on its own or with KiB, MiB or GiB.
pub(super) fn bytes(text: &str) -> Result<usize, String> {
    let (digits, unit) = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)]
        .into_iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, unit)))
        .unwrap_or((text, 1_usize));
    digits
        .trim_end()
        .parse()
        .ok()
        .and_then(|number: usize| number.checked_mul(unit))
        .ok_or_else(|| {
            "is not a number of bytes; give a whole number, or one with KiB, MiB or GiB, such as 16MiB"
                .to_owned()
        })
}

/// A directory.
pub(super) fn directory(text: &str) -> Result<PathBuf, String> {
    // Neither nothing nor the root has a parent.
    if Path::new(text).parent().is_none() {
        return Err(
            "does not name a directory of its own; give a path such as /var/lib/keydb".to_owned(),
        );
    }
    Ok(PathBuf::from(text))
}

/// A whole number with a unit, above zero: `500ms`, `10s`, `5m`, `1h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let right =
        "is not a duration; give a whole number above 0 with a unit, such as 500ms, 10s, 5m or 1h";
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(right.to_owned()),
    };
    digits
        .parse()
        .ok()
        .and_then(|number: u64| number.checked_mul(unit_ms))
        .filter(|ms| *ms > 0)
        .map(Duration::from_millis)
        .ok_or_else(|| right.to_owned())
}

/// A duration as [`duration`] reads it.
pub(super) fn duration_text(duration: &Duration) -> String {
    match duration.as_millis() {
        ms if ms % 3_600_000 == 0 => format!("{}h", ms / 3_600_000),
        ms if ms % 60_000 == 0 => format!("{}m", ms / 60_000),
        ms if ms % 1000 == 0 => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    }
}

/// A TCP port.
pub(super) fn port(text: &str) -> Result<u16, String> {
    number(1..=u16::MAX)(text)
        .map_err(|_| "is not a port; a port is a number from 1 to 65535".to_owned())
}

/// A TCP port, or none.
pub(super) fn http_port(text: &str) -> Result<Option<u16>, String> {
    match text {
        "off" | "0" => Ok(None),
        _ => port(text).map(Some).map_err(|_| {
            "is not a port; a port is a number from 1 to 65535, and off switches HTTP off"
                .to_owned()
        }),
    }
}

/// A duration within bounds.
pub(super) fn bounded(
    bounds: RangeInclusive<Duration>,
) -> impl Fn(&str) -> Result<Duration, String> {
    move |text| {
        let value = duration(text)?;
        if bounds.contains(&value) {
            return Ok(value);
        }
        let [least, most] = [bounds.start(), bounds.end()].map(duration_text);
        Err(format!("is out of bounds; give {least} to {most}"))
    }
}

/// What a crash may cost.
pub(super) fn durability(text: &str) -> Result<Durability, String> {
    text.parse().map_err(|_| {
        "is not a durability mode; the modes are journal, snapshot and memory".to_owned()
    })
}

/// What is logged.
pub(crate) fn log_filter(text: &str) -> Result<String, String> {
    // A word alone would be the name of a part of the program, of which everything is logged, and of others nothing.
    let is_level = |part: &str| {
        part.parse::<tracing_subscriber::filter::LevelFilter>()
            .is_ok()
    };
    let no_level = text
        .split(',')
        .map(str::trim)
        .find(|part| !part.contains(['=', '[']) && !is_level(part));
    let error = match no_level {
        Some(part) => format!("{part:?} is no level"),
        None => match tracing_subscriber::EnvFilter::try_new(text) {
            Ok(_) => return Ok(text.to_owned()),
            Err(error) => error.to_string(),
        },
    };
    Err(format!(
        "is not a log filter ({error}); give a level such as debug, or keydb_node=debug,info"
    ))
}

/// How the log is written.
pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("is neither text nor json".to_owned()),
    }
}

/// Where an OpenTelemetry collector takes spans.
pub(super) fn traces_endpoint(text: &str) -> Result<String, String> {
    let right = "is no collector's address; give http://host:port of its OTLP over gRPC, such as http://localhost:4317";
    let address = text.strip_prefix("http://").ok_or(right)?;
    let address = address.strip_suffix('/').unwrap_or(address);
    match host_and_port(address) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(right.to_owned()),
    }
}

/// A key space by its name.
pub(crate) fn namespace(text: &str) -> Result<Namespace, String> {
    Namespace::new(text).map_err(|error| error.to_string())
}

/// A value without the user and password that a URL in it may carry.
pub(super) fn without_secrets(value: &str) -> String {
    let Some((scheme, rest)) = value.split_once("://") else {
        return value.to_owned();
    };
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..authority_end].rfind('@') {
        Some(at) => format!("{scheme}://***{}", &rest[at..]),
        None => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_a_comma_list_or_a_json_array() {
        let expected = vec!["a:1".to_owned(), "b:2".to_owned()];
        assert_eq!(addresses("a:1, b:2"), Ok(expected.clone()));
        assert_eq!(addresses(r#"["a:1","b:2"]"#), Ok(expected));
        assert_eq!(addresses("[::1]:50051").unwrap(), ["[::1]:50051"]);
        for text in [
            "",
            "[]",
            "a",
            "a:",
            "a:0",
            "a:99999",
            ":1",
            "a:1,",
            "a:1,a:1",
            "::1:5",
            "[1]",
            "[\"a:1\"",
            "http://a:1",
            "a b:1",
        ] {
            assert!(addresses(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_node_id_is_a_number_or_the_end_of_a_host_name() {
        assert_eq!(node_id("7"), Ok(NodeId(7)));
        assert_eq!(node_id("keydb-12"), Ok(NodeId(12)));
        assert_eq!(node_id("my-keydb-0.keydb.prod.svc"), Ok(NodeId(0)));
        for text in [
            "",
            "keydb",
            "keydb-",
            "-",
            "+1",
            "-1",
            "keydb-x",
            "1.5-a",
            "99999999999",
            "keydb0",
        ] {
            assert!(node_id(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn sizes_and_durations_have_units() {
        assert_eq!(bytes("16MiB"), Ok(16 << 20));
        assert_eq!(bytes("1024"), Ok(1024));
        assert!(bytes("16MB").is_err() && bytes("-1").is_err() && bytes("").is_err());
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration_text(&Duration::from_secs(300)), "5m");
        assert_eq!(duration_text(&Duration::from_millis(1500)), "1500ms");
        for text in ["", "5", "0s", "-1s", "1.5s", "s", "99999999999999999999h"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_url_is_shown_without_its_user_and_password() {
        assert_eq!(
            without_secrets("s3://key:secret@bucket/prefix"),
            "s3://***@bucket/prefix"
        );
        assert_eq!(without_secrets("file:///a@b"), "file:///a@b");
    }
}
