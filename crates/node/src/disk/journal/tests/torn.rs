//! The end of a journal that a crash cut short.

use super::*;

/// A journal as a kill leaves it, with three records in a first segment and four in the last, each synced before the next.
async fn killed_journal() -> (Rig, Vec<Kept>) {
    let rig = Rig::new(4096);
    let journal = rig.open();
    let mut model = fill(&journal, 3).await;
    journal.close().unwrap();
    let journal = rig.open();
    model.extend(fill(&journal, 4).await);
    let killed = rig.killed();
    assert_eq!(killed.segments().len(), 2);
    // A mark that came while the copy was made says too much.
    let last = last_image(&killed);
    let mut bytes = last.bytes.clone();
    bytes[last.end()..].fill(0);
    fs::write(&last.path, bytes).unwrap();
    (killed, model)
}

fn last_image(rig: &Rig) -> Image {
    rig.images().pop().unwrap()
}

/// Reads the journal, goes on with it, and reads it again.
async fn goes_on_behind(rig: &Rig, model: &[Kept], what: &str) {
    assert_eq!(rig.replay().unwrap(), model, "{what}");
    let journal = rig.open();
    let mut model = model.to_vec();
    model.push(soon(commit(&journal, &keys(77, 1))).await);
    assert_eq!(model[model.len() - 1].0, model.len() as u64, "{what}");
    assert_eq!(rig.killed().replay().unwrap(), model, "{what}");
    journal.close().unwrap();
    assert_eq!(rig.replay().unwrap(), model, "{what}");
}

/// Takes away what the last attempt added.
fn reset(rig: &Rig, images: &[Image]) {
    for segment in rig.segments() {
        fs::remove_file(segment.path).unwrap();
    }
    images.iter().for_each(Image::restore);
}

#[tokio::test]
async fn a_last_segment_that_is_cut_anywhere_is_an_error_that_names_it() {
    let (rig, _) = killed_journal().await;
    let images = rig.images();
    let last = &images[1];
    for cut in 0..last.bytes.len() {
        fs::write(&last.path, &last.bytes[..cut]).unwrap();
        for found in [rig.replay().map(|_| ()), inspect(&rig.path(), |_| {})] {
            let error = found.unwrap_err().to_string();
            let words = if cut < SEGMENT_HEADER_BYTES {
                "header is damaged"
            } else {
                "its file ends there, and was made with 4096 bytes"
            };
            assert!(error.contains(words), "cut at {cut}: {error}");
            assert!(error.contains(&*last.path.to_string_lossy()), "{error}");
        }
    }
}

#[tokio::test]
async fn a_last_segment_that_is_missing_is_an_error() {
    let (rig, model) = killed_journal().await;
    let images = rig.images();
    fs::remove_file(&images[1].path).unwrap();
    let error = rig.replay().unwrap_err().to_string();
    let words = "its end is missing, or the segment that followed it";
    assert!(error.contains(words), "{error}");
    assert!(
        error.contains(&*images[0].path.to_string_lossy()),
        "{error}"
    );
    images[1].restore();
    assert_eq!(rig.replay().unwrap(), model);
}

#[tokio::test]
async fn the_journal_goes_on_behind_a_last_record_that_ends_in_zeros() {
    let (rig, model) = killed_journal().await;
    let images = rig.images();
    let last = &images[1];
    for cut in (last.places[1].start..=last.end()).step_by(5) {
        reset(&rig, &images);
        let mut bytes = last.bytes.clone();
        bytes[cut..].fill(0);
        let is_same = |place: &&Place| bytes[..place.end] == last.bytes[..place.end];
        let whole = last.places.iter().filter(is_same).count();
        fs::write(&last.path, &bytes).unwrap();
        goes_on_behind(&rig, &model[..3 + whole], &format!("zeros from {cut} on")).await;
    }
}

#[tokio::test]
async fn a_last_record_that_ends_in_zeros_anywhere_gives_the_records_before() {
    let (rig, model) = killed_journal().await;
    let images = rig.images();
    let last = &images[1];
    for cut in last.places[1].start..=last.end() {
        let mut bytes = last.bytes.clone();
        bytes[cut..].fill(0);
        // The last bytes of a record may be zeros anyway.
        let is_same = |place: &&Place| bytes[..place.end] == last.bytes[..place.end];
        let whole = last.places.iter().filter(is_same).count();
        fs::write(&last.path, &bytes).unwrap();
        let found = rig.replay().unwrap();
        assert_eq!(found, model[..3 + whole], "zeros from {cut} on");
    }
}

#[tokio::test]
async fn what_is_kept_of_the_last_segment_is_written_again_before_it_is_told_of() {
    // After a sync that failed, the disk may lack what is read here, and another sync would write nothing.
    let (rig, model) = killed_journal().await;
    let last = last_image(&rig);
    let modified = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    let long_ago = std::time::SystemTime::UNIX_EPOCH;
    let file = fs::File::options().write(true).open(&last.path).unwrap();
    file.set_modified(long_ago).unwrap();
    assert_eq!(rig.replay().unwrap(), model);
    assert_ne!(modified(&last.path), long_ago);
    assert_eq!(fs::read(&last.path).unwrap(), last.bytes);
}

#[tokio::test]
async fn a_torn_end_is_overwritten_with_zeros() {
    let (rig, model) = killed_journal().await;
    let images = rig.images();
    let last = &images[1];
    assert!(last.bytes.len() > last.end());
    rig.replay().unwrap();
    assert_eq!(fs::read(&last.path).unwrap(), last.bytes);
    let ends_at = |end: usize| {
        let bytes = fs::read(&last.path).unwrap();
        assert_eq!(bytes.len(), last.bytes.len());
        assert_eq!(bytes[..end], last.bytes[..end]);
        assert!(bytes[end..].iter().all(|byte| *byte == 0));
    };

    let mut torn = last.bytes.clone();
    torn[last.places[3].start + 20] ^= 1;
    fs::write(&last.path, &torn).unwrap();
    assert_eq!(rig.replay().unwrap(), model[..6]);
    ends_at(last.places[3].start);
    // Even if nothing is written this time, the second time is as the first.
    assert_eq!(rig.replay().unwrap(), model[..6]);

    for at in [last.end(), last.bytes.len() - 1] {
        let mut stray = last.bytes.clone();
        stray[at] = 1;
        fs::write(&last.path, &stray).unwrap();
        assert_eq!(rig.replay().unwrap(), model, "something at {at}");
        ends_at(last.end());
    }
}

#[tokio::test]
async fn a_hole_in_what_was_written_at_once_ends_the_journal_before_it() {
    let rig = Rig::new(4096);
    let journal = rig.open();
    let mut model = fill(&journal, 2).await;
    // None of these says of the others that they are synced.
    let space = journal.admit(2000).await.unwrap();
    let blocker = space.begin();
    let rest: Vec<Kept> = (10..14)
        .map(|number| put(space.begin(), &keys(number, 3)))
        .collect();
    model.push(put(blocker, &keys(9, 3)));
    model.extend(rest);
    soon(journal.wait_committed(Lsn(7))).await.unwrap();
    let killed = rig.killed();
    let mut image = last_image(&killed);
    let end = image.end();
    image.bytes[end..].fill(0);
    image.restore();
    for hole in 2..7 {
        reset(&killed, std::slice::from_ref(&image));
        let mut bytes = image.bytes.clone();
        bytes[image.places[hole].start..image.places[hole].end].fill(0);
        fs::write(&image.path, bytes).unwrap();
        goes_on_behind(&killed, &model[..hole], &format!("hole at {hole}")).await;
    }
}

#[tokio::test]
async fn a_hole_in_what_a_later_record_calls_synced_is_damage() {
    let (rig, model) = killed_journal().await;
    let last = last_image(&rig);
    for (hole, place) in last.places.iter().enumerate() {
        let mut bytes = last.bytes.clone();
        bytes[place.start..place.end].fill(0);
        fs::write(&last.path, bytes).unwrap();
        let found = rig.replay();
        if hole + 1 == last.places.len() {
            assert_eq!(found.unwrap(), model[..6]);
            continue;
        }
        let error = found.unwrap_err();
        let next = &last.places[hole + 1];
        assert!(
            matches!(&error, JournalError::Damaged { path, offset, reason }
                if *path == last.path
                    && *offset == place.start as u64
                    && reason.contains(&format!("LSN {} was synced", place.lsn))
                    && reason.contains(&format!("the record at byte {} says", next.start))),
            "{error}"
        );
        // It is for a human to look at.
        assert_eq!(fs::metadata(&last.path).unwrap().len(), 4096);
    }
}

#[tokio::test]
async fn a_mark_makes_a_damaged_last_record_known_as_one() {
    let rig = Rig::new(4096);
    let journal = rig.open();
    fill(&journal, 3).await;
    // Nothing is written for a while, and the mark says what is synced.
    eventually(async || last_image(&rig).places.len() == 4).await;
    let killed = rig.killed();
    let image = last_image(&killed);
    assert!(image.places[3].is_mark);
    assert_eq!((image.places[3].lsn, image.places[3].synced), (3, 3));
    let mut bytes = image.bytes.clone();
    bytes[image.places[2].start + 50] ^= 1;
    fs::write(&image.path, bytes).unwrap();
    let error = killed.replay().unwrap_err().to_string();
    assert!(error.contains("LSN 3 was synced"), "{error}");
    let offset = format!("at byte {}:", image.places[2].start);
    assert!(error.contains(&offset), "{error}");
}

#[tokio::test]
async fn any_segment_but_the_last_that_ends_early_is_an_error_that_names_it() {
    let (rig, _) = killed_journal().await;
    let images = rig.images();
    let first = &images[0];
    for cut in 0..first.end() {
        fs::write(&first.path, &first.bytes[..cut]).unwrap();
        let error = rig.replay().unwrap_err();
        let at_boundary =
            cut == SEGMENT_HEADER_BYTES || first.places.iter().any(|place| place.end == cut);
        match &error {
            JournalError::Damaged { path, offset, .. } if !at_boundary => {
                assert_eq!(path, &first.path);
                let starts = first.places.iter().map(|place| place.start);
                let expected = starts.filter(|start| *start <= cut).max().unwrap_or(0);
                assert_eq!(*offset, expected as u64, "cut at {cut}");
            }
            // Between two records nothing is torn. The next segment says what is missing.
            JournalError::Incomplete { path, reason } if at_boundary => {
                assert_eq!(path, &images[1].path);
                assert!(reason.contains("it follows LSN 3,"), "{reason}");
            }
            other => panic!("cut at {cut}: {other}"),
        }
    }
    // The mark behind the last record may be missing.
    fs::write(&first.path, &first.bytes[..first.end()]).unwrap();
    rig.replay().unwrap();
}
