//! Segments that are missing, or another's.

use super::*;

/// A journal of so many segments, with two records each.
async fn segments(rig: &Rig, count: u64) {
    for _ in 0..count {
        let journal = rig.open();
        fill(&journal, 2).await;
        journal.close().unwrap();
    }
}

fn incomplete(found: Result<(Replayed, Vec<Kept>), JournalError>) -> (PathBuf, String) {
    match found {
        Err(JournalError::Incomplete { path, reason }) => (path, reason),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_segment_that_is_missing_in_the_middle_is_noticed() {
    let rig = Rig::new(4096);
    segments(&rig, 4).await;
    let files = rig.segments();
    fs::remove_file(&files[2].path).unwrap();
    let (path, reason) = incomplete(rig.replay_after(0));
    assert_eq!(path, files[3].path);
    assert_eq!(
        reason,
        "it follows LSN 6, but what lies before it ends at LSN 4"
    );
    // Also where a snapshot has what is missing: somebody took it away, and nobody knows why.
    incomplete(rig.replay_after(6));
    assert!(inspect(&rig.path(), |_| {}).is_err());
}

#[tokio::test]
async fn a_first_segment_that_is_missing_is_noticed_where_no_snapshot_has_it() {
    let rig = Rig::new(4096);
    segments(&rig, 3).await;
    let files = rig.segments();
    fs::remove_file(&files[0].path).unwrap();
    for after in [0, 1] {
        let (path, reason) = incomplete(rig.replay_after(after));
        assert_eq!(path, rig.path());
        let expected = format!(
            "snapshots go up to LSN {after}, and the oldest segment begins at LSN 3: those in between are missing"
        );
        assert_eq!(reason, expected);
    }
    for after in [2, 3, 6] {
        let (replayed, kept) = rig.replay_after(after).unwrap();
        assert_eq!(replayed.last, Lsn(6));
        assert!(kept.iter().map(|kept| kept.0).eq(after + 1..=6));
    }
}

#[tokio::test]
async fn last_segments_that_are_missing_are_noticed_where_a_snapshot_reaches_further() {
    let rig = Rig::new(4096);
    segments(&rig, 3).await;
    fs::remove_file(&rig.segments()[2].path).unwrap();
    // As if a crash had left what it had prepared, which else tells of the missing one.
    let second = fs::File::options()
        .write(true)
        .open(&rig.segments()[1].path);
    second.unwrap().set_len(4096).unwrap();
    rig.replay_after(4).unwrap();
    let (path, reason) = incomplete(rig.replay_after(5));
    assert_eq!(path, rig.path());
    assert_eq!(reason, "it ends at LSN 4, but snapshots go up to LSN 5");

    for segment in rig.segments() {
        fs::remove_file(segment.path).unwrap();
    }
    for _ in 0..2 {
        let (_, reason) = incomplete(rig.replay_after(5));
        assert_eq!(reason, "it has no segment, but snapshots go up to LSN 5");
        // And the same without the directory.
        let _ = fs::remove_dir(rig.path());
    }
    assert_eq!(rig.replay_after(0).unwrap(), (Replayed::default(), vec![]));
}

#[tokio::test]
async fn a_journal_of_another_disk_cluster_or_node_is_refused_by_name() {
    let rig = Rig::new(4096);
    segments(&rig, 2).await;
    let others = [
        (
            "disk",
            Identity {
                disk_id: Incarnation::from_bytes([8; 16]),
                ..IDENTITY
            },
        ),
        (
            "cluster",
            Identity {
                cluster_id: ClusterId::from_bytes([2; 16]),
                ..IDENTITY
            },
        ),
        (
            "node",
            Identity {
                node: NodeId(4),
                ..IDENTITY
            },
        ),
    ];
    for (what, other) in others {
        let error = replay(&rig.path(), &other, Lsn(0), Lsn(0), |_| {
            panic!("nothing is read")
        })
        .unwrap_err()
        .to_string();
        for name in [
            rig.segments()[0].path.display().to_string(),
            format!(
                "it is of node {}, cluster {}, disk {}",
                IDENTITY.node, IDENTITY.cluster_id, IDENTITY.disk_id
            ),
            format!(
                "not of node {}, cluster {}, disk {}",
                other.node, other.cluster_id, other.disk_id
            ),
        ] {
            assert!(error.contains(&name), "{what}: {error}");
        }

        // The same of a single segment that got in among this journal's own.
        let foreign = Rig::new(4096);
        let config = JournalConfig {
            identity: other,
            ..foreign.config()
        };
        let journal = Journal::open(config, kept_behind(Lsn(2))).unwrap();
        fill(&journal, 2).await;
        journal.close().unwrap();
        let mixed = rig.killed();
        let second = &mixed.segments()[1].path;
        fs::copy(&foreign.segments()[0].path, second).unwrap();
        let (path, reason) = incomplete(mixed.replay_after(0));
        assert_eq!(path, *second, "{what}");
        assert!(reason.contains(&other.disk_id.to_string()), "{reason}");
        assert!(inspect(&mixed.path(), |_| {}).is_err(), "{what}");
    }
}

#[tokio::test]
async fn a_segment_under_another_name_is_refused() {
    let rig = Rig::new(4096);
    segments(&rig, 2).await;
    let files = rig.segments();
    let wrong = rig.path().join("00000000000000000004.journal");
    fs::rename(&files[1].path, &wrong).unwrap();
    let (path, reason) = incomplete(rig.replay_after(0));
    assert_eq!(path, wrong);
    assert!(reason.contains("begins at LSN 3, not of"), "{reason}");
}

#[tokio::test]
async fn files_that_are_no_segments_are_left_alone() {
    let rig = Rig::new(4096);
    segments(&rig, 1).await;
    for name in [
        "notes.txt",
        "7.journal",
        "00000000000000000003.journal.old",
        "000000000000000000xx.journal",
    ] {
        fs::write(rig.path().join(name), b"somebody's").unwrap();
    }
    segments(&rig, 1).await;
    assert_eq!(rig.replayed(0).last, Lsn(4));
    assert_eq!(fs::read_dir(rig.path()).unwrap().count(), 6);
}
