//! The disk as a crash leaves it at each step.

use super::*;
use crate::disk::failpoint::{self, Action};

const EIO: i32 = 5;

/// Writes and rounds of every kind. What must be there ever after goes to `safe`: with a journal what was acknowledged, without
/// one what a snapshot has that was asked for.
async fn life(rig: &Rig, durability: Durability, safe: &mut Keys) -> Result<(), String> {
    let run = rig.try_start().await.map_err(|error| error.to_string())?;
    let mut lived = Ok(());
    for step in 0..5 {
        let keys = rig.keys(step * 50..step * 50 + 50, EXPIRY + step);
        if let Err(error) = run.try_put(&keys).await {
            lived = Err(error);
            break;
        }
        if durability == Durability::Journal {
            safe.extend(keys.clone());
        }
        if let Err(error) = run.snapshots.request(step % 2 == 1, far()).await {
            lived = Err(error);
            break;
        }
        safe.extend(keys);
    }
    if lived.is_ok() {
        let closed = run.snapshots.close(Instant::now()).await;
        let _ = run.journal.close();
        return closed;
    }
    run.kill().await;
    lived
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_the_disk_stops_everything_acknowledged_is_found_at_the_next_start() {
    let steps = stop_everywhere(Durability::Journal).await;
    assert!(steps > 60, "{steps}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_journal_wherever_the_disk_stops_what_snapshots_have_is_found_at_the_next_start()
{
    let steps = stop_everywhere(Durability::Snapshot).await;
    assert!(steps > 40, "{steps}");
}

/// Has the disk stop after each of the steps of a life, and starts again. Returns how many steps there are.
async fn stop_everywhere(durability: Durability) -> u64 {
    let steps = {
        let rig = Rig::with(durability, 2).await;
        let counted = failpoint::arm("*", rig.dir.path(), Action::Count, 0);
        life(&rig, durability, &mut Keys::new()).await.unwrap();
        failpoint::count(&counted)
    };
    let (mut whole, mut cut) = (0, 0);
    for passes in 0..steps {
        let rig = Rig::with(durability, 2).await;
        let mut safe = Keys::new();
        {
            // From here on nothing reaches the disk any more.
            let _stopped = failpoint::arm("*", rig.dir.path(), Action::Fail(EIO), passes);
            match life(&rig, durability, &mut safe).await {
                Ok(()) => whole += 1,
                Err(_) => cut += 1,
            }
        }
        let run = match rig.try_start().await {
            Ok(run) => run,
            Err(reason) => panic!("cut after {passes} of {steps} steps: {reason}"),
        };
        let found = run.keys();
        for (key, expiry) in &safe {
            assert_eq!(
                found.get(key),
                Some(expiry),
                "cut after {passes} of {steps} steps"
            );
        }
        // And it goes on from there.
        let more = rig.keys(1000..1010, EXPIRY);
        run.put(&more).await;
        run.snapshot().await;
        let there = rig.remote_keys().await;
        assert!(
            safe.iter()
                .chain(&more)
                .all(|(key, _)| there.contains_key(key))
        );
        run.stop().await;
    }
    assert!(cut > whole, "{cut} cut, {whole} whole");
    steps
}

#[tokio::test(flavor = "multi_thread")]
async fn one_failure_at_any_point_is_got_over_by_the_next_round() {
    for point in [
        "snapshot.create",
        "snapshot.write",
        "snapshot.sync",
        "snapshot.rename",
        "snapshot.remove",
        "data_dir.write",
        "data_dir.rename",
        "data_dir.sync",
    ] {
        for full in [false, true] {
            for passes in 0..3 {
                let rig = Rig::with(Durability::Journal, 2).await;
                let run = rig.start().await;
                run.put(&rig.keys(0..50, EXPIRY)).await;
                run.full_snapshot().await;
                run.put(&rig.keys(50..100, EXPIRY)).await;
                {
                    let failing = failpoint::arm(point, &rig.root(), Action::Fail(EIO), passes);
                    // It may pass more often than this round meets it.
                    let _ = run.snapshots.request(full, far()).await;
                    drop(failing);
                }
                run.put(&rig.keys(100..150, EXPIRY)).await;
                run.full_snapshot().await;
                let keys = rig.keys(0..150, EXPIRY);
                assert_eq!(rig.remote_keys().await, keys, "{point} {full} {passes}");
                run.kill().await;
                let run = rig.start().await;
                assert_eq!(run.keys(), keys, "{point} {full} {passes}");
                assert_eq!(rig.files().len(), 2, "{point} {full} {passes}");
                run.stop().await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_that_fails_half_way_leaves_no_file_that_is_not_needed() {
    let rig = Rig::new().await;
    let run = rig.start().await;
    run.put(&rig.keys(0..400, EXPIRY)).await;
    run.full_snapshot().await;
    let before = rig.files();
    assert_eq!(before.len(), 4);
    run.put(&rig.keys(400..800, EXPIRY)).await;
    // Two of the full files are made.
    let full = failpoint::arm("snapshot.create", &rig.root(), Action::Fail(28), 2);
    run.snapshots.request(true, far()).await.unwrap_err();
    eventually(async || {
        let files = rig.files();
        files.len() == 4 && files.iter().filter(|name| before.contains(name)).count() == 2
    })
    .await;
    drop(full);
    run.snapshot().await;
    assert_eq!(rig.remote_keys().await, rig.keys(0..800, EXPIRY));
    run.stop().await;
}
