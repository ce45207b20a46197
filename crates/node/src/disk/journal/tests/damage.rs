//! A byte that is not what was written, anywhere.

use super::*;

/// A journal of three segments, the last with the zeros that a kill leaves, and some records that were written at once.
async fn small_journal() -> (Rig, Vec<Kept>) {
    let rig = Rig::new(1024);
    let mut model = Vec::new();
    for _ in 0..2 {
        let journal = rig.open();
        model.extend(fill(&journal, 3).await);
        journal.close().unwrap();
    }
    let journal = rig.open();
    model.extend(fill(&journal, 2).await);
    let space = journal.admit(500).await.unwrap();
    let blocker = space.begin();
    let later = [
        put(space.begin(), &keys(20, 1)),
        put(space.begin(), &keys(21, 1)),
    ];
    model.push(put(blocker, &keys(22, 1)));
    model.extend(later);
    soon(journal.wait_committed(Lsn(11))).await.unwrap();
    eventually(async || rig.images()[2].places.iter().any(|place| place.is_mark)).await;
    let killed = rig.killed();
    let images = killed.images();
    assert_eq!(images.len(), 3);
    assert_eq!(images[2].bytes.len(), 1024);
    assert!(images[2].places.last().unwrap().is_mark);
    (killed, model)
}

/// What replay has to make of a segment of the journal with a byte at `at` flipped: the records before, or damage at an offset.
fn expected(image: &Image, at: usize, is_last: bool) -> Result<u64, u64> {
    if at < SEGMENT_HEADER_BYTES {
        return Err(0);
    }
    let Some(hit) = image.places.iter().rposition(|place| place.start <= at) else {
        panic!("every segment has records");
    };
    let place = &image.places[hit];
    let before = if place.is_mark {
        place.lsn
    } else {
        place.lsn - 1
    };
    // Behind everything there is only prepared space.
    let (start, before) = if at >= place.end {
        (place.end, place.lsn)
    } else {
        (place.start, before)
    };
    let proof = image.places[hit + 1..]
        .iter()
        .any(|later| later.synced > before);
    if is_last && !proof {
        Ok(before)
    } else {
        Err(start as u64)
    }
}

/// Flips every byte of the segments with and without marks, and compares what replay makes of it.
fn flip_everywhere(rig: &Rig, model: &[Kept]) {
    let images = rig.images();
    assert_eq!(rig.replay().unwrap(), model);
    let (mut prefixes, mut errors) = (0, 0);
    for (index, image) in images.iter().enumerate() {
        for at in 0..image.bytes.len() {
            let mut bytes = image.bytes.clone();
            // Another bit of each.
            bytes[at] ^= 1 << (at % 8);
            fs::write(&image.path, bytes).unwrap();
            let what = format!("{} flipped at {at}", image.path.display());
            match (rig.replay(), expected(image, at, index == images.len() - 1)) {
                (Ok(found), Ok(last)) => {
                    prefixes += 1;
                    assert_eq!(found, model[..last as usize], "{what}");
                }
                (Err(JournalError::Damaged { path, offset, .. }), Err(expected)) => {
                    errors += 1;
                    assert_eq!((path, offset), (image.path.clone(), expected), "{what}");
                }
                (found, expected) => panic!("{what}: {found:?}, not {expected:?}"),
            }
        }
        image.restore();
    }
    assert!(prefixes > 0 && errors > 0);
    assert_eq!(rig.replay().unwrap(), model);
}

#[tokio::test]
async fn a_flipped_byte_anywhere_is_damage_or_ends_the_journal_where_nothing_is_known_to_be_synced()
{
    let (rig, model) = small_journal().await;
    flip_everywhere(&rig, &model);
}

#[tokio::test]
async fn without_a_mark_a_flipped_byte_of_the_last_write_ends_the_journal_before_it() {
    let (rig, model) = small_journal().await;
    let mut last = rig.images().pop().unwrap();
    let end = last.end();
    last.bytes[end..].fill(0);
    last.restore();
    flip_everywhere(&rig, &model);
}

#[tokio::test]
async fn a_damaged_journal_reads_from_outside_as_for_a_node() {
    let (rig, _) = small_journal().await;
    let images = rig.images();
    for (index, image) in images.iter().enumerate() {
        for at in (0..image.end()).step_by(7) {
            let mut bytes = image.bytes.clone();
            bytes[at] ^= 0x04;
            fs::write(&image.path, bytes).unwrap();
            let seen = inspect(&rig.path(), |_| {}).map_err(|error| error.to_string());
            match expected(image, at, index == 2) {
                Ok(_) => seen.unwrap(),
                Err(offset) => {
                    let error = seen.unwrap_err();
                    let place = format!("{} is damaged at byte {offset}:", image.path.display());
                    assert!(error.contains(&place), "{error}");
                }
            }
        }
        image.restore();
    }
}

#[tokio::test]
async fn records_in_another_order_than_their_lsns_are_damage() {
    let (rig, _) = small_journal().await;
    let image = &rig.images()[0];
    let [first, second] = [&image.places[0], &image.places[1]];
    let mut bytes = image.bytes[..first.start].to_vec();
    bytes.extend(&image.bytes[second.start..second.end]);
    bytes.extend(&image.bytes[first.start..first.end]);
    bytes.extend(&image.bytes[second.end..]);
    fs::write(&image.path, bytes).unwrap();
    let error = rig.replay().unwrap_err().to_string();
    let reason = "at byte 96: the record has LSN 2, where LSN 1 belongs";
    assert!(error.contains(reason), "{error}");
}
