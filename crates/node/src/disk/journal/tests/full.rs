//! A disk without room: nothing is applied that could not be written.

use super::*;
use crate::disk::failpoint::{self, Action};

/// Writes records of about `bytes` in all into promised room, and waits for them.
async fn use_up(journal: &Journal, space: Space, bytes: usize) -> Vec<Kept> {
    let each = if bytes < 40_000 { 20 } else { 400 };
    let kept: Vec<Kept> = (0..bytes / size_of_record(each))
        .map(|number| put(space.begin(), &keys(number as u64, each)))
        .collect();
    let last = Lsn(kept.last().unwrap().0);
    soon(journal.wait_committed(last)).await.unwrap();
    kept
}

/// Asks for room until there is none, and says why.
async fn take_all_room(journal: &Journal, bytes: usize) -> (Vec<Space>, Full) {
    let mut spaces = Vec::new();
    loop {
        match soon(journal.admit(bytes)).await {
            Ok(space) => spaces.push(space),
            Err(refused) => return (spaces, refused),
        }
        assert!(spaces.len() < 1000, "it ends");
    }
}

#[tokio::test]
async fn a_disk_that_is_full_from_the_start_admits_nothing_until_there_is_room() {
    let rig = Rig::new(64 << 10);
    let armed = failpoint::arm("journal.prepare", &rig.path(), Action::Fail(ENOSPC), 0);
    let journal = rig.open();
    let refused = soon(journal.admit(100)).await.unwrap_err();
    let text = refused.to_string();
    assert!(
        text.contains("the disk has no room for the journal"),
        "{text}"
    );
    assert!(text.contains(&rig.path().display().to_string()), "{text}");
    assert!(text.contains("65536 bytes"), "{text}");
    assert_eq!(journal.taken(), Lsn(0));
    let reason = journal.is_full().unwrap();
    assert!(text.ends_with(&reason), "{reason}");
    // What failed is not left to take room.
    assert_eq!(fs::read_dir(rig.path()).unwrap().count(), 0);

    drop(armed);
    eventually(async || journal.is_full().is_none()).await;
    let kept = soon(commit(&journal, &keys(1, 1))).await;
    journal.close().unwrap();
    assert_eq!(rig.replay().unwrap(), [kept]);
}

#[tokio::test]
async fn what_was_promised_room_is_written_on_a_full_disk_and_nothing_else_is_admitted() {
    let rig = Rig::new(64 << 10);
    let journal = rig.open();
    // More than a segment: all of it is there before it is promised.
    let promised = 100_000;
    let space = soon(journal.admit(promised)).await.unwrap();
    let _armed = failpoint::arm("journal.prepare", &rig.path(), Action::Fail(ENOSPC), 0);
    // Whatever was prepared in the meantime is used up first.
    let (others, refused) = take_all_room(&journal, 5000).await;
    assert!(refused.to_string().contains("No space left"), "{refused}");
    assert_eq!(journal.taken(), Lsn(0));
    let mut model = use_up(&journal, space, promised).await;
    for space in others {
        model.extend(use_up(&journal, space, 5000).await);
    }
    assert!(rig.segments().len() > 1);
    assert!(journal.is_full().is_some());
    journal.close().unwrap();
    assert_eq!(rig.replay().unwrap(), model);
}

#[tokio::test]
async fn room_that_was_promised_and_not_used_serves_others() {
    let rig = Rig::new(64 << 10);
    let journal = rig.open();
    let space = soon(journal.admit(40_000)).await.unwrap();
    let armed = failpoint::arm("journal.prepare", &rig.path(), Action::Fail(ENOSPC), 0);
    let (others, _) = take_all_room(&journal, 1000).await;
    let mut model = vec![put(space.begin(), &keys(1, 100))];
    soon(journal.admit(30_000)).await.unwrap_err();
    drop(space);
    // All but the one record's share.
    drop(soon(journal.admit(30_000)).await.unwrap());
    let space = soon(journal.admit(38_000)).await.unwrap();
    soon(journal.admit(1300)).await.unwrap_err();
    model.extend(use_up(&journal, space, 38_000).await);
    drop(others);
    drop(armed);
    model.push(soon(commit(&journal, &keys(2, 1000))).await);
    journal.close().unwrap();
    assert_eq!(rig.replay().unwrap(), model);
}

#[tokio::test]
async fn writing_goes_on_where_it_stopped_when_there_is_room_again() {
    let rig = Rig::new(64 << 10);
    let journal = rig.open();
    let mut model = fill(&journal, 50).await;
    for _ in 0..2 {
        let armed = failpoint::arm("journal.prepare", &rig.path(), Action::Fail(ENOSPC), 0);
        let mut refused = false;
        for number in 0..1000 {
            let keys = keys(number, 20);
            let Ok(space) = soon(journal.admit(size_of_record(20))).await else {
                refused = true;
                break;
            };
            model.push(put(space.begin(), &keys));
        }
        assert!(refused);
        assert_eq!(journal.taken(), Lsn(model.len() as u64));
        drop(armed);
        eventually(async || journal.is_full().is_none()).await;
        model.push(soon(commit(&journal, &keys(7, 20))).await);
    }
    journal.close().unwrap();
    assert_eq!(rig.replay().unwrap(), model);
}

#[tokio::test]
async fn a_request_that_waits_for_room_is_told_when_there_is_none() {
    let rig = Rig::new(64 << 10);
    let journal = Arc::new(rig.open());
    // The first of the segments that this takes can be prepared, the others cannot.
    let _armed = failpoint::arm("journal.prepare", &rig.path(), Action::Fail(ENOSPC), 2);
    let space = soon(journal.admit(40_000)).await.unwrap();
    let refused = soon(journal.admit(400_000)).await.unwrap_err();
    assert!(refused.to_string().contains("No space left"), "{refused}");
    use_up(&journal, space, 40_000).await;
    journal.close().unwrap();
}

#[tokio::test]
async fn a_disk_is_not_called_full_any_longer_than_it_is_so() {
    let rig = Rig::new(64 << 10);
    let journal = rig.open();
    let armed = failpoint::arm("journal.prepare", &rig.path(), Action::Fail(ENOSPC), 0);
    let (spaces, _) = take_all_room(&journal, 1000).await;
    // All of it comes back, so that there is no need to prepare more.
    drop(spaces);
    assert!(journal.is_full().is_some());
    drop(armed);
    eventually(async || journal.is_full().is_none()).await;
}

/// A snapshot has everything that was written, so that a large segment would be closed, and the rest of it given up.
#[tokio::test]
async fn what_was_promised_room_in_a_segment_is_not_robbed_of_it_by_a_cut() {
    let rig = Rig::new(8 << 20);
    let armed = failpoint::arm("journal.prepare", &rig.path(), Action::Fail(ENOSPC), 1);
    let journal = rig.open();
    let mut model = Vec::new();
    for number in 0..5 {
        model.push(commit(&journal, &keys(number, 87_000)).await);
    }
    let space = soon(journal.admit(1 << 20)).await.unwrap();
    eventually(async || journal.is_full().is_some()).await;
    journal.cut(journal.committed());
    model.extend(use_up(&journal, space, 1 << 20).await);
    journal.close().unwrap();
    drop(armed);
    assert!(rig.replay().unwrap() == model);
}

/// The same with another segment at hand, which has not as much room as was promised.
#[tokio::test]
async fn a_cut_does_not_exchange_promised_room_for_less() {
    let rig = Rig::new(8 << 20);
    let journal = rig.open();
    let mut model = Vec::new();
    for number in 0..5 {
        model.push(commit(&journal, &keys(number, 87_000)).await);
    }
    let space = soon(journal.admit(8_900_000)).await.unwrap();
    let _armed = failpoint::arm("journal.prepare", &rig.path(), Action::Fail(ENOSPC), 0);
    let (others, _) = take_all_room(&journal, 100_000).await;
    journal.cut(journal.committed());
    model.extend(use_up(&journal, space, 8_900_000).await);
    for space in others {
        model.extend(use_up(&journal, space, 100_000).await);
    }
    journal.close().unwrap();
    assert!(rig.replay().unwrap() == model);
}

#[tokio::test]
async fn a_cut_on_a_full_disk_leaves_the_room_that_there_is() {
    let rig = Rig::new(8 << 20);
    let _armed = failpoint::arm("journal.prepare", &rig.path(), Action::Fail(ENOSPC), 1);
    let journal = rig.open();
    let mut model = Vec::new();
    for number in 0..5 {
        model.push(commit(&journal, &keys(number, 87_000)).await);
    }
    eventually(async || journal.is_full().is_some()).await;
    for number in 0..10 {
        journal.cut(journal.committed());
        // So that the cut is likely to come first.
        tokio::time::sleep(Duration::from_millis(5)).await;
        model.push(soon(commit(&journal, &keys(number, 10))).await);
    }
    assert!(journal.is_full().is_some());
    journal.close().unwrap();
    assert!(rig.replay().unwrap() == model);
}

#[tokio::test]
async fn what_a_cut_leaves_of_a_segment_is_not_promised_again() {
    let rig = Rig::new(8 << 20);
    let journal = rig.open();
    let mut model = Vec::new();
    for number in 0..5 {
        model.push(commit(&journal, &keys(number, 87_000)).await);
    }
    let first = rig.segments()[0].path.clone();
    eventually(async || {
        journal.cut(journal.committed());
        !first.exists()
    })
    .await;
    let _armed = failpoint::arm("journal.prepare", &rig.path(), Action::Fail(ENOSPC), 0);
    let (spaces, _) = take_all_room(&journal, 100_000).await;
    model.clear();
    for space in spaces {
        model.extend(use_up(&journal, space, 100_000).await);
    }
    journal.close().unwrap();
    assert!(rig.replay_after(5).unwrap().1 == model);
}

#[tokio::test]
async fn a_disk_that_has_no_room_for_a_segment_is_not_filled_to_find_out() {
    let rig = Rig::new(1 << 50);
    let journal = rig.open();
    for _ in 0..2 {
        let full = soon(journal.admit(100)).await.unwrap_err().to_string();
        assert!(full.contains("No space left on device"), "{full}");
    }
    let left = || fs::read_dir(rig.path()).unwrap().count();
    eventually(async || left() == 0).await;
    journal.close().unwrap();
}

#[tokio::test]
async fn room_that_is_reserved_for_snapshots_is_left_to_them() {
    let rig = Rig::new(4096);
    let journal = rig.open();
    let mut model = fill(&journal, 1).await;
    journal.reserve(1 << 50);
    let (spaces, full) = take_all_room(&journal, 500).await;
    assert!(full.to_string().contains("that snapshots need"), "{full}");
    assert_eq!(journal.wanted_bytes(), (1 << 50) + 4096);
    // What was promised is written all the same.
    for (number, space) in (0..).zip(spaces) {
        model.extend(use_up(&journal, space, 500 + number).await);
    }
    journal.reserve(0);
    eventually(async || journal.is_full().is_none()).await;
    assert_eq!(journal.wanted_bytes(), 0);
    model.push(soon(commit(&journal, &keys(9, 2))).await);
    journal.close().unwrap();
    assert!(rig.replay().unwrap() == model);
}

/// Each segment takes a little more than is promised of it. What that is must not be missing from then on.
#[tokio::test]
async fn however_much_is_written_no_more_segments_are_prepared_than_are_needed() {
    let rig = Rig::new(64 << 10);
    let journal = rig.open();
    let mut model = Vec::new();
    for number in 0..1500 {
        model.push(commit(&journal, &keys(number, 100)).await);
    }
    assert!(rig.segments().len() > 25);
    let prepared = || {
        let entries = fs::read_dir(rig.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("prepared-")).count()
    };
    // Whatever is under way comes to its end.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(prepared() <= 2, "{}", prepared());
    assert!(journal.ahead_bytes() <= 3 * (64 << 10));
    journal.close().unwrap();
    assert!(rig.replay().unwrap() == model);
}

/// A cut makes room with a segment for which there is none otherwise, also when the segments before were filled to their ends.
#[tokio::test]
async fn a_full_disk_whose_segments_were_filled_is_cut_as_well() {
    let rig = Rig::new(8 << 20);
    let journal = rig.open();
    for _ in 0..3 {
        let space = soon(journal.admit(4 << 20)).await.unwrap();
        use_up(&journal, space, 4 << 20).await;
    }
    assert!(rig.segments().len() > 1);
    journal.reserve(1 << 50);
    let (spaces, _) = take_all_room(&journal, 100_000).await;
    for space in spaces {
        use_up(&journal, space, 100_000).await;
    }
    let last = rig.segments().last().unwrap().path.clone();
    assert!(journal.is_full().is_some());
    journal.cut(journal.committed());
    eventually(async || !last.exists()).await;
    journal.close().unwrap();
}
