//! `docs/metrics.md` is what the registry says. `UPDATE_DOCS=1` writes it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fmt::Write, path::Path};

use keydb_core::metrics::{
    BOUNDS_MICROS, Series, Source,
    registry::{SECTIONS, all},
};

const HEAD: &str = "\
# Metrics

What nodes and operators say at `/metrics`, for Prometheus: a node at `KEYDB_HTTP_PORT`, an operator at `KEYDB_OPERATOR_PORT`. This page is
made of the code: `just metrics-docs`. Counters count from the start of the process. `deploy/prometheus` and the Helm chart have
alerts, `deploy/grafana` has a dashboard; [operations](operations.md) says what to do about them.

No series has a label whose values are not known beforehand: there is none for a hash range, a key or a caller.
";

fn page() -> String {
    let mut page = HEAD.to_owned();
    let _ = writeln!(
        page,
        "\nHistograms have the buckets (`le`, in seconds) {}. A share that was faster than one of these is exact:",
        BOUNDS_MICROS
            .map(|micros| (micros as f64 / 1e6).to_string())
            .join(", ")
    );
    page.push_str(
        "\n```promql\nhistogram_quantile(0.99, sum by (le, operation) (rate(keydb_request_duration_seconds_bucket[5m])))\n```\n",
    );
    for section in SECTIONS {
        let _ = write!(
            page,
            "\n## {}\n\n| series | type | unit | labels | meaning |\n| --- | --- | --- | --- | --- |\n",
            section.title
        );
        for series in section.series {
            page.push_str(&row(series));
        }
    }
    page
}

fn row(series: &Series) -> String {
    let labels = series.labels.iter();
    let labels = labels.map(|label| format!("`{}`: {}", label.name, label.values));
    let source = match series.source {
        Source::Node | Source::Operator => "",
        Source::NodeDisk => " Not in `memory` mode.",
        Source::Both => " Nodes and operators.",
    };
    format!(
        "| `{}` | {} | {} | {} | {}{source} |\n",
        series.name,
        series.kind.name(),
        series.unit(),
        labels.collect::<Vec<_>>().join("; "),
        series.help
    )
}

#[test]
fn the_page_is_what_the_registry_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    let page = page();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    assert!(
        committed == page,
        "docs/metrics.md is not what the code says; UPDATE_DOCS=1 cargo test -p keydb-core --test metrics_docs writes it"
    );
    assert_eq!(page.matches("\n| `keydb_").count(), all().count());
}
