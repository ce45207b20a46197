//! The client's settings.

use std::{sync::Arc, time::Duration};

use keydb_core::{Namespace, random};
use keydb_transport::Outgoing;

use crate::observer::{Observer, SharedObserver};

/// What a [`Client`](crate::Client) goes by.
///
/// ```
/// use std::time::Duration;
/// use keydb_client::ClientConfig;
///
/// let config = ClientConfig::new(["keydb-0:50051", "keydb-1:50051"]).with_call_timeout(Duration::from_secs(3));
/// assert_eq!(config.retry_count, None);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientConfig {
    /// `host:port` of any nodes of the cluster. The others are learned from the cluster map, so one that answers is enough. A name is
    /// looked up anew for each connection, so what it stands for may change.
    pub addresses: Vec<String>,
    /// Whose keys are meant: keys of different namespaces never meet. See also
    /// [`Client::in_namespace`](crate::Client::in_namespace).
    pub namespace: Namespace,
    /// How many hash ranges the cluster is expected to have; [`connect`](crate::Client::connect) fails when its map has another
    /// number. `None`: whatever the map says.
    pub total_hash_ranges: Option<u32>,
    /// How often keys that got no answer are sent again before the call fails; `None`: as often as its time allows. Following a newer
    /// cluster map does not count, nor does waiting until a hash range has been handed over. Calls for administration are repeated three times where this says nothing.
    pub retry_count: Option<u32>,
    /// The pause before the first retry. It doubles with each further one, up to 2 s, and is shortened at random by up to half.
    pub retry_delay: Duration,
    /// How long a call may take, retries included.
    pub call_timeout: Duration,
    /// How small calls are put together into batches; `None` sends each by itself.
    pub coalescing: Option<Coalescing>,
    /// A call's keys are sent in parts of this many, counted in input order. It is part of a claim's identity: an
    /// [`Operation`](crate::Operation) must be repeated with the same value. A node takes 65,536 keys in a request by default.
    pub keys_per_request_max: usize,
    /// How many requests may be on their way to one node at a time; further ones wait.
    pub requests_in_flight_max: usize,
    /// How nodes are reached: plain by default, or over TLS, with a token.
    pub outgoing: Outgoing,
    /// How [`addresses`](Self::addresses) are reached, where those are not what the nodes' certificates are for: a loopback address, or
    /// that of a load balancer.
    pub first_outgoing: Option<Outgoing>,
    /// Who is told what the client does, see [`with_observer`](Self::with_observer).
    pub(crate) observer: Option<SharedObserver>,
}

/// A setter that returns the configuration.
macro_rules! with {
    ($($with:ident, $field:ident: $type:ty;)+) => {
        $(
            #[doc = concat!("With another [`", stringify!($field), "`](Self::", stringify!($field), ").")]
            #[must_use]
            pub fn $with(mut self, $field: $type) -> Self {
                self.$field = $field;
                self
            }
        )+
    };
}

/// The longest pause before a retry, unless the first one is longer.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(2);

impl ClientConfig {
    /// How long to wait before retry `retry`, counted from 0.
    pub(crate) fn pause_before(&self, retry: u32) -> Duration {
        random::backoff(self.retry_delay, RETRY_DELAY_MAX, retry)
    }

    /// The defaults: retries from 100 ms on for as long as a call's 10 s last, the default namespace, coalescing on, 8,192 keys a request, 16 requests in flight a node.
    ///
    /// ```
    /// let config = keydb_client::ClientConfig::new(["localhost:50051"]);
    /// assert_eq!(config.addresses, ["localhost:50051"]);
    /// ```
    pub fn new(addresses: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            addresses: addresses.into_iter().map(Into::into).collect(),
            namespace: Namespace::default(),
            total_hash_ranges: None,
            retry_count: None,
            retry_delay: Duration::from_millis(100),
            call_timeout: Duration::from_secs(10),
            coalescing: Some(Coalescing::default()),
            keys_per_request_max: 8192,
            requests_in_flight_max: 16,
            outgoing: Outgoing::plain(),
            first_outgoing: None,
            observer: None,
        }
    }

    with! {
        with_namespace, namespace: Namespace;
        with_total_hash_ranges, total_hash_ranges: Option<u32>;
        with_retry_count, retry_count: Option<u32>;
        with_retry_delay, retry_delay: Duration;
        with_call_timeout, call_timeout: Duration;
        with_coalescing, coalescing: Option<Coalescing>;
        with_keys_per_request_max, keys_per_request_max: usize;
        with_requests_in_flight_max, requests_in_flight_max: usize;
        with_outgoing, outgoing: Outgoing;
        with_first_outgoing, first_outgoing: Option<Outgoing>;
    }

    /// Has `observer` told what the client does.
    #[must_use]
    pub fn with_observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(SharedObserver(observer));
        self
    }

    /// How the configured addresses are reached.
    pub(crate) fn outgoing_at_first(&self) -> &Outgoing {
        self.first_outgoing.as_ref().unwrap_or(&self.outgoing)
    }

    /// The first setting that cannot be: its name, its value and what would be right.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String, &'static str)> {
        let positive = "it must be more than 0";
        if self.call_timeout.is_zero() {
            return Err(("call_timeout", "0 s".to_owned(), positive));
        }
        if self.call_timeout > CALL_TIMEOUT_MAX {
            let value = format!("{:?}", self.call_timeout);
            return Err(("call_timeout", value, "it must be at most 1 day"));
        }
        if self.keys_per_request_max == 0 || self.keys_per_request_max > KEYS_PER_REQUEST_LIMIT {
            let value = self.keys_per_request_max.to_string();
            return Err(("keys_per_request_max", value, "it must be 1 to 1,000,000"));
        }
        if self.requests_in_flight_max == 0
            || self.requests_in_flight_max > REQUESTS_IN_FLIGHT_LIMIT
        {
            let value = self.requests_in_flight_max.to_string();
            return Err(("requests_in_flight_max", value, "it must be 1 to 65,536"));
        }
        match &self.coalescing {
            Some(coalescing) if coalescing.keys_max == 0 => {
                Err(("coalescing.keys_max", "0".to_owned(), positive))
            }
            _ => Ok(()),
        }
    }
}

/// More than any request can have under a node's message limit.
const KEYS_PER_REQUEST_LIMIT: usize = 1_000_000;
const REQUESTS_IN_FLIGHT_LIMIT: usize = 65_536;
/// Keeps deadlines far from the end of what clocks can hold.
pub(crate) const CALL_TIMEOUT_MAX: Duration = Duration::from_secs(86_400);

/// How small calls of many tasks become one batch.
///
/// Keys gather by the nodes that own them. A batch goes as soon as the one before it has been answered, so a lone caller never waits
/// for company. While one is on its way, calls gather for the next, until there are `keys_max` keys of them or the first has waited
/// for `wait_max`. Each call hears from its own keys' nodes; another node's failure does not concern it.
///
/// ```
/// use std::time::Duration;
/// use keydb_client::{ClientConfig, Coalescing};
///
/// let coalescing = Coalescing::default().with_wait_max(Duration::from_micros(200));
/// let config = ClientConfig::new(["localhost:50051"]).with_coalescing(Some(coalescing));
/// # let _ = config;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Coalescing {
    /// How long a call waits for others while an earlier batch is on its way.
    pub wait_max: Duration,
    /// How many keys a batch has at most.
    pub keys_max: usize,
    /// Calls of more keys than this go by themselves.
    pub call_keys_max: usize,
}

impl Coalescing {
    with! {
        with_wait_max, wait_max: Duration;
        with_keys_max, keys_max: usize;
        with_call_keys_max, call_keys_max: usize;
    }
}

impl Default for Coalescing {
    /// 1 ms, 1,024 keys, calls of up to 64 keys.
    fn default() -> Self {
        Self {
            wait_max: Duration::from_millis(1),
            keys_max: 1024,
            call_keys_max: 64,
        }
    }
}
