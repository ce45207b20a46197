//! Prometheus' text format
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>).

use std::fmt::{Display, Write};

use super::{
    histogram::{BOUNDS_MICROS, Durations},
    series::Series,
};

/// Metrics as they are being written.
///
/// ```
/// use keydb_core::metrics::{MetricsText, registry};
///
/// let mut text = MetricsText::default();
/// text.value(&registry::KEYS, 7);
/// assert!(text.into_text().ends_with("# TYPE keydb_keys gauge\nkeydb_keys 7\n"));
/// ```
#[derive(Debug, Default)]
pub struct MetricsText(String);

/// The samples of one series as they are being written.
#[derive(Debug)]
pub struct Samples<'a> {
    series: &'a Series,
    text: &'a mut String,
}

impl MetricsText {
    /// What the text is.
    pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

    /// Begins a series, whose samples follow. Each series is begun once.
    pub fn begin<'a>(&'a mut self, series: &'a Series) -> Samples<'a> {
        let (name, help, kind) = (series.name, series.help, series.kind.name());
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        Samples {
            series,
            text: &mut self.0,
        }
    }

    /// A series without labels.
    pub fn value(&mut self, series: &Series, value: impl Display) {
        self.begin(series).add(&[], value);
    }

    /// All that was written.
    pub fn into_text(self) -> String {
        self.0
    }
}

impl Samples<'_> {
    /// A sample; the values of its labels are in the order in which the series has them.
    pub fn add(&mut self, labels: &[&dyn Display], value: impl Display) {
        self.sample("", labels, None, value);
    }

    /// The samples of a histogram with these labels, in seconds.
    pub fn add_durations(&mut self, labels: &[&dyn Display], durations: &Durations) {
        let mut count = 0;
        for (bucket, in_bucket) in durations.counts.iter().enumerate() {
            count += in_bucket;
            let bound = match BOUNDS_MICROS.get(bucket) {
                Some(micros) => (*micros as f64 / 1e6).to_string(),
                None => "+Inf".to_owned(),
            };
            self.sample("_bucket", labels, Some(&bound), count);
        }
        self.sample("_sum", labels, None, durations.sum.as_secs_f64());
        self.sample("_count", labels, None, count);
    }

    fn sample(
        &mut self,
        suffix: &str,
        labels: &[&dyn Display],
        bound: Option<&dyn Display>,
        value: impl Display,
    ) {
        debug_assert_eq!(labels.len(), self.series.labels.len(), "{:?}", self.series);
        let _ = write!(self.text, "{}{suffix}", self.series.name);
        let names = self.series.labels.iter().map(|label| label.name);
        let pairs = names.zip(labels.iter().copied());
        for (index, (label, value)) in pairs.chain(bound.map(|it| ("le", it))).enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let value = escaped(&value.to_string());
            let _ = write!(self.text, "{before}{label}=\"{value}\"");
        }
        if !labels.is_empty() || bound.is_some() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

fn escaped(label: &str) -> String {
    label
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::{Histogram, registry};

    #[test]
    fn labels_are_escaped() {
        let mut text = MetricsText::default();
        text.begin(&registry::BUILD_INFO).add(&[&"a\\b\"c\nd"], 1);
        assert!(
            text.into_text()
                .ends_with("{version=\"a\\\\b\\\"c\\nd\"} 1\n")
        );
    }

    #[test]
    fn the_buckets_of_a_histogram_are_cumulative_and_in_seconds() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_micros(50));
        histogram.record(Duration::from_millis(2));
        histogram.record(Duration::from_secs(20));
        let mut text = MetricsText::default();
        let mut samples = text.begin(&registry::REQUEST_DURATION_SECONDS);
        samples.add_durations(&[&"get"], &histogram.read());
        let text = text.into_text();
        for line in [
            "# TYPE keydb_request_duration_seconds histogram",
            "keydb_request_duration_seconds_bucket{operation=\"get\",le=\"0.0001\"} 1",
            "keydb_request_duration_seconds_bucket{operation=\"get\",le=\"0.001\"} 1",
            "keydb_request_duration_seconds_bucket{operation=\"get\",le=\"0.0025\"} 2",
            "keydb_request_duration_seconds_bucket{operation=\"get\",le=\"10\"} 2",
            "keydb_request_duration_seconds_bucket{operation=\"get\",le=\"+Inf\"} 3",
            "keydb_request_duration_seconds_sum{operation=\"get\"} 20.00205",
            "keydb_request_duration_seconds_count{operation=\"get\"} 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}
