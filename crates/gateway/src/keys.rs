//! Calls for keys, however they came.

use axum::http::HeaderMap;
use base64::{Engine, engine::general_purpose::STANDARD};
use keydb_client::{Claim, Client, ErrorKind, Namespace, Operation, OperationId, Ttl};
use serde::Deserialize;

use crate::{
    Cluster,
    input::{self, TtlText},
    problem::Problem,
};

/// Under which a claim can be sent again (<https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/>).
const IDEMPOTENCY_KEY: &str = "idempotency-key";
const NAME_BYTES_MAX: usize = 255;

/// The body of a call for keys.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct KeysCall {
    #[serde(default)]
    pub(crate) keys: Vec<String>,
    #[serde(default)]
    pub(crate) encoding: Encoding,
    pub(crate) ttl: Option<TtlText>,
    pub(crate) ttl_seconds: Option<u64>,
    pub(crate) namespace: Option<String>,
}

/// What the text of a key stands for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Encoding {
    /// Itself.
    #[default]
    Text,
    /// Any bytes (<https://www.rfc-editor.org/rfc/rfc4648>, section 4).
    Base64,
}

impl Encoding {
    /// The bytes of a key.
    pub(crate) fn decode(self, key: String) -> Result<Vec<u8>, Problem> {
        match self {
            Self::Text => Ok(key.into_bytes()),
            Self::Base64 => STANDARD.decode(&key).map_err(|error| {
                Problem::bad_field("keys", format!("{key:?} is not base64: {error}"))
            }),
        }
    }
}

/// What is to be asked for, and of whom.
#[derive(Debug)]
pub struct Read {
    /// Of the namespace.
    pub client: Client,
    /// In order.
    pub keys: Vec<Vec<u8>>,
}

/// What is to be stored.
#[derive(Debug)]
pub struct Write {
    /// Of the namespace.
    pub client: Client,
    /// In order.
    pub keys: Vec<Vec<u8>>,
    /// For how long.
    pub ttl: Ttl,
}

impl KeysCall {
    /// Takes it for a get.
    ///
    /// # Errors
    /// What is wrong with it, by the field's name.
    pub fn read(self, cluster: &Cluster) -> Result<Read, Problem> {
        input::check_keys(self.keys.len())?;
        self.reader(cluster)
    }

    /// The same, where the keys may come later.
    pub(crate) fn reader(self, cluster: &Cluster) -> Result<Read, Problem> {
        let given = [
            ("ttl", self.ttl.is_some()),
            ("ttlSeconds", self.ttl_seconds.is_some()),
        ];
        if let Some((field, _)) = given.into_iter().find(|(_, is_given)| *is_given) {
            return Err(Problem::bad_field(
                field,
                "a get changes no key's life; leave it out",
            ));
        }
        let client = in_namespace(cluster, input::namespace(self.namespace)?)?;
        let keys = self.keys.into_iter().map(|key| self.encoding.decode(key));
        let keys = keys.collect::<Result<_, _>>()?;
        Ok(Read { client, keys })
    }

    /// Takes it for a put or a claim.
    ///
    /// # Errors
    /// What is wrong with it, by the field's name.
    pub fn write(self, cluster: &Cluster) -> Result<Write, Problem> {
        input::check_keys(self.keys.len())?;
        self.writer(cluster)
    }

    /// The same, where the keys may come later.
    pub(crate) fn writer(self, cluster: &Cluster) -> Result<Write, Problem> {
        let ttl = input::ttl(self.ttl, self.ttl_seconds)?;
        let keys_only = Self {
            ttl: None,
            ttl_seconds: None,
            ..self
        };
        let Read { client, keys } = keys_only.reader(cluster)?;
        Ok(Write { client, keys, ttl })
    }
}

/// The client for a key space.
///
/// # Errors
/// While the cluster has not been found.
pub fn in_namespace(cluster: &Cluster, namespace: Option<Namespace>) -> Result<Client, Problem> {
    let client = cluster.client()?;
    Ok(namespace.map_or_else(|| client.clone(), |it| client.in_namespace(&it)))
}

/// Claims keys. Under an operation, a claim that nodes remember is answered as it was before.
///
/// # Errors
/// As [`Client::claim`].
pub async fn claim(write: &Write, operation: Option<OperationId>) -> Result<Vec<Claim>, Problem> {
    let Write { client, keys, ttl } = write;
    let claims = match operation {
        None => client.claim(keys, *ttl).await,
        // Whether it was sent before only the nodes know.
        Some(id) => match client.claim_as(Operation::first(id), keys, *ttl).await {
            Err(error) if error.kind() == ErrorKind::OperationIdUsed => {
                client.claim_as(Operation::with_id(id), keys, *ttl).await
            }
            claims => claims,
        },
    };
    Ok(claims?)
}

/// How an answer is called.
pub fn name_of(claim: Claim) -> &'static str {
    match claim {
        Claim::First => "first",
        Claim::Duplicate => "duplicate",
        Claim::Unknown => "unknown",
    }
}

/// The operation that a header names.
///
/// # Errors
/// When it is given twice, or cannot be one.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<OperationId>, Problem> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let text = value.to_str().ok().filter(|_| values.next().is_none());
    let id = text.and_then(|text| operation(text.trim().trim_matches('"')));
    match id {
        Some(id) => Ok(Some(id)),
        None => Err(Problem::bad_field(
            "Idempotency-Key",
            format!("give it once, with 1 to {NAME_BYTES_MAX} visible ASCII characters"),
        )),
    }
}

/// An id as it is, any other text as the name of one.
pub(crate) fn operation(text: &str) -> Option<OperationId> {
    if text.is_empty() || text.len() > NAME_BYTES_MAX {
        return None;
    }
    let id = text.parse();
    Some(id.unwrap_or_else(|_| OperationId::from_name(text)))
}
