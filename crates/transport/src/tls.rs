//! Certificates, and what TLS is made of them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig, RootCertStore,
    client::{Resumption, WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
#[cfg(feature = "server")]
use rustls::{
    ServerConfig,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};

use crate::files::{Content, FileError, Watched, read};

/// What gRPC's TLS speaks of by ALPN, and what HTTP's does.
const H2: &[u8] = b"h2";
#[cfg(feature = "server")]
const HTTP_1: &[u8] = b"http/1.1";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The files of a certificate of this process, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnCertificate {
    /// The certificate, then those that lead from it to the CA.
    pub certificates: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl OwnCertificate {
    fn paths(&self) -> Vec<PathBuf> {
        vec![self.certificates.clone(), self.key.clone()]
    }
}

/// What a process shows to those who connect to it, and whom it lets in.
#[cfg(feature = "server")]
#[derive(Debug)]
pub struct ServerTls {
    configs: Arc<Watched<Configs>>,
    asks_for_certificates: bool,
}

#[cfg(feature = "server")]
#[derive(Debug)]
struct Configs {
    grpc: Arc<ServerConfig>,
    http: Arc<ServerConfig>,
}

#[cfg(feature = "server")]
impl ServerTls {
    /// Shows `own`. With `client_ca`, a file of CA certificates, callers have to show a certificate that one of these has signed.
    ///
    /// # Errors
    /// The file that cannot be used.
    pub fn read(own: &OwnCertificate, client_ca: Option<PathBuf>) -> Result<Self, FileError> {
        let asks_for_certificates = client_ca.is_some();
        let paths = own.paths().into_iter().chain(client_ca).collect();
        Ok(Self {
            configs: Watched::read(paths, configs)?,
            asks_for_certificates,
        })
    }

    /// Whether callers have to show a certificate. Over HTTP the handshake succeeds without one, since probes have none.
    pub fn asks_for_certificates(&self) -> bool {
        self.asks_for_certificates
    }

    pub(crate) fn grpc(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.configs.get().grpc)
    }

    pub(crate) fn http(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.configs.get().http)
    }
}

#[cfg(feature = "server")]
fn configs(contents: &[Content]) -> Result<Configs, FileError> {
    let (own, ca) = contents.split_at(2);
    let roots = ca.first().map(roots).transpose()?.map(Arc::new);
    let config = |protocol: &[u8], without_certificate: bool| {
        let builder = ServerConfig::builder_with_provider(provider());
        let builder = builder
            .with_safe_default_protocol_versions()
            .map_err(|error| FileError::new(&own[0].path, error.to_string()))?;
        let builder = match &roots {
            None => builder.with_no_client_auth(),
            Some(roots) => {
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider());
                let verifier = if without_certificate {
                    verifier.allow_unauthenticated()
                } else {
                    verifier
                };
                let verifier = verifier
                    .build()
                    .map_err(|error| FileError::new(&ca[0].path, error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder
            .with_single_cert(certificates(&own[0])?, key(&own[1])?)
            .map_err(|error| misfit(own, &error))?;
        config.alpn_protocols = vec![protocol.to_vec()];
        // A session that is gone on with would not have its certificate looked at again.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    };
    Ok(Configs {
        grpc: config(H2, false)?,
        http: config(HTTP_1, true)?,
    })
}

/// Whom a process trusts when it connects to others, and what it shows them.
#[derive(Debug)]
pub struct ClientTls {
    own: Option<OwnCertificate>,
    config: Arc<Watched<ClientConfig>>,
}

impl ClientTls {
    /// Trusts what a certificate in the file `ca` has signed, and shows `own` to those who ask.
    ///
    /// # Errors
    /// The file that cannot be used.
    pub fn read(ca: PathBuf, own: Option<OwnCertificate>) -> Result<Self, FileError> {
        let mut paths = vec![ca];
        paths.extend(own.iter().flat_map(OwnCertificate::paths));
        Ok(Self {
            config: Watched::read(paths, client_config)?,
            own,
        })
    }

    /// The same as [`grpc_config`](Self::grpc_config), for whatever is spoken.
    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        let mut config = ClientConfig::clone(&self.config.get());
        config.alpn_protocols.clear();
        Arc::new(config)
    }

    pub(crate) fn grpc_config(&self) -> Arc<ClientConfig> {
        self.config.get()
    }

    /// The file of the certificate that is shown.
    pub(crate) fn own_certificates(&self) -> Option<&Path> {
        Some(&self.own.as_ref()?.certificates)
    }
}

/// Whether whoever trusts the CAs in the file `ca` would accept `own` as the certificate of `host`, or, where that is not known, of a name
/// that it has; and whether still in 30 days.
///
/// # Errors
/// The certificate's file, and why not.
pub fn check_own(ca: &Path, own: &OwnCertificate, host: Option<&str>) -> Result<bool, FileError> {
    let contents = read(&[ca.to_owned(), own.certificates.clone()])?;
    let problem = |problem: String| FileError::new(&own.certificates, problem);
    let roots = Arc::new(roots(&contents[0])?);
    let chain = certificates(&contents[1])?;
    let name = match host.map(str::to_owned).map(ServerName::try_from) {
        Some(Ok(name)) => name,
        _ => name_in(&own.certificates)?,
    };
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider()).build();
    let verifier = verifier.map_err(|error| FileError::new(ca, error.to_string()))?;
    let now = UnixTime::now();
    let verify = |time| verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], time);
    verify(now).map_err(|error| problem(format!("others would not accept it: {error}")))?;
    let later = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + SOON);
    Ok(verify(later).is_ok())
}

/// How long before its end a certificate is worth a word.
const SOON: Duration = Duration::from_secs(30 * 86_400);

/// A DNS name of the first certificate in a file.
pub(crate) fn name_in(path: &Path) -> Result<ServerName<'static>, FileError> {
    let problem = |problem: String| FileError::new(path, problem);
    let all = certificates(&read(&[path.to_owned()])?[0])?;
    let own = webpki::EndEntityCert::try_from(&all[0])
        .map_err(|error| problem(format!("its first certificate cannot be read: {error}")))?;
    // Of those that a wildcard stands for, one is as good as another.
    let mut names = own.valid_dns_names().map(|name| name.replace('*', "node"));
    let name = names.find_map(|name| ServerName::try_from(name).ok());
    name.ok_or_else(|| problem("its first certificate has no DNS name".to_owned()))
}

fn client_config(contents: &[Content]) -> Result<ClientConfig, FileError> {
    let (ca, own) = contents.split_at(1);
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder
        .with_safe_default_protocol_versions()
        .map_err(|error| FileError::new(&ca[0].path, error.to_string()))?
        .with_root_certificates(roots(&ca[0])?);
    let mut config = match own {
        [chain, key_file] => builder
            .with_client_auth_cert(certificates(chain)?, key(key_file)?)
            .map_err(|error| misfit(own, &error))?,
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![H2.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn certificates(content: &Content) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content.bytes).collect();
    let problem = |problem| FileError::new(&content.path, problem);
    // What the parser says might quote a key that was put here.
    let all = read.map_err(|_| problem("it is not PEM, or broken".to_owned()))?;
    if all.is_empty() {
        return Err(problem("there is no PEM certificate in it".to_owned()));
    }
    Ok(all)
}

fn key(content: &Content) -> Result<PrivateKeyDer<'static>, FileError> {
    PrivateKeyDer::from_pem_slice(&content.bytes).map_err(|_| {
        // What the parser says might quote the key.
        FileError::new(&content.path, "there is no PEM private key in it")
    })
}

fn roots(content: &Content) -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(content)? {
        roots
            .add(certificate)
            .map_err(|error| FileError::new(&content.path, error.to_string()))?;
    }
    Ok(roots)
}

fn misfit(own: &[Content], error: &rustls::Error) -> FileError {
    let (certificates, key) = (&own[0].path, &own[1].path);
    let problem = match error {
        rustls::Error::InconsistentKeys(_) => {
            format!(
                "it is not the key of the certificate in {}",
                certificates.display()
            )
        }
        error => format!(
            "with the certificate in {}: {error}",
            certificates.display()
        ),
    };
    FileError::new(key, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_file_does_not_quote_it() {
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let flat = key.replace('\n', " ");
        for text in [&key, &flat, "nothing", ""] {
            let content = Content {
                path: PathBuf::from("cert.pem"),
                bytes: text.as_bytes().to_vec(),
            };
            let said = certificates(&content).unwrap_err().to_string();
            // Neither as text nor as the numbers of its bytes.
            assert!(said.len() < 60 && said.starts_with("cert.pem: "), "{said}");
        }
    }
}
