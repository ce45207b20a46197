//! What the in-process S3 server serves: buckets in memory.
//!
//! One lock is held from looking at a condition until the write that depends on it is done, and bodies are read before it is taken.
//! So conditional writes are exclusive, which a server that first checks and then writes files (as `s3s-fs` does) is not.
//!
//! Where S3's behaviour matters to a client, it is S3's: an ETag is made from the content, a condition on an object that does not
//! exist is 404 with `If-Match`, parts but the last have 5 MiB at least, a list has 1,000 objects at most.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use keydb_core::{OperationId, hex};
use md5::{Digest, Md5};
use s3s::{
    S3, S3Request, S3Response, S3Result,
    dto::{
        AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput,
        CompleteMultipartUploadOutput, CreateBucketInput, CreateBucketOutput,
        CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteObjectInput,
        DeleteObjectOutput, ETag, ETagCondition, GetObjectInput, GetObjectOutput, HeadBucketInput,
        HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListMultipartUploadsInput,
        ListMultipartUploadsOutput, ListObjectsV2Input, ListObjectsV2Output, ListPartsInput,
        ListPartsOutput, Metadata, MultipartUpload, Object, Part, PutObjectInput, PutObjectOutput,
        StreamingBlob, Timestamp, UploadPartInput, UploadPartOutput,
    },
    s3_error,
};

const PART_BYTES_MIN: usize = 5 << 20;
const LIST_MAX: usize = 1000;

/// All buckets.
#[derive(Debug, Default)]
pub(super) struct Objects(Mutex<BTreeMap<String, Bucket>>);

#[derive(Debug, Default)]
struct Bucket {
    objects: BTreeMap<String, Stored>,
    uploads: BTreeMap<String, Upload>,
}

#[derive(Debug, Clone)]
struct Stored {
    bytes: Bytes,
    etag: ETag,
    modified: Timestamp,
    metadata: Option<Metadata>,
}

#[derive(Debug)]
struct Upload {
    key: String,
    initiated: Timestamp,
    metadata: Option<Metadata>,
    parts: BTreeMap<i32, (Bytes, ETag)>,
}

/// The buckets under their lock.
struct Locked<'a>(MutexGuard<'a, BTreeMap<String, Bucket>>);

impl Locked<'_> {
    fn bucket(&mut self, name: &str) -> S3Result<&mut Bucket> {
        self.0.get_mut(name).ok_or_else(|| s3_error!(NoSuchBucket))
    }

    fn object(&mut self, bucket: &str, key: &str) -> S3Result<Stored> {
        let stored = self.bucket(bucket)?.objects.get(key);
        stored.cloned().ok_or_else(|| s3_error!(NoSuchKey))
    }

    fn upload(&mut self, bucket: &str, key: &str, id: &str) -> S3Result<&mut Upload> {
        let upload = self.bucket(bucket)?.uploads.get_mut(id);
        upload
            .filter(|upload| upload.key == key)
            .ok_or_else(|| s3_error!(NoSuchUpload))
    }
}

impl Objects {
    fn lock(&self) -> Locked<'_> {
        Locked(self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a server has a clock of its own, which its Date header shows too"
)]
fn now() -> Timestamp {
    SystemTime::now().into()
}

/// Whether a write may go ahead over what is there.
fn check(
    current: Option<&Stored>,
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
) -> S3Result<()> {
    if let Some(condition) = if_match {
        let current = current.ok_or_else(|| s3_error!(NoSuchKey))?;
        if !matches(condition, &current.etag) {
            return Err(s3_error!(PreconditionFailed));
        }
    }
    match (if_none_match, current) {
        (Some(condition), Some(current)) if matches(condition, &current.etag) => {
            Err(s3_error!(PreconditionFailed))
        }
        _ => Ok(()),
    }
}

fn matches(condition: &ETagCondition, etag: &ETag) -> bool {
    match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(tag) => tag.strong_cmp(etag),
    }
}

async fn all_of(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let Some(mut body) = body else {
        return Ok(Bytes::new());
    };
    let mut bytes = BytesMut::new();
    while let Some(chunk) = body
        .try_next()
        .await
        .map_err(|_| s3_error!(IncompleteBody))?
    {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

fn size(bytes: &Bytes) -> i64 {
    i64::try_from(bytes.len()).unwrap_or(i64::MAX)
}

#[async_trait]
impl S3 for Objects {
    async fn create_bucket(
        &self,
        request: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        self.lock().0.entry(request.input.bucket).or_default();
        Ok(S3Response::new(CreateBucketOutput::default()))
    }

    async fn head_bucket(
        &self,
        request: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        self.lock().bucket(&request.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn put_object(
        &self,
        request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        let bytes = all_of(input.body).await?;
        let stored = Stored {
            etag: ETag::Strong(hex(&Md5::digest(&bytes))),
            bytes,
            modified: now(),
            metadata: input.metadata,
        };
        let etag = stored.etag.clone();
        let mut locked = self.lock();
        let objects = &mut locked.bucket(&input.bucket)?.objects;
        check(
            objects.get(&input.key),
            input.if_match.as_ref(),
            input.if_none_match.as_ref(),
        )?;
        objects.insert(input.key, stored);
        Ok(S3Response::new(PutObjectOutput {
            e_tag: Some(etag),
            ..Default::default()
        }))
    }

    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let stored = self.lock().object(&input.bucket, &input.key)?;
        check(Some(&stored), input.if_match.as_ref(), None)?;
        let mut bytes = stored.bytes;
        let mut content_range = None;
        if let Some(range) = input.range {
            let whole = bytes.len();
            let range = range
                .check(whole as u64)
                .map_err(|_| s3_error!(InvalidRange))?;
            content_range = Some(format!("bytes {}-{}/{whole}", range.start, range.end - 1));
            bytes = bytes.slice(range.start as usize..range.end as usize);
        }
        Ok(S3Response::new(GetObjectOutput {
            content_length: Some(size(&bytes)),
            content_range,
            body: Some(s3s::Body::from(bytes).into()),
            e_tag: Some(stored.etag),
            last_modified: Some(stored.modified),
            metadata: stored.metadata,
            ..Default::default()
        }))
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let stored = self
            .lock()
            .object(&request.input.bucket, &request.input.key)?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(size(&stored.bytes)),
            e_tag: Some(stored.etag),
            last_modified: Some(stored.modified),
            metadata: stored.metadata,
            ..Default::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        let prefix = input.prefix.unwrap_or_default();
        let max = input.max_keys.and_then(|max| usize::try_from(max).ok());
        let max = max.unwrap_or(LIST_MAX).min(LIST_MAX);
        // A continuation token is the last key that was told.
        let after = input.continuation_token.or(input.start_after);
        let from = match &after {
            Some(after) if *after >= prefix => Bound::Excluded(after.as_str()),
            _ => Bound::Included(prefix.as_str()),
        };
        let mut locked = self.lock();
        let mut matching = locked
            .bucket(&input.bucket)?
            .objects
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(&prefix));
        let contents: Vec<Object> = matching
            .by_ref()
            .take(max)
            .map(|(key, stored)| Object {
                key: Some(key.clone()),
                size: Some(size(&stored.bytes)),
                e_tag: Some(stored.etag.clone()),
                last_modified: Some(stored.modified.clone()),
                ..Default::default()
            })
            .collect();
        let more = matching.next().is_some();
        let last = contents.last().and_then(|object| object.key.clone());
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            key_count: i32::try_from(contents.len()).ok(),
            is_truncated: Some(more),
            next_continuation_token: last.filter(|_| more),
            contents: Some(contents),
            prefix: Some(prefix),
            ..Default::default()
        }))
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let mut locked = self.lock();
        let objects = &mut locked.bucket(&request.input.bucket)?.objects;
        objects.remove(&request.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = request.input;
        let id = OperationId::random().to_string();
        let upload = Upload {
            key: input.key.clone(),
            initiated: now(),
            metadata: input.metadata,
            parts: BTreeMap::new(),
        };
        let mut locked = self.lock();
        let uploads = &mut locked.bucket(&input.bucket)?.uploads;
        uploads.insert(id.clone(), upload);
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            ..Default::default()
        }))
    }

    async fn upload_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let input = request.input;
        let bytes = all_of(input.body).await?;
        let etag = ETag::Strong(hex(&Md5::digest(&bytes)));
        let mut locked = self.lock();
        let upload = locked.upload(&input.bucket, &input.key, &input.upload_id)?;
        upload
            .parts
            .insert(input.part_number, (bytes, etag.clone()));
        Ok(S3Response::new(UploadPartOutput {
            e_tag: Some(etag),
            ..Default::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = request.input;
        let modified = now();
        let named = input.multipart_upload.and_then(|upload| upload.parts);
        let named = named.unwrap_or_default();
        let mut locked = self.lock();
        let upload = locked.upload(&input.bucket, &input.key, &input.upload_id)?;
        let mut bytes = BytesMut::new();
        let mut digests = Md5::new();
        for (position, part) in named.iter().enumerate() {
            let number = part.part_number.unwrap_or_default();
            let (content, etag) = upload
                .parts
                .get(&number)
                .filter(|(_, etag)| part.e_tag.as_ref() == Some(etag))
                .ok_or_else(|| s3_error!(InvalidPart))?;
            if content.len() < PART_BYTES_MIN && position + 1 < named.len() {
                return Err(s3_error!(EntityTooSmall));
            }
            bytes.extend_from_slice(content);
            digests.update(etag.value());
        }
        let etag = ETag::Strong(format!("{}-{}", hex(&digests.finalize()), named.len()));
        let stored = Stored {
            bytes: bytes.freeze(),
            etag: etag.clone(),
            modified,
            metadata: upload.metadata.clone(),
        };
        let bucket = locked.bucket(&input.bucket)?;
        check(
            bucket.objects.get(&input.key),
            input.if_match.as_ref(),
            input.if_none_match.as_ref(),
        )?;
        bucket.objects.insert(input.key.clone(), stored);
        bucket.uploads.remove(&input.upload_id);
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(etag),
            ..Default::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let input = request.input;
        let mut locked = self.lock();
        locked.upload(&input.bucket, &input.key, &input.upload_id)?;
        let uploads = &mut locked.bucket(&input.bucket)?.uploads;
        uploads.remove(&input.upload_id);
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = request.input;
        let prefix = input.prefix.unwrap_or_default();
        let mut locked = self.lock();
        let uploads = &locked.bucket(&input.bucket)?.uploads;
        let uploads = uploads
            .iter()
            .filter(|(_, upload)| upload.key.starts_with(&prefix))
            .map(|(id, upload)| MultipartUpload {
                key: Some(upload.key.clone()),
                upload_id: Some(id.clone()),
                initiated: Some(upload.initiated.clone()),
                ..Default::default()
            });
        Ok(S3Response::new(ListMultipartUploadsOutput {
            uploads: Some(uploads.collect()),
            bucket: Some(input.bucket),
            is_truncated: Some(false),
            ..Default::default()
        }))
    }

    async fn list_parts(
        &self,
        request: S3Request<ListPartsInput>,
    ) -> S3Result<S3Response<ListPartsOutput>> {
        let input = request.input;
        let mut locked = self.lock();
        let upload = locked.upload(&input.bucket, &input.key, &input.upload_id)?;
        let parts = upload.parts.iter().map(|(number, (bytes, etag))| Part {
            part_number: Some(*number),
            size: Some(size(bytes)),
            e_tag: Some(etag.clone()),
            ..Default::default()
        });
        Ok(S3Response::new(ListPartsOutput {
            parts: Some(parts.collect()),
            is_truncated: Some(false),
            ..Default::default()
        }))
    }
}
