//! `keydb snapshot inspect`: what is in a manifest or snapshot file.

use std::{fmt::Write, fs::File, io::Read, path::Path, process::ExitCode};

use keydb_core::{
    Event, FileKind, Manifest, SectionHeader, SnapshotDecoder, SnapshotHeader, Totals,
};
use keydb_storage::SnapshotReadError;
use serde_json::{Value, json};

use super::{
    args::InspectArgs,
    store::{Store, complete_to_text},
};
use crate::{
    connect,
    exit::Failure,
    output::{Stdout, bytes_text, thousands},
};

const CHUNK_BYTES: usize = 256 << 10;

/// What is in a snapshot file.
#[derive(Debug, Default)]
struct Content {
    header: Option<SnapshotHeader>,
    sections: Vec<(SectionHeader, u64)>,
}

impl Content {
    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Header(header) => self.header = Some(header.clone()),
            Event::Section(section) => self.sections.push((section, 0)),
            Event::Entries(entries) => {
                if let Some((_, count)) = self.sections.last_mut() {
                    *count += entries.len() as u64;
                }
            }
            Event::End(_) => {}
        }
    }
}

pub(super) fn run(args: &InspectArgs) -> Result<ExitCode, Failure> {
    let what = args.what.as_str();
    let unusable = |error: SnapshotReadError| Failure::failed(format!("{what}: {error}"));
    let path = Path::new(what);
    let mut out = Stdout::open()?;
    let shown = if path.is_file() {
        if what.ends_with(".json") {
            let json = std::fs::read(path)
                .map_err(|error| Failure::failed(format!("cannot read {what}: {error}")))?;
            let manifest = Manifest::from_json(&json)
                .map_err(|error| Failure::failed(format!("{what}: {error}")))?;
            show_manifest(&manifest, args.json)?
        } else {
            let (content, totals) = read_file(path).map_err(unusable)?;
            show(&content, totals, args.json)?
        }
    } else {
        let store = Store::open(&connect::settings()?)?;
        let runtime = connect::runtime()?;
        let not_there = |error: SnapshotReadError| match error {
            SnapshotReadError::Missing => Failure::failed(format!(
                "{what} is neither a file here nor an object in {}",
                store.text
            )),
            SnapshotReadError::Storage(error) => store.failure(&error),
            damaged => unusable(damaged),
        };
        if what.ends_with(".json") {
            let manifest = runtime
                .block_on(store.snapshots.manifest_at(what))
                .map_err(not_there)?;
            show_manifest(&manifest, args.json)?
        } else {
            let mut content = Content::default();
            let read = store.snapshots.read_any(what, |event| {
                content.take(event);
                Ok(())
            });
            let totals = runtime.block_on(read).map_err(not_there)?;
            show(&content, totals, args.json)?
        }
    };
    out.write(shown.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn read_file(path: &Path) -> Result<(Content, Totals), SnapshotReadError> {
    let unreadable =
        |error: std::io::Error| SnapshotReadError::Damaged(format!("it cannot be read: {error}"));
    let mut file = File::open(path).map_err(unreadable)?;
    let mut decoder = SnapshotDecoder::new().map_err(unreadable)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut content = Content::default();
    loop {
        let read = file.read(&mut chunk).map_err(unreadable)?;
        if read == 0 {
            return Ok((content, decoder.finish()?));
        }
        decoder.feed(&chunk[..read]);
        while let Some(event) = decoder.next_event()? {
            content.take(event);
        }
    }
}

fn show(content: &Content, totals: Totals, as_json: bool) -> Result<String, Failure> {
    let header = content
        .header
        .as_ref()
        .ok_or_else(|| Failure::failed("the file has no header"))?;
    let kind = match header.kind {
        FileKind::Full => "full",
        FileKind::Delta => "delta",
        FileKind::Export { .. } => "export",
    };
    if as_json {
        let sections = content.sections.iter().map(|(section, entries)| {
            json!({
                "range": section.range,
                "generation": section.generation,
                "start": format!("{:016x}", section.bounds.start()),
                "last": format!("{:016x}", section.bounds.last()),
                "entries": entries,
            })
        });
        return line(&json!({
            "kind": kind,
            "cluster_id": header.cluster_id,
            "lineage": header.lineage,
            "seed_digest": format!("{:016x}", header.seed_digest),
            "node": header.node,
            "disk_id": header.disk_id,
            "incarnation": header.incarnation,
            "lsn_from": header.lsn_from,
            "lsn_to": header.lsn_to,
            "created_unix_ms": header.created,
            "purge_before_unix_s": header.purge_before.0,
            "parents": header.parents,
            "bytes": totals.bytes,
            "entries": totals.entries,
            "sections": sections.collect::<Vec<_>>(),
        }));
    }
    let mut text = format!(
        "{kind} snapshot file, {} entries in {}\n\
         cluster   {} (lineage {}, seed digest {:016x})\n\
         node      {} (disk {}, incarnation {})\n\
         LSN       {} to {}\n\
         created   {}\n",
        thousands(totals.entries),
        bytes_text(totals.bytes),
        header.cluster_id,
        header.lineage,
        header.seed_digest,
        header.node,
        header.disk_id,
        header.incarnation,
        header.lsn_from,
        header.lsn_to,
        header.created,
    );
    for parent in &header.parents {
        let _ = writeln!(text, "parent    {parent}");
    }
    for (section, entries) in &content.sections {
        let _ = writeln!(
            text,
            "range {:>5}  generation {}  {:016x}-{:016x}  {} entries",
            section.range.to_string(),
            section.generation,
            section.bounds.start(),
            section.bounds.last(),
            thousands(*entries)
        );
    }
    Ok(text)
}

fn show_manifest(manifest: &Manifest, as_json: bool) -> Result<String, Failure> {
    if as_json {
        let value: Value = serde_json::to_value(manifest).map_err(|error| {
            Failure::failed(format!("cannot write the answer as JSON: {error}"))
        })?;
        return line(&value);
    }
    let mut text = format!(
        "manifest of node {} of cluster {} (lineage {})\n\
         disk         {}\n\
         complete to  {} (LSN {})\n",
        manifest.node,
        manifest.cluster_id,
        manifest.lineage,
        manifest.disk_id,
        complete_to_text(manifest),
        manifest.lsn
    );
    for file in &manifest.files {
        let _ = writeln!(
            text,
            "file   {}  LSN {} to {}  {} entries  {}",
            file.name,
            file.lsn_from,
            file.lsn_to,
            thousands(file.entries),
            bytes_text(file.size_bytes)
        );
    }
    for range in &manifest.ranges {
        let base = range.base.as_deref().unwrap_or("no base");
        let _ = writeln!(
            text,
            "range {:>5}  generation {}  {:016x}-{:016x}  {base}",
            range.id.to_string(),
            range.generation,
            range.start,
            range.last
        );
    }
    Ok(text)
}

fn line(value: &Value) -> Result<String, Failure> {
    Ok(crate::output::json_line(value)? + "\n")
}
