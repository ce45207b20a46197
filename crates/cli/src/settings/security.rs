//! How this process is reached and reaches others: bind addresses, TLS and tokens.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use keydb_transport::{
    Access, ClientTls, FileError, ListenerSecurity, Outgoing, OwnCertificate, Role, ServerTls,
    check_own,
};

use super::{
    declared::Settings,
    problems::{Problems, SettingsError},
};

/// What protects the listeners of a process, and how it reaches nodes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Security {
    /// Of all its listeners.
    pub(crate) listeners: ListenerSecurity,
    /// Its connections to nodes.
    pub(crate) outgoing: Outgoing,
    /// What is odd but does no harm.
    pub(crate) warnings: Vec<String>,
}

/// A listener that is to be.
pub(crate) struct Listening {
    /// Where.
    pub(crate) address: SocketAddr,
    /// Which setting gave the port.
    pub(crate) port_setting: &'static str,
    /// Which one gave the address.
    pub(crate) address_setting: &'static str,
}

pub(super) const BIND_DEFAULT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const BIND: &str = "KEYDB_BIND_ADDRESS";
const HTTP_BIND: &str = "KEYDB_HTTP_BIND_ADDRESS";
const CERT: &str = "KEYDB_TLS_CERT_FILE";
const KEY: &str = "KEYDB_TLS_KEY_FILE";
const CA: &str = "KEYDB_TLS_CA_FILE";
const CLIENT_CA: &str = "KEYDB_TLS_CLIENT_CA_FILE";
const ACCEPTED_TOKENS: &str = "KEYDB_ACCEPTED_TOKENS_FILE";
const TOKEN: &str = "KEYDB_TOKEN_FILE";

/// An IP address to listen on.
pub(super) fn bind_address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| {
        "is not an IP address; give 127.0.0.1 (this machine alone), :: or 0.0.0.0 (every interface), or the address of one of them".to_owned()
    })
}

/// The name of a file.
pub(super) fn file(text: &str) -> Result<PathBuf, String> {
    let is_one = !text.is_empty() && !text.ends_with('/');
    is_one
        .then(|| PathBuf::from(text))
        .ok_or_else(|| "does not name a file".to_owned())
}

/// A file's name as it is shown.
pub(super) fn file_text(file: &Option<PathBuf>) -> String {
    let shown = file.as_ref().map(|file| file.display().to_string());
    shown.unwrap_or_default()
}

impl Settings {
    /// How a client reaches nodes.
    pub(super) fn outgoing(&self, problems: &mut Problems) -> Outgoing {
        let mut outgoing = Outgoing::plain();
        let own = self.own_certificate();
        let [certificates, key] =
            [&self.tls_cert_file, &self.tls_key_file].map(|file| file.value.is_some());
        if certificates != key {
            let [given, missing] = if certificates {
                [CERT, KEY]
            } else {
                [KEY, CERT]
            };
            problems.add(format!(
                "{given} is set, but {missing} is not; give both, or neither"
            ));
        }
        match &self.tls_ca_file.value {
            Some(ca) => match ClientTls::read(ca.clone(), own) {
                Ok(tls) => outgoing = outgoing.with_tls(tls),
                Err(error) => problems.add(self.of_file(&error)),
            },
            None if own.is_some() => problems.add(format!(
                "{CERT} is set, but {CA} is not: connections to nodes would be plain; give the CA that has signed the nodes' certificates"
            )),
            None => {}
        }
        let Some(token) = &self.token_file.value else {
            return outgoing;
        };
        let with_token = outgoing.clone().with_token_file(token.clone());
        with_token.unwrap_or_else(|error| {
            problems.add(self.of_file(&error));
            outgoing
        })
    }

    /// What protects the listeners of a node or an operator, and how it reaches nodes.
    fn both_ways(&self, problems: &mut Problems) -> Security {
        let outgoing = self.outgoing(problems);
        let mut listeners = ListenerSecurity::default();
        match self.own_certificate() {
            Some(own) => match ServerTls::read(&own, self.tls_client_ca_file.value.clone()) {
                Ok(tls) => listeners.tls = Some(Arc::new(tls)),
                // What is wrong with its own certificate was said.
                Err(_) if problems.has_any() => {}
                Err(error) => problems.add(self.of_file(&error)),
            },
            None if self.tls_client_ca_file.given => problems.add(format!(
                "{CLIENT_CA} is set, but {CERT} is not: nobody shows a certificate where there is no TLS; give {CERT} and {KEY}"
            )),
            None => {}
        }
        if let Some(file) = &self.accepted_tokens_file.value {
            match Access::read(file.clone()) {
                Ok(access) => listeners.access = access,
                Err(error) => problems.add(self.of_file(&error)),
            }
        }
        Security {
            listeners,
            outgoing,
            warnings: Vec::new(),
        }
    }

    /// The same of an operator.
    pub(super) fn security_of_operator(&self, problems: &mut Problems) -> Security {
        let security = self.both_ways(problems);
        self.check_exposure(&[self.operator_listening()], &security, problems);
        security
    }

    /// The same of a node, whose peers have to let it in.
    ///
    /// # Errors
    /// All that is wrong with the settings for it.
    pub(crate) fn security(&self) -> Result<Security, SettingsError> {
        let mut problems = Problems::default();
        let mut security = self.both_ways(&mut problems);
        if let Err(error) = security.outgoing.to_itself() {
            problems.add(format!(
                "{}; a node takes one such as `keydb certs` makes for nodes, not for clients",
                self.of_file(&error)
            ));
        }
        let own = self.own_certificate();
        if let (Some(ca), Some(own), false) = (&self.tls_ca_file.value, own, problems.has_any()) {
            match check_own(ca, &own, self.own_host()) {
                Ok(true) => {}
                Ok(false) => security.warnings.push(format!(
                    "{CERT}={}: it expires within 30 days",
                    own.certificates.display()
                )),
                Err(error) => problems.add(self.of_file(&error)),
            }
        }
        let Security {
            listeners,
            outgoing,
            ..
        } = &security;
        if outgoing.has_tls() && !self.tls_cert_file.given {
            problems.add(format!(
                "{CA} is set, but {CERT} is not: this node would reach others by TLS, and be reached without; give {CERT} and {KEY}"
            ));
        }
        if listeners.access.asks_for_tokens() {
            let role = outgoing
                .authorization()
                .map(|header| listeners.access.role_of(&header));
            match role {
                None if !self.token_file.given => problems.add(format!(
                    "{ACCEPTED_TOKENS} is set, but {TOKEN} is not: the other nodes would not let this one in; give a file with a token of the role admin"
                )),
                None | Some(Some(Role::Admin)) => {}
                Some(role) => problems.add(format!(
                    "the token in {TOKEN} {}: the other nodes would not let this one in; give one of the role admin",
                    role.map_or_else(
                        || format!("is not in {ACCEPTED_TOKENS}"),
                        |role| format!("has the role {role} in {ACCEPTED_TOKENS}")
                    )
                )),
            }
        }
        let listening: Vec<Listening> = [Some(self.listening()), self.http_listening()]
            .into_iter()
            .flatten()
            .collect();
        self.check_exposure(&listening, &security, &mut problems);
        problems.into_result().map(|()| security)
    }

    /// A certificate and its key, where both are given.
    fn own_certificate(&self) -> Option<OwnCertificate> {
        Some(OwnCertificate {
            certificates: self.tls_cert_file.value.clone()?,
            key: self.tls_key_file.value.clone()?,
        })
    }

    /// Says which setting a file is of.
    fn of_file(&self, error: &FileError) -> String {
        let files = [
            (CERT, &self.tls_cert_file.value),
            (KEY, &self.tls_key_file.value),
            (CA, &self.tls_ca_file.value),
            (CLIENT_CA, &self.tls_client_ca_file.value),
            (ACCEPTED_TOKENS, &self.accepted_tokens_file.value),
            (TOKEN, &self.token_file.value),
        ];
        let mut of_it = files
            .iter()
            .filter(|(_, file)| file.as_ref() == Some(&error.path));
        match of_it.next() {
            // Perhaps it is the token itself.
            Some((setting @ (TOKEN | ACCEPTED_TOKENS), _)) if !error.path.exists() => format!(
                "{setting}: there is no such file; give the path of a file with the token, not the token"
            ),
            Some((setting, _)) => format!("{setting}={error}"),
            None => error.to_string(),
        }
    }

    /// A listener that others reach is protected, or somebody has said that it need not be.
    fn check_exposure(
        &self,
        listening: &[Listening],
        security: &Security,
        problems: &mut Problems,
    ) {
        if self.insecure.value || security.listeners.is_protected() {
            return;
        }
        let exposed: Vec<&Listening> = listening
            .iter()
            .filter(|it| !it.address.ip().is_loopback())
            .collect();
        let Some(first) = exposed.first() else {
            return;
        };
        let has_tokens = security.listeners.access.asks_for_tokens();
        let (danger, lacks) = match (security.listeners.tls.is_some(), has_tokens) {
            (false, true) => (
                "tokens would be sent for everybody to read",
                format!("{CERT}, {KEY} and {CA}"),
            ),
            (false, false) => (
                "everybody who reaches this machine could read and change all keys",
                format!("{CERT}, {KEY} and {CA}, and {CLIENT_CA} or {ACCEPTED_TOKENS}"),
            ),
            (true, _) => (
                "everybody who reaches this machine could read and change all keys",
                format!("{CLIENT_CA} or {ACCEPTED_TOKENS}"),
            ),
        };
        let ports = exposed
            .iter()
            .map(|it| format!("{} ({})", it.address.port(), it.port_setting));
        problems.add(format!(
            "{}={}: {danger} at port {}; give {lacks} (`keydb certs` makes certificates), listen on 127.0.0.1, or say KEYDB_INSECURE=true where the network keeps others out",
            first.address_setting,
            first.address.ip(),
            ports.collect::<Vec<_>>().join(" and ")
        ));
    }

    /// The host under which other nodes reach this one, as far as the settings say.
    fn own_host(&self) -> Option<&str> {
        let addresses = self.node_addresses.value.as_ref()?;
        let own = addresses.get(self.node_id.value?.0 as usize)?;
        let (host, _) = super::host_and_port(own).ok()?;
        Some(host.trim_start_matches('[').trim_end_matches(']'))
    }

    /// What is worth a word at the start.
    pub(crate) fn warn_of_exposure(&self, security: &Security) {
        for warning in &security.warnings {
            tracing::warn!("{warning}");
        }
        if self.insecure.value && !security.listeners.is_protected() {
            warn_insecure();
        }
    }

    /// Where gRPC is listened for.
    pub(crate) fn listening(&self) -> Listening {
        Listening {
            address: (self.bind_address.value, self.port.value).into(),
            port_setting: "KEYDB_PORT",
            address_setting: BIND,
        }
    }

    /// Where HTTP is, if it is.
    pub(crate) fn http_listening(&self) -> Option<Listening> {
        let own = self.http_bind_address.value;
        let address = own.unwrap_or(self.bind_address.value);
        Some(Listening {
            address: (address, self.http_port.value?).into(),
            port_setting: super::HTTP_PORT_SETTING,
            address_setting: if own.is_some() { HTTP_BIND } else { BIND },
        })
    }

    /// Where an operator listens.
    pub(crate) fn operator_listening(&self) -> Listening {
        Listening {
            address: (self.bind_address.value, self.operator_port.value).into(),
            port_setting: super::OPERATOR_PORT_SETTING,
            address_setting: BIND,
        }
    }
}

/// Says at the start that whoever reaches the process may do everything.
pub(crate) fn warn_insecure() {
    tracing::warn!(
        "KEYDB_INSECURE=true: what is sent to this process can be read on its way, and where it asks for no tokens, whoever reaches it may do everything"
    );
}

impl Listening {
    /// How this process reaches the listener itself.
    pub(crate) fn own_address(&self) -> SocketAddr {
        let ip = match self.address.ip() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            // Where the machine has no IPv6, it listens on all of IPv4.
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            ip => ip,
        };
        (ip, self.address.port()).into()
    }
}
