//! `keydb snapshot export`: the keys of object storage as one sorted stream.
//!
//! Ranges are put together one after the other, each from its base and the sections of its deltas, so the memory that this takes
//! is that of one range.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use keydb_core::{
    Arena, ClusterMap, Entry, Event, FileKind, Fingerprint, Footer, Incarnation, KeySet, Lsn,
    Manifest, ManifestFile, NodeId, Origin, RangeEntry, SectionHeader, SnapshotHeader,
    SnapshotKind, SnapshotWriter, Times, UnixMillis,
};
use keydb_storage::{SnapshotReadError, SnapshotStore, manifest_key, object_key};
use serde_json::json;

use super::{args::ExportArgs, store::Store};
use crate::{
    connect,
    exit::Failure,
    output::{bytes_text, json_line, say, thousands},
};

/// How many entries are written at once.
const PORTION_ENTRIES: usize = 8192;
/// How often the manifests are read again when a node has replaced what they named.
const TRIES_MAX: u32 = 5;

pub(super) fn run(args: &ExportArgs) -> Result<ExitCode, Failure> {
    let store = Store::open(&connect::settings()?)?;
    let target = Target::open(&args.out)?;
    let done = connect::runtime()?.block_on(export(&store, &args.ranges, target))?;
    if args.json {
        let line = json_line(&json!({
            "ranges": done.ranges,
            "entries": done.entries,
            "bytes": done.bytes,
            "complete_to_unix_ms": done.complete_to,
        }))?;
        done.target.tell(&line)?;
    } else {
        say(&format!(
            "exported {} entries of {} hash ranges, {}, complete to {}",
            thousands(done.entries),
            done.ranges,
            bytes_text(done.bytes),
            done.complete_to
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// What an export has come to.
struct Done {
    target: Target,
    ranges: usize,
    entries: u64,
    bytes: u64,
    /// Every node's part is complete up to here.
    complete_to: UnixMillis,
}

async fn export(store: &Store, only: &[u32], target: Target) -> Result<Done, Failure> {
    let map = store.map().await?;
    if !map.durability.has_disk() {
        return Err(Failure::failed(
            "durability is memory: this cluster has no snapshots",
        ));
    }
    if let Some(unknown) = only
        .iter()
        .find(|id| !map.ranges.iter().any(|range| range.id.0 == **id))
    {
        return Err(Failure::usage(format!(
            "the cluster has no hash range {unknown}"
        )));
    }
    // This machine's clock may be wrong, and must not decide which keys are over.
    let now = store
        .snapshots
        .storage()
        .now()
        .await
        .map_err(|error| store.failure(&error))?;
    let times = Times::at(now);
    let nowhere = Incarnation::from_bytes([0; 16]);
    let header = SnapshotHeader {
        kind: FileKind::Export {
            seed: map.hash.seed,
        },
        cluster_id: map.cluster_id,
        lineage: map.lineage,
        seed_digest: map.hash.seed.digest(),
        // An export is no node's.
        node: NodeId(0),
        disk_id: nowhere,
        incarnation: nowhere,
        lsn_from: Lsn::ZERO,
        lsn_to: Lsn::ZERO,
        created: now,
        purge_before: times.purge_before,
        parents: Vec::new(),
    };
    let path = target.path.clone();
    let unwritten = move |error: io::Error| {
        Failure::failed(format!("cannot write {}: {error}", path.display()))
    };
    let mut writer = SnapshotWriter::new(target, &header).map_err(&unwritten)?;
    let mut nodes = Nodes {
        store,
        map: &map,
        loaded: BTreeMap::new(),
    };
    let mut ranges = 0;
    for (index, range) in map.ranges.iter().enumerate() {
        if !only.is_empty() && !only.contains(&range.id.0) {
            continue;
        }
        let bounds = map.bounds(index);
        let mut keys = KeySet::new(bounds, &Arena::new());
        nodes.load(range, &mut keys, times).await?;
        writer
            .begin_section(SectionHeader {
                range: range.id,
                generation: range.generation,
                bounds,
            })
            .map_err(&unwritten)?;
        let mut portion = Vec::with_capacity(PORTION_ENTRIES);
        let mut from = Some(Fingerprint::from_parts(0, 0));
        while let Some(start) = from {
            portion.clear();
            from = keys.scan(start, PORTION_ENTRIES, &mut portion);
            portion.retain(|entry: &Entry| entry.expiry().as_unix_seconds() > times.purge_before.0);
            writer.entries(&portion).map_err(&unwritten)?;
        }
        ranges += 1;
    }
    let (mut target, totals) = writer.finish().map_err(&unwritten)?;
    target.finish().map_err(&unwritten)?;
    let reaches = nodes
        .loaded
        .values()
        .map(|node| node.manifest.complete_to_ms);
    Ok(Done {
        target,
        ranges,
        entries: totals.entries,
        bytes: totals.bytes,
        complete_to: reaches.min().unwrap_or(now),
    })
}

/// What is known of the nodes' parts of object storage.
struct Nodes<'a> {
    store: &'a Store,
    map: &'a ClusterMap,
    loaded: BTreeMap<NodeId, NodePart>,
}

struct NodePart {
    manifest: Manifest,
    /// Of the deltas that were looked into.
    footers: HashMap<String, Footer>,
}

impl Nodes<'_> {
    /// Merges everything that object storage has of `range` into `keys`.
    async fn load(
        &mut self,
        range: &RangeEntry,
        keys: &mut KeySet,
        times: Times,
    ) -> Result<(), Failure> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.try_load(range, keys, times).await? {
                Ok(()) => return Ok(()),
                // The node has replaced it in the meantime. What was merged already is not wrong for that.
                Err((_, SnapshotReadError::Missing)) if tries < TRIES_MAX => {
                    self.loaded.remove(&range.owner);
                }
                Err((_, SnapshotReadError::Storage(error))) => {
                    return Err(self.store.failure(&error));
                }
                Err((key, error)) => {
                    return Err(Failure::failed(format!(
                        "hash range {} is not whole: {key}: {error}; `keydb snapshot verify` shows everything that is wrong",
                        range.id
                    )));
                }
            }
        }
    }

    async fn try_load(
        &mut self,
        range: &RangeEntry,
        keys: &mut KeySet,
        times: Times,
    ) -> Result<Result<(), (String, SnapshotReadError)>, Failure> {
        let owner = range.owner;
        if !self.loaded.contains_key(&owner) {
            let manifest = self.store.snapshots.manifest(self.map.cluster_id, owner);
            let manifest = match manifest.await {
                Ok(manifest) => manifest.map(|(manifest, _)| manifest),
                Err(error) => return Ok(Err((manifest_key(owner), error.into()))),
            };
            let Some(manifest) = manifest.filter(|manifest| manifest.complete_to().is_some())
            else {
                return Err(Failure::failed(format!(
                    "object storage has no snapshot of node {owner}, which owns hash range {}; `keydb snapshot create` puts one there",
                    range.id
                )));
            };
            let part = NodePart {
                manifest,
                footers: HashMap::new(),
            };
            self.loaded.insert(owner, part);
        }
        let (snapshots, origin) = (&self.store.snapshots, Origin::from(self.map));
        let Some(part) = self.loaded.get_mut(&owner) else {
            return Ok(Ok(()));
        };
        // A range without a key is named as well, from the node's first snapshot on.
        let Some(entry) = part.manifest.range(range.id) else {
            return Err(Failure::failed(format!(
                "object storage does not have hash range {}, which node {owner} owns: the manifest of its snapshot of {} does not name it; \
                 when the node answers for it (`keydb status`), `keydb snapshot create` puts it there",
                range.id, part.manifest.complete_to_ms
            )));
        };
        // A range that was taken back is named under the generation that its keys came under.
        if entry.generation > range.generation {
            let moved = format!(
                "it has hash range {} under generation {}, the cluster map under {}",
                range.id, entry.generation, range.generation
            );
            let error = SnapshotReadError::Damaged(moved);
            return Ok(Err((manifest_key(owner), error)));
        }
        let (base, deltas) = part.manifest.parts(entry);
        let files: Vec<ManifestFile> = base.into_iter().chain(deltas).cloned().collect();
        for file in files {
            let each = |event: Event<'_>| match event {
                Event::Entries(entries) => keys.merge(entries, times).map_err(|error| {
                    let text = format!("its keys do not fit the range: {error}");
                    SnapshotReadError::Damaged(text)
                }),
                _ => Ok(()),
            };
            let merged = match file.kind {
                SnapshotKind::Full => snapshots.read(owner, &file, origin, each).await,
                SnapshotKind::Delta => match part.footer(snapshots, owner, &file, origin).await {
                    Ok(footer) => {
                        let section =
                            snapshots.read_section(owner, &file.name, footer, range.id, each);
                        section.await
                    }
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = merged {
                return Ok(Err((object_key(owner, &file.name), error)));
            }
        }
        Ok(Ok(()))
    }
}

impl NodePart {
    /// The footer of a delta of `node`, which is read once.
    async fn footer(
        &mut self,
        snapshots: &SnapshotStore,
        node: NodeId,
        file: &ManifestFile,
        origin: Origin,
    ) -> Result<&Footer, SnapshotReadError> {
        if !self.footers.contains_key(&file.name) {
            let footer = snapshots.footer(node, file, origin).await?;
            self.footers.insert(file.name.clone(), footer);
        }
        Ok(&self.footers[&file.name])
    }
}

/// Where an export goes. A file has its name only when it is whole.
struct Target {
    path: PathBuf,
    temporary: Option<PathBuf>,
    file: BufWriter<File>,
}

impl Target {
    fn open(out: &Path) -> Result<Self, Failure> {
        let cannot =
            |error: io::Error| Failure::failed(format!("cannot write {}: {error}", out.display()));
        if out == Path::new("-") {
            let file = crate::output::Stdout::open()?.into_file();
            return Ok(Self {
                path: PathBuf::from("standard output"),
                temporary: None,
                file: BufWriter::new(file),
            });
        }
        let mut temporary = out.as_os_str().to_owned();
        temporary.push(".tmp");
        let temporary = PathBuf::from(temporary);
        let file = File::create(&temporary).map_err(cannot)?;
        Ok(Self {
            path: out.to_owned(),
            temporary: Some(temporary),
            file: BufWriter::new(file),
        })
    }

    fn finish(&mut self) -> io::Result<()> {
        self.file.flush()?;
        if let Some(temporary) = &self.temporary {
            self.file.get_ref().sync_all()?;
            fs::rename(temporary, &self.path)?;
            self.temporary = None;
        }
        Ok(())
    }

    /// Tells what was done, where that does not end up in the export.
    fn tell(&self, line: &str) -> Result<(), Failure> {
        if self.path == Path::new("standard output") {
            say(line);
            Ok(())
        } else {
            crate::output::Stdout::open()?.write(format!("{line}\n").as_bytes())
        }
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // What is not whole is of no use; should it stay, its name says so.
            let _ = fs::remove_file(temporary);
        }
    }
}
