//! How KeyDB's processes reach each other.
//!
//! [`Outgoing`] is the way to others: plain or over TLS, with a certificate and a token of its own. What listens (feature `server`)
//! takes connections from [`Incoming`], which counts them and does their TLS handshakes, and asks [`Access`] who may do what.
//!
//! Certificates, keys and tokens are read from files, and read again when these change: new connections go by the new ones, those that
//! exist go on. A change that cannot be used is logged, and what was read before stays in force.

#[cfg(feature = "server")]
mod access;
mod files;
#[cfg(feature = "server")]
mod http;
#[cfg(feature = "server")]
mod incoming;
mod outgoing;
mod stream;
mod tls;
#[cfg(feature = "server")]
mod unread;

#[cfg(feature = "server")]
pub use access::{Access, GrpcAccess, Refusal, Role};
pub use files::FileError;
#[cfg(feature = "server")]
pub use http::{HEADER_TIMEOUT, serve as serve_http};
#[cfg(feature = "server")]
pub use incoming::{
    CONNECTIONS_MAX, Connection, Incoming, ListenerSecurity, PEER_CONNECTIONS_MAX, Protocol,
};
pub use outgoing::{Channel, Outgoing, is_handshake_failure, with_sources};
#[cfg(feature = "server")]
pub use tls::ServerTls;
pub use tls::{ClientTls, OwnCertificate, check_own};
#[cfg(feature = "server")]
pub use unread::{UNREAD_BYTES_MAX, Unread};
