//! `keydb certs`: a CA of one's own, and certificates that it signs, to try TLS and for networks of one's own.

use std::{
    fs::{self, File},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use keydb_core::Clock;
use keydb_node::SystemClock;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use xxhash_rust::xxh3::xxh3_64;

use crate::{exit::Failure, output::Stdout};

const EXAMPLES: &str = "\
Writes keydb-ca.pem and its key, unless they are there, and, signed by it, anew each time, with keys of their own: node.pem for
nodes and operators, client.pem for clients. Nodes, operators and clients that run take over what has changed within a second.
Keep keydb-ca-key.pem where no node is: who has it can make certificates.

Examples:
  keydb certs                                          for nodes on this machine
  keydb certs --dir /etc/keydb '*.keydb.prod.svc' 10.0.0.7";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CertsArgs {
    /// Host names and IP addresses of nodes and operators, *.domain among them; localhost, 127.0.0.1 and ::1 are always added
    #[arg(value_name = "NAME", value_parser = host)]
    pub(crate) names: Vec<String>,
    /// Where the files are
    #[arg(long, value_name = "DIR", default_value = "keydb-certs")]
    pub(crate) dir: PathBuf,
    /// How long the certificates are valid; the CA ten times as long
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub(crate) days: u32,
}

/// An IP address, a host name, or all of a domain.
fn host(text: &str) -> Result<String, String> {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let is_label = |label: &str| {
        let mut bytes = label.bytes();
        !label.is_empty() && bytes.all(|it| it.is_ascii_alphanumeric() || it == b'-' || it == b'_')
    };
    let is_one = text.parse::<IpAddr>().is_ok() || name.split('.').all(is_label);
    is_one.then(|| text.to_owned()).ok_or_else(|| {
        "it is neither an IP address nor a host name, such as keydb-0.keydb or *.keydb".to_owned()
    })
}

const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
const DAY: Duration = Duration::from_secs(86_400);
/// For clocks that are behind this one.
const VALID_BEFORE: Duration = Duration::from_secs(3600);

pub(crate) fn run(args: &CertsArgs) -> Result<ExitCode, Failure> {
    fs::create_dir_all(&args.dir).map_err(|error| failed(&args.dir, &error))?;
    let mut names = args.names.clone();
    names.extend(LOCAL.map(str::to_owned));
    names.sort();
    names.dedup();
    let ca = Ca::open_or_create(&args.dir, args.days)?;
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    // Nodes are each other's clients.
    ca.sign("node", names, &[ServerAuth, ClientAuth], args.days)?;
    ca.sign("client", Vec::new(), &[ClientAuth], args.days)?;
    let dir = fs::canonicalize(&args.dir).map_err(|error| failed(&args.dir, &error))?;
    let dir = dir.display();
    Stdout::open()?.write(
        format!(
            "\
For nodes and operators (a node's own storage and addresses besides):
  export KEYDB_TLS_CERT_FILE={dir}/node.pem KEYDB_TLS_KEY_FILE={dir}/node-key.pem
  export KEYDB_TLS_CA_FILE={dir}/{CA_FILE} KEYDB_TLS_CLIENT_CA_FILE={dir}/{CA_FILE}
For clients:
  export KEYDB_TLS_CERT_FILE={dir}/client.pem KEYDB_TLS_KEY_FILE={dir}/client-key.pem
  export KEYDB_TLS_CA_FILE={dir}/{CA_FILE}
"
        )
        .as_bytes(),
    )?;
    Ok(ExitCode::SUCCESS)
}

const CA_FILE: &str = "keydb-ca.pem";
const CA_KEY_FILE: &str = "keydb-ca-key.pem";

struct Ca {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn open_or_create(dir: &Path, days: u32) -> Result<Self, Failure> {
        let (certificate, key) = (dir.join(CA_FILE), dir.join(CA_KEY_FILE));
        let pair = match (certificate.exists(), key.exists()) {
            (true, true) => {
                let text = fs::read_to_string(&key).map_err(|error| failed(&key, &error))?;
                // What is wrong is not shown: it might quote the key.
                KeyPair::from_pem(&text).map_err(|_| {
                    Failure::failed(format!("{}: there is no private key in it", key.display()))
                })?
            }
            (false, false) => {
                let pair = KeyPair::generate().map_err(|error| impossible(&error))?;
                let params = ca_params(&pair, days)?;
                let ca = params
                    .self_signed(&pair)
                    .map_err(|error| impossible(&error))?;
                write(&key, &pair.serialize_pem())?;
                write(&certificate, &ca.pem())?;
                pair
            }
            (has_certificate, _) => {
                let (is, is_not) = if has_certificate {
                    (certificate, key)
                } else {
                    (key, certificate)
                };
                return Err(Failure::failed(format!(
                    "{} is there, but {} is not; put it beside, or give another --dir for a new CA",
                    is.display(),
                    is_not.display()
                )));
            }
        };
        Ok(Self {
            dir: dir.to_owned(),
            // Its subject and key are all that a signature goes by.
            issuer: Issuer::new(ca_params(&pair, days)?, pair),
        })
    }

    /// Writes `name.pem` and `name-key.pem`.
    fn sign(
        &self,
        name: &str,
        hosts: Vec<String>,
        usages: &[ExtendedKeyUsagePurpose],
        days: u32,
    ) -> Result<(), Failure> {
        let mut params = CertificateParams::new(hosts).map_err(|error| impossible(&error))?;
        valid_for(&mut params, days);
        params
            .distinguished_name
            .push(DnType::CommonName, format!("KeyDB {name}"));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.to_vec();
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(|error| impossible(&error))?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(|error| impossible(&error))?;
        write(
            &self.dir.join(format!("{name}-key.pem")),
            &key.serialize_pem(),
        )?;
        write(&self.dir.join(format!("{name}.pem")), &certificate.pem())
    }
}

/// What a CA is made of, and, but for its times, what its issuer is made of again.
fn ca_params(key: &KeyPair, days: u32) -> Result<CertificateParams, Failure> {
    let mut params = CertificateParams::new(Vec::new()).map_err(|error| impossible(&error))?;
    valid_for(&mut params, days * 10);
    params
        .distinguished_name
        // Two CAs of one name could not be told apart.
        .push(
            DnType::CommonName,
            format!(
                "KeyDB development CA {:016x}",
                xxh3_64(key.public_key_raw())
            ),
        );
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn valid_for(params: &mut CertificateParams, days: u32) {
    let now = Duration::from_millis(SystemClock::new().now().0);
    let begin = rcgen::date_time_ymd(1970, 1, 1) + now;
    params.not_before = begin - VALID_BEFORE;
    params.not_after = begin + DAY * days;
}

/// Writes a file that only its owner can read, whole or not at all.
fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let new = path.with_extension("new");
    let written = (|| -> io::Result<()> {
        // One that an earlier attempt left may have other permissions.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    written.map_err(|error| failed(path, &error))
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("{}: {error}", path.display()))
}

fn impossible(error: &rcgen::Error) -> Failure {
    Failure::failed(format!("no certificate can be made: {error}"))
}
