use std::process::{Child, Command, Stdio};

use super::*;
use crate::conformance::{self, Handles, WRITERS, conformance_tests};

/// Separate storages on one directory, as separate processes would have.
fn open_many() -> Handles {
    let dir = tempfile::tempdir().unwrap();
    let open = || Arc::new(LocalStorage::create(dir.path()).unwrap()) as Arc<dyn ObjectStorage>;
    Handles {
        handles: (0..WRITERS).map(|_| open()).collect(),
        _dir: Some(dir),
        _bucket: None,
    }
}

conformance_tests!(open_many());

mod one_instance {
    use super::*;

    fn open_one() -> Handles {
        let dir = tempfile::tempdir().unwrap();
        let storage: Arc<dyn ObjectStorage> = Arc::new(LocalStorage::create(dir.path()).unwrap());
        Handles {
            handles: vec![storage; WRITERS],
            _dir: Some(dir),
            _bucket: None,
        }
    }

    conformance_tests!(open_one(); of_racing_creators_exactly_one_wins of_racing_replacers_exactly_one_wins);
}

async fn put(storage: &LocalStorage, key: &str, text: &'static str) -> Version {
    match storage.put_if_absent(key, text.into()).await.unwrap() {
        Put::Done(version) => version,
        Put::Conflict => panic!("{key} exists"),
    }
}

fn file_names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn objects_outlive_the_storage_that_wrote_them() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("made/by/open");
    let version = put(&LocalStorage::create(&deep).unwrap(), "key", "kept").await;
    let object = LocalStorage::create(&deep)
        .unwrap()
        .get("key")
        .await
        .unwrap()
        .unwrap();
    assert_eq!((&object.bytes[..], object.version), (&b"kept"[..], version));
}

#[tokio::test]
async fn an_object_is_a_readable_file_named_after_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let storage = LocalStorage::create(dir.path()).unwrap();
    put(&storage, "a/b.json", "{\"x\": 1}\n").await;
    storage.now().await.unwrap();
    assert_eq!(file_names(dir.path()), ["a+b.json", CLOCK_NAME, LOCK_NAME]);
    let text = fs::read_to_string(dir.path().join("a+b.json")).unwrap();
    let (header, content) = text.split_once('\n').unwrap();
    assert!(header.starts_with("keydb-object format=1 "), "{header}");
    assert_eq!(content, "{\"x\": 1}\n");
}

#[tokio::test]
async fn a_damaged_file_is_an_error_and_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let storage = LocalStorage::create(dir.path()).unwrap();
    let version = put(&storage, "key", "content").await;
    let path = dir.path().join("key");
    let intact = fs::read(&path).unwrap();
    let cut = &intact[..intact.len() - 1];
    for damaged in [&b""[..], b"content", cut] {
        fs::write(&path, damaged).unwrap();
        for error in [
            storage.get("key").await.unwrap_err(),
            storage
                .put_if_match("key", "new".into(), &version)
                .await
                .unwrap_err(),
        ] {
            assert_eq!(error.kind(), StorageErrorKind::Refused);
            let text = error.to_string();
            assert!(
                text.contains(path.to_str().unwrap()) && text.contains("damaged"),
                "{text}"
            );
        }
        assert_eq!(
            storage.put_if_absent("key", "new".into()).await,
            Ok(Put::Conflict)
        );
        assert_eq!(fs::read(&path).unwrap(), damaged);
    }
}

#[tokio::test]
async fn temporary_files_of_a_crashed_writer_are_harmless_and_removed_by_the_next_open() {
    let dir = tempfile::tempdir().unwrap();
    let storage = LocalStorage::create(dir.path()).unwrap();
    put(&storage, "key", "content").await;
    fs::write(dir.path().join("~tmp-0123456789abcdef"), "half a he").unwrap();
    assert_eq!(storage.get("key").await.unwrap().unwrap().bytes, "content");
    put(&storage, "other", "content").await;

    let held = storage.lock().unwrap();
    LocalStorage::create(dir.path()).unwrap();
    assert!(
        file_names(dir.path()).contains(&"~tmp-0123456789abcdef".to_owned()),
        "it may be a live writer's"
    );
    drop(held);
    LocalStorage::create(dir.path()).unwrap();
    assert_eq!(file_names(dir.path()), ["key", "other", LOCK_NAME]);
}

#[tokio::test]
async fn a_write_gives_up_when_the_lock_is_held_for_too_long_and_reads_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = LocalStorage::create(dir.path()).unwrap();
    storage.lock_wait_max = Duration::from_millis(20);
    let version = put(&storage, "key", "content").await;
    let held = LocalStorage::create(dir.path()).unwrap().lock().unwrap();

    let error = storage
        .put_if_match("key", "new".into(), &version)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Unavailable);
    assert!(error.to_string().contains(LOCK_NAME), "{error}");
    assert_eq!(storage.get("key").await.unwrap().unwrap().bytes, "content");
    storage.now().await.unwrap();

    drop(held);
    let put = storage.put_if_match("key", "new".into(), &version).await;
    assert!(matches!(put, Ok(Put::Done(_))));
}

#[tokio::test]
async fn a_directory_that_is_gone_is_an_error_and_not_empty() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("storage");
    let storage = LocalStorage::create(&dir).unwrap();
    let version = put(&storage, "key", "content").await;
    // Gone, then replaced by an empty one, as by the mount point of a file system that is not mounted.
    for leave in [fs::remove_dir_all, fs::create_dir] as [fn(PathBuf) -> io::Result<()>; 2] {
        leave(dir.clone()).unwrap();
        for error in [
            storage.get("key").await.unwrap_err(),
            storage
                .put_if_absent("key", "new".into())
                .await
                .unwrap_err(),
            storage
                .put_if_match("key", "new".into(), &version)
                .await
                .unwrap_err(),
            storage.now().await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), StorageErrorKind::Unavailable, "{error}");
            assert!(error.to_string().contains(dir.to_str().unwrap()), "{error}");
        }
    }
    assert_eq!(file_names(&dir), [""; 0]);
}

#[tokio::test]
async fn the_time_is_the_file_systems() {
    let dir = tempfile::tempdir().unwrap();
    let storage = LocalStorage::create(dir.path()).unwrap();
    let modified = |path: &Path| {
        let modified = fs::metadata(path).unwrap().modified().unwrap();
        let since_epoch = modified.duration_since(std::time::UNIX_EPOCH).unwrap();
        UnixMillis::default().plus(since_epoch)
    };
    fs::write(dir.path().join("before"), "").unwrap();
    let now = storage.now().await.unwrap();
    fs::write(dir.path().join("after"), "").unwrap();
    assert!(modified(&dir.path().join("before")) <= now);
    assert!(now <= modified(&dir.path().join("after")));
}

#[test]
fn a_directory_that_cannot_be_used_is_refused_with_its_path() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("file");
    fs::write(&file, "").unwrap();
    for dir in [file.clone(), file.join("below")] {
        let error = LocalStorage::create(&dir).unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Refused, "{error}");
        assert!(error.to_string().contains(dir.to_str().unwrap()), "{error}");
    }
}

#[tokio::test]
async fn a_directory_without_permission_is_refused_with_its_path() {
    use std::os::unix::fs::PermissionsExt;

    if rustix::process::geteuid().is_root() {
        // Nothing is forbidden to root.
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let storage = LocalStorage::create(dir.path()).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o500)).unwrap();
    let error = storage.put_if_absent("key", "x".into()).await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::Refused, "{error}");
    assert!(
        error.to_string().contains(dir.path().to_str().unwrap()),
        "{error}"
    );
    assert_eq!(storage.get("key").await, Ok(None));
}

// Tests with several processes run this test binary again, for one test, with this variable naming the directory.
const CHILD_DIR: &str = "KEYDB_STORAGE_TEST_CHILD_DIR";
const CHILD_INCREMENTS: usize = 25;

fn spawn_child(test: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("local::tests::{test}"), "--nocapture"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn child_dir() -> Option<PathBuf> {
    std::env::var_os(CHILD_DIR).map(PathBuf::from)
}

#[tokio::test]
async fn no_increment_of_several_processes_is_lost() {
    const PROCESSES: usize = 4;
    if let Some(dir) = child_dir() {
        let storage = LocalStorage::create(&dir).unwrap();
        return conformance::increment(&storage, "count", CHILD_INCREMENTS).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let storage = LocalStorage::create(dir.path()).unwrap();
    put(&storage, "count", "0").await;
    let test = "no_increment_of_several_processes_is_lost";
    let children: Vec<_> = (0..PROCESSES)
        .map(|_| spawn_child(test, dir.path()))
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let count = storage.get("count").await.unwrap().unwrap().bytes;
    assert_eq!(count, (PROCESSES * CHILD_INCREMENTS).to_string());
}

#[tokio::test]
async fn a_process_killed_while_it_writes_leaves_a_whole_object_and_no_lock() {
    if let Some(dir) = child_dir() {
        let storage = LocalStorage::create(&dir).unwrap();
        conformance::increment(&storage, "count", usize::MAX).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let storage = LocalStorage::create(dir.path()).unwrap();
    put(&storage, "count", "0").await;
    let count = async || -> u64 {
        let bytes = storage.get("count").await.unwrap().unwrap().bytes;
        std::str::from_utf8(&bytes).unwrap().parse().unwrap()
    };
    for _ in 0..10 {
        let before = count().await;
        let test = "a_process_killed_while_it_writes_leaves_a_whole_object_and_no_lock";
        let mut child = spawn_child(test, dir.path());
        while count().await < before + 5 {
            assert!(
                child.try_wait().unwrap().is_none(),
                "the child ended by itself"
            );
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let after = count().await;
        conformance::increment(&storage, "count", 1).await;
        assert_eq!(count().await, after + 1);
    }
}
