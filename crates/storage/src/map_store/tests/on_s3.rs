//! The map in a bucket: of the S3 server that the tests are given, or of one in this process.

use super::*;
use crate::{
    s3::S3Storage,
    testing::{Fault, FaultProxy, Operation, TestBucket},
};

/// A cluster's map in a bucket, and a writer behind a bad connection.
async fn cluster_behind() -> (FaultProxy, MapStore, MapStore) {
    let bucket = TestBucket::any().await;
    let proxy = FaultProxy::before(&bucket).await;
    let direct = MapStore::new(S3Storage::hasty(&bucket));
    direct.init(&three_nodes()).await.unwrap();
    let store = MapStore::new(S3Storage::hasty(proxy.bucket()));
    (proxy, store, direct)
}

/// The next writes of the map are applied without a reply, and nobody can say who wrote it but the map itself.
fn lose_replies(proxy: &FaultProxy, count: usize) {
    proxy.plan_for(
        Operation::PutObject,
        MAP_KEY,
        std::iter::repeat_n(Fault::ReplyLost, count),
    );
    let fault = Fault::Answer(500, "InternalError");
    proxy.always(Operation::HeadObject, fault);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_concurrent_inits_one_creates_and_nothing_but_the_map_stays() {
    let bucket = TestBucket::any().await;
    init_at_once(|| S3Storage::hasty(&bucket)).await;
    let page = S3Storage::hasty(&bucket).list("", None).await.unwrap();
    let keys: Vec<_> = page.objects.iter().map(|object| &*object.key).collect();
    assert_eq!(keys, [MAP_KEY]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_updates_are_all_applied() {
    let bucket = TestBucket::any().await;
    update_at_once(|| S3Storage::hasty(&bucket)).await;
}

#[tokio::test]
async fn init_recognises_its_own_map_after_a_lost_reply() {
    let bucket = TestBucket::any().await;
    let proxy = FaultProxy::before(&bucket).await;
    lose_replies(&proxy, 1);
    let store = MapStore::new(S3Storage::hasty(proxy.bucket()));
    let map = created(store.init(&three_nodes()).await);
    let direct = MapStore::new(S3Storage::hasty(&bucket));
    assert_eq!(direct.load().await, Ok(Some(map)));
}

#[tokio::test]
async fn an_update_recognises_its_own_map_after_a_lost_reply() {
    let (proxy, store, direct) = cluster_behind().await;
    lose_replies(&proxy, 1);
    let map = store.update(count_loss).await.unwrap();
    assert_eq!((map.epoch, map.nodes[0].loss_count), (2, 1));
    assert_eq!(direct.load().await, Ok(Some(map)));
    // The storage did not know, so it was the map's own nonce.
    assert!(proxy.seen(Operation::HeadObject) > 0);
    assert_eq!(proxy.seen(Operation::PutObject), 2);
}

#[tokio::test]
async fn an_update_that_lands_late_is_not_applied_on_top_of_another() {
    let (proxy, store, direct) = cluster_behind().await;
    proxy.plan_for(Operation::PutObject, MAP_KEY, [Fault::Late]);
    store.update(count_loss).await.unwrap();
    let map = direct.update(count_loss).await.unwrap();
    assert_eq!(proxy.deliver().await, [412]);
    assert_eq!((map.epoch, map.nodes[0].loss_count), (3, 2));
    assert_eq!(direct.load().await, Ok(Some(map)));
}
