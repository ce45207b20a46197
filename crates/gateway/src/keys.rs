//! Calls for keys, however they came.

use std::sync::Arc;

use axum::http::HeaderMap;
use base64::{Engine, engine::general_purpose::STANDARD};
use keydb_client::{
    Claim, Client, ErrorKind, GetError, Namespace, Operation, OperationId, Ttl, WriteError,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    Cluster,
    counters::Counters,
    input::{self, TtlText},
    problem::Problem,
};

/// Under which a claim can be sent again (<https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/>).
const IDEMPOTENCY_KEY: &str = "Idempotency-Key";
/// `true`: the claim may have been sent before under the same name.
const REPEAT: &str = "Keydb-Repeat";
const NAME_BYTES_MAX: usize = 255;

/// The body of a call for keys.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct KeysCall {
    /// 1 to 65,536 keys of 1 to 65,536 bytes.
    #[serde(default)]
    #[schema(min_items = 1, max_items = 65_536, required, example = json!(["alice", "bob"]))]
    pub(crate) keys: Vec<String>,
    #[serde(default)]
    #[schema(required = false)]
    pub(crate) encoding: Encoding,
    /// How long keys are to live, 1 second to 50 years; of a put or claim, this or `ttlSeconds`.
    #[schema(value_type = Option<String>, example = "30d")]
    pub(crate) ttl: Option<TtlText>,
    /// The same in seconds.
    #[schema(minimum = 1, maximum = 1_576_800_000_u64)]
    pub(crate) ttl_seconds: Option<u64>,
    /// Whose keys are meant, 1 to 255 bytes; without it, those of the namespace without a name.
    #[schema(min_length = 1, max_length = 255)]
    pub(crate) namespace: Option<String>,
}

/// The same of a get, which changes no key's life.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[allow(dead_code, reason = "it is described only")]
pub(crate) struct GetCall {
    /// 1 to 65,536 keys of 1 to 65,536 bytes.
    #[schema(min_items = 1, max_items = 65_536, example = json!(["alice", "bob"]))]
    keys: Vec<String>,
    #[schema(required = false)]
    encoding: Encoding,
    /// Whose keys are meant, 1 to 255 bytes; without it, those of the namespace without a name.
    #[schema(min_length = 1, max_length = 255)]
    namespace: Option<String>,
}

/// What the text of a key stands for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
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
                Problem::bad_field(
                    "keys",
                    format!("{:?} is not base64: {error}", shortened(&key)),
                )
            }),
        }
    }
}

/// So much of a key as an error shows.
fn shortened(key: &str) -> &str {
    const SHOWN_BYTES: usize = 64;
    &key[..key.floor_char_boundary(SHOWN_BYTES)]
}

/// A client whose answers are counted.
#[derive(Debug)]
pub struct Keys {
    client: Client,
    counters: Arc<Counters>,
}

impl Keys {
    /// As [`Client::get`].
    ///
    /// # Errors
    /// Those.
    pub async fn get<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<bool>, GetError> {
        let present = self.client.get(keys).await?;
        self.counters.got(&present);
        Ok(present)
    }

    /// As [`Client::put`].
    ///
    /// # Errors
    /// Those.
    pub async fn put<K: AsRef<[u8]>>(&self, keys: &[K], ttl: Ttl) -> Result<(), WriteError> {
        self.client.put(keys, ttl).await?;
        self.counters.stored(keys.len());
        Ok(())
    }
}

/// What is to be asked for, and of whom.
#[derive(Debug)]
pub struct Read {
    /// Of the namespace.
    pub client: Keys,
    /// In order.
    pub keys: Vec<Vec<u8>>,
}

/// What is to be stored.
#[derive(Debug)]
pub struct Write {
    /// Of the namespace.
    pub client: Keys,
    /// In order.
    pub keys: Vec<Vec<u8>>,
    /// For how long.
    pub ttl: Ttl,
}

impl KeysCall {
    /// The namespace's name, empty where there is none.
    pub fn namespace(&self) -> String {
        self.namespace.clone().unwrap_or_default()
    }

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
pub fn in_namespace(cluster: &Cluster, namespace: Option<Namespace>) -> Result<Keys, Problem> {
    let client = cluster.client()?;
    Ok(Keys {
        client: namespace.map_or_else(|| client.clone(), |it| client.in_namespace(&it)),
        counters: Arc::clone(cluster.counters()),
    })
}

/// A claim's name.
#[derive(Debug, Clone)]
pub struct Name {
    text: String,
    /// It may have been sent before, as its caller says.
    pub(crate) is_repeat: bool,
}

impl Name {
    /// Of 1 to 255 bytes.
    pub(crate) fn new(text: &str, is_repeat: bool) -> Option<Self> {
        let is_right = (1..=NAME_BYTES_MAX).contains(&text.len());
        is_right.then(|| Self {
            text: text.to_owned(),
            is_repeat,
        })
    }

    /// An id as it is; of any other text, one that is its own in each namespace.
    fn id(&self, namespace: &str) -> OperationId {
        let id = self.text.parse();
        id.unwrap_or_else(|_| {
            let (bytes, text) = (namespace.len(), &self.text);
            OperationId::from_name(&format!("{bytes}:{namespace}:{text}"))
        })
    }

    /// What is sent under it, as part `part` where there are several.
    pub fn named(&self, namespace: &str, part: Option<u64>) -> Named {
        let id = self.id(namespace);
        Named {
            id: part.map_or(id, |part| id.part(part)),
            is_repeat: self.is_repeat,
        }
    }
}

/// What a claim is sent under.
#[derive(Debug, Clone, Copy)]
pub struct Named {
    id: OperationId,
    is_repeat: bool,
}

/// Claims keys. Under a name, a claim that nodes remember is answered as it was before. Of a repeat that they do not remember, keys that
/// are there are `Unknown`: it may have been this claim that stored them.
///
/// # Errors
/// As [`Client::claim`].
pub async fn claim(write: &Write, named: Option<Named>) -> Result<Vec<Claim>, Problem> {
    let claims = uncounted_claim(write, named).await?;
    write.client.counters.claimed(&claims);
    Ok(claims)
}

async fn uncounted_claim(write: &Write, named: Option<Named>) -> Result<Vec<Claim>, Problem> {
    let Write {
        client: Keys { client, .. },
        keys,
        ttl,
    } = write;
    let Some(Named { id, is_repeat }) = named else {
        return Ok(client.claim(keys, *ttl).await?);
    };
    let again = async || client.claim_as(Operation::with_id(id), keys, *ttl).await;
    let claims = match is_repeat {
        true => again().await,
        // Whether it was sent before, without saying so, only the nodes know.
        false => match client.claim_as(Operation::first(id), keys, *ttl).await {
            Err(error) if error.kind() == ErrorKind::OperationIdUsed => again().await,
            claims => claims,
        },
    };
    claims.map_err(|error| {
        let is_wrong = matches!(error.kind(), ErrorKind::InvalidKey);
        let problem = Problem::from(error);
        match is_wrong {
            true => problem,
            // By an earlier sending, perhaps.
            false => problem.maybe_applied(Some(id)),
        }
    })
}

/// What a claim says of a key.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClaimAnswer {
    /// It was absent, and is the caller's.
    First,
    /// It was there before.
    Duplicate,
    /// It is there, but perhaps through this very call, after a lost reply.
    Unknown,
}

impl From<Claim> for ClaimAnswer {
    fn from(claim: Claim) -> Self {
        match claim {
            Claim::First => Self::First,
            Claim::Duplicate => Self::Duplicate,
            Claim::Unknown => Self::Unknown,
        }
    }
}

/// The name that headers give a claim.
///
/// # Errors
/// When it is given twice, or cannot be one.
pub fn name_of(headers: &HeaderMap) -> Result<Option<Name>, Problem> {
    let one = |header: &str| {
        let mut values = headers.get_all(header).iter();
        let value = values.next();
        match (value, values.next()) {
            (Some(_), Some(_)) => Err(Problem::bad_field(header, "is given twice; give it once")),
            (value, _) => Ok(value.map(|it| it.to_str().unwrap_or_default().trim())),
        }
    };
    let is_repeat = match one(REPEAT)? {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => {
            let detail = format!("{other:?} is neither true nor false");
            return Err(Problem::bad_field(REPEAT, detail));
        }
    };
    match one(IDEMPOTENCY_KEY)? {
        None if is_repeat => Err(Problem::bad_field(
            REPEAT,
            format!("says that a claim was sent before; give the {IDEMPOTENCY_KEY} that it had"),
        )),
        None => Ok(None),
        Some(text) => match Name::new(text.trim_matches('"'), is_repeat) {
            Some(name) => Ok(Some(name)),
            None => Err(Problem::bad_field(
                IDEMPOTENCY_KEY,
                format!("give 1 to {NAME_BYTES_MAX} visible ASCII characters"),
            )),
        },
    }
}
