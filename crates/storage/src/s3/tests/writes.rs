//! Conditional writes and removals over a bad connection.

use super::*;

/// What fails without having been done, and says so.
const NOT_APPLIED: [Fault; 2] = [
    Fault::Answer(503, "SlowDown"),
    Fault::Answer(409, "ConditionalRequestConflict"),
];

#[tokio::test]
async fn a_write_succeeds_once_whatever_happens_to_its_first_attempt() {
    let setup = Setup::new().await;
    for (number, fault) in PASSING.into_iter().enumerate() {
        let key = format!("key-{number}");
        setup.proxy.plan(Operation::PutObject, [fault]);
        let created = done(setup.storage.put_if_absent(&key, "one".into()).await);
        let stored = setup.stored(&key).await.unwrap();
        let expected = Object {
            bytes: "one".into(),
            version: created.clone(),
        };
        assert_eq!(stored, expected, "{fault:?}");

        setup.proxy.plan(Operation::PutObject, [fault]);
        let put = setup.storage.put_if_match(&key, "two".into(), &created);
        let replaced = done(put.await);
        let stored = setup.stored(&key).await.unwrap();
        let expected = Object {
            bytes: "two".into(),
            version: replaced,
        };
        assert_eq!(stored, expected, "{fault:?}");
    }
    // Each fault but slowness costs one attempt more.
    let writes = 2 * PASSING.len();
    let seen = setup.proxy.seen(Operation::PutObject);
    assert_eq!(seen, 2 * writes - 2);
}

#[tokio::test]
async fn a_conflict_with_another_writer_stays_one() {
    let setup = Setup::new().await;
    let old = setup.create("key", "first").await;
    let put = setup.direct.put_if_match("key", "second".into(), &old);
    let new = done(put.await);
    for before in [None].into_iter().chain(NOT_APPLIED.map(Some)) {
        setup.proxy.plan(Operation::PutObject, before);
        let put = setup.storage.put_if_absent("key", "x".into()).await;
        assert_eq!(put, Ok(Put::Conflict), "{before:?}");
        setup.proxy.plan(Operation::PutObject, before);
        let put = setup.storage.put_if_match("key", "x".into(), &old).await;
        assert_eq!(put, Ok(Put::Conflict), "{before:?}");
        setup.proxy.plan(Operation::PutObject, before);
        let put = setup.storage.put_if_match("none", "x".into(), &old).await;
        assert_eq!(put, Ok(Put::Conflict), "{before:?}");
    }
    // Nothing was in doubt, so nobody looked who wrote it.
    assert_eq!(setup.proxy.seen(Operation::HeadObject), 0);
    assert_eq!(setup.stored("key").await.unwrap().version, new);
}

#[tokio::test]
async fn a_write_in_doubt_that_meets_another_writers_object_is_neither_done_nor_a_conflict() {
    let setup = Setup::new().await;
    setup.create("key", "another's").await;
    setup.proxy.plan(Operation::PutObject, [Fault::ReplyLost]);
    let error = setup.storage.put_if_absent("key", "x".into()).await;
    let error = error.unwrap_err();
    // It may have been written, and replaced before anybody looked.
    assert_eq!(error.kind(), StorageErrorKind::OutcomeUnknown, "{error}");
    assert_eq!(setup.stored("key").await.unwrap().bytes, "another's");
}

#[tokio::test]
async fn an_own_write_is_recognised_when_no_attempt_gets_its_reply() {
    let setup = Setup::new().await;
    setup.proxy.always(Operation::PutObject, Fault::ReplyLost);
    let created = done(setup.storage.put_if_absent("key", "one".into()).await);
    let put = setup.storage.put_if_match("key", "two".into(), &created);
    let replaced = done(put.await);
    let stored = setup.stored("key").await.unwrap();
    assert_eq!((&*stored.bytes, stored.version), (&b"two"[..], replaced));
}

#[tokio::test]
async fn an_own_write_that_cannot_be_looked_at_is_in_doubt() {
    let setup = Setup::new().await;
    setup.proxy.plan(Operation::PutObject, [Fault::ReplyLost]);
    let fault = Fault::Answer(500, "InternalError");
    setup.proxy.always(Operation::HeadObject, fault);
    let error = setup.storage.put_if_absent("key", "x".into()).await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::OutcomeUnknown, "{error}");
    assert_eq!(setup.stored("key").await.unwrap().bytes, "x");
}

#[tokio::test]
async fn a_delayed_write_does_not_undo_its_own_repetition() {
    let setup = Setup::new().await;
    setup.proxy.plan(Operation::PutObject, [Fault::Late]);
    let created = done(setup.storage.put_if_absent("key", "one".into()).await);
    assert_eq!(setup.proxy.deliver().await, [412]);
    assert_eq!(setup.stored("key").await.unwrap().version, created);

    setup.proxy.plan(Operation::PutObject, [Fault::Late]);
    let put = setup.storage.put_if_match("key", "two".into(), &created);
    let replaced = done(put.await);
    let put = setup.direct.put_if_match("key", "three".into(), &replaced);
    done(put.await);
    assert_eq!(setup.proxy.deliver().await, [412]);
    assert_eq!(setup.stored("key").await.unwrap().bytes, "three");
}

#[tokio::test]
async fn of_a_delayed_write_and_another_one_exactly_one_wins() {
    let setup = Setup::new().await;
    setup.proxy.always(Operation::PutObject, Fault::Late);
    for lands_first in [false, true] {
        let key = format!("key-{lands_first}");
        let put = setup.storage.put_if_absent(&key, "delayed".into()).await;
        let error = put.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::OutcomeUnknown, "{error}");
        assert_eq!(setup.stored(&key).await, None);
        if lands_first {
            assert_eq!(setup.proxy.deliver().await, [200, 412, 412, 412]);
            let put = setup.direct.put_if_absent(&key, "other".into()).await;
            assert_eq!(put, Ok(Put::Conflict));
            assert_eq!(setup.stored(&key).await.unwrap().bytes, "delayed");
        } else {
            setup.create(&key, "other").await;
            assert_eq!(setup.proxy.deliver().await, [412; 4]);
            assert_eq!(setup.stored(&key).await.unwrap().bytes, "other");
        }
    }

    let old = setup.create("key", "old").await;
    let put = setup.storage.put_if_match("key", "delayed".into(), &old);
    let error = put.await.unwrap_err();
    assert_eq!(error.kind(), StorageErrorKind::OutcomeUnknown, "{error}");
    let put = setup.direct.put_if_match("key", "other".into(), &old);
    done(put.await);
    assert_eq!(setup.proxy.deliver().await, [412; 4]);
    assert_eq!(setup.stored("key").await.unwrap().bytes, "other");
}

#[tokio::test]
async fn a_write_that_fails_for_good_says_whether_it_may_have_been_applied() {
    for (fault, expected) in [
        (
            Fault::Answer(503, "SlowDown"),
            StorageErrorKind::Unavailable,
        ),
        (
            Fault::Answer(409, "ConditionalRequestConflict"),
            StorageErrorKind::Unavailable,
        ),
        (
            Fault::Answer(500, "InternalError"),
            StorageErrorKind::OutcomeUnknown,
        ),
        (Fault::RequestCut, StorageErrorKind::OutcomeUnknown),
    ] {
        let setup = Setup::new().await;
        setup.proxy.always(Operation::PutObject, fault);
        setup.proxy.always(Operation::DeleteObject, fault);
        let put = setup.storage.put_if_absent("key", "x".into()).await;
        let error = put.unwrap_err();
        assert_eq!(error.kind(), expected, "{fault:?}: {error}");
        assert_eq!(setup.stored("key").await, None);
        // One layer of attempts, not two.
        let attempts = LIMITS.attempts_max as usize;
        assert_eq!(setup.proxy.seen(Operation::PutObject), attempts);

        let old = setup.create("key", "old").await;
        let put = setup.storage.put_if_match("key", "x".into(), &old).await;
        let error = put.unwrap_err();
        assert_eq!(error.kind(), expected, "{fault:?}: {error}");
        let error = setup.storage.delete("key").await.unwrap_err();
        assert_eq!(error.kind(), expected, "{fault:?}: {error}");
        assert_eq!(setup.proxy.seen(Operation::DeleteObject), attempts);
        assert_eq!(setup.stored("key").await.unwrap().bytes, "old");
    }
}

#[tokio::test]
async fn what_the_server_refuses_is_not_asked_again() {
    let setup = Setup::new().await;
    for (status, code) in [
        (403, "AccessDenied"),
        (400, "InvalidRequest"),
        (501, "NotImplemented"),
    ] {
        setup
            .proxy
            .plan(Operation::PutObject, [Fault::Answer(status, code)]);
        let put = setup.storage.put_if_absent("key", "x".into()).await;
        let error = put.unwrap_err();
        assert_eq!(error.kind(), StorageErrorKind::Refused, "{error}");
        assert!(error.to_string().contains(code), "{error}");
    }
    assert_eq!(setup.proxy.seen(Operation::PutObject), 3);
}

#[tokio::test]
async fn a_removal_is_repeated_until_it_is_answered() {
    let setup = Setup::new().await;
    for fault in PASSING {
        setup.create("key", "x").await;
        setup.proxy.plan(Operation::DeleteObject, [fault]);
        assert_eq!(setup.storage.delete("key").await, Ok(()), "{fault:?}");
        assert_eq!(setup.stored("key").await, None, "{fault:?}");
    }
}

#[tokio::test]
async fn writes_to_a_server_that_says_nothing_end_in_doubt() {
    let setup = Setup::with(IMPATIENT).await;
    let old = setup.create("old", "old").await;
    for operation in [
        Operation::PutObject,
        Operation::DeleteObject,
        Operation::HeadObject,
    ] {
        setup.proxy.always(operation, Fault::Silence);
    }
    let large = Bytes::from(vec![7; 1 << 20]);
    let errors = [
        setup.storage.put_if_absent("key", "x".into()).await.err(),
        setup.storage.put_if_absent("key", large).await.err(),
        setup
            .storage
            .put_if_match("old", "x".into(), &old)
            .await
            .err(),
        setup.storage.delete("old").await.err(),
    ];
    for error in errors {
        let error = error.unwrap();
        assert_eq!(error.kind(), StorageErrorKind::OutcomeUnknown, "{error}");
        assert!(error.to_string().contains("no answer within"), "{error}");
    }
    assert_eq!(setup.proxy.seen(Operation::PutObject), 12);
    assert_eq!(setup.stored("old").await.unwrap().bytes, "old");
    assert_eq!(setup.stored("key").await, None);
}
