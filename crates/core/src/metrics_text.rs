//! Metrics in Prometheus' text format
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>).

use std::fmt::{Display, Write};

/// Metrics as they are being written.
///
/// ```
/// let mut text = keydb_core::MetricsText::default();
/// text.gauge("keydb_keys", "Keys held.", 7);
/// assert_eq!(text.into_text(), "# HELP keydb_keys Keys held.\n# TYPE keydb_keys gauge\nkeydb_keys 7\n");
/// ```
#[derive(Debug, Default)]
pub struct MetricsText {
    written: String,
    /// The metric that samples belong to.
    name: &'static str,
}

impl MetricsText {
    /// What the text is.
    pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

    /// Begins a metric, whose samples follow.
    pub fn metric(&mut self, name: &'static str, kind: &str, help: &str) {
        let _ = write!(self.written, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        self.name = name;
    }

    /// A sample of the metric that was begun last.
    pub fn sample(&mut self, labels: &[(&str, &dyn Display)], value: impl Display) {
        self.written.push_str(self.name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let text = escaped(&text.to_string());
            let _ = write!(self.written, "{before}{label}=\"{text}\"");
        }
        if !labels.is_empty() {
            self.written.push('}');
        }
        let _ = writeln!(self.written, " {value}");
    }

    /// A gauge without labels.
    pub fn gauge(&mut self, name: &'static str, help: &str, value: impl Display) {
        self.metric(name, "gauge", help);
        self.sample(&[], value);
    }

    /// A counter without labels.
    pub fn counter(&mut self, name: &'static str, help: &str, value: impl Display) {
        self.metric(name, "counter", help);
        self.sample(&[], value);
    }

    /// All that was written.
    pub fn into_text(self) -> String {
        self.written
    }
}

fn escaped(label: &str) -> String {
    label
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
