//! A CA of the test's own, which also makes what `keydb certs` does not.

use std::{fs, path::Path, time::Duration};

use keydb_core::Clock;
use keydb_node::SystemClock;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Writes its certificate to `NAME-ca.pem`.
    pub(crate) fn new(directory: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        let common_name = format!("the CA {name}");
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        fs::write(directory.join(format!("{name}-ca.pem")), certificate.pem()).unwrap();
        let issuer = Issuer::new(params, key);
        Self { issuer }
    }

    /// Writes `NAME.pem` and `NAME-key.pem`: for this machine, and valid up to so many seconds from now, or before.
    pub(crate) fn sign(&self, directory: &Path, name: &str, until_seconds: i64) {
        let local = ["localhost", "127.0.0.1"].map(str::to_owned);
        let mut params = CertificateParams::new(local).unwrap();
        let now = Duration::from_millis(SystemClock::new().now().0);
        let now = rcgen::date_time_ymd(1970, 1, 1) + now;
        params.not_before = now - Duration::from_secs(86_400);
        let span = Duration::from_secs(until_seconds.unsigned_abs());
        params.not_after = if until_seconds < 0 {
            now - span
        } else {
            now + span
        };
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let write = |end: &str, text: &str| {
            // Whole, as a certificate manager does.
            let new = directory.join("new");
            fs::write(&new, text).unwrap();
            fs::rename(new, directory.join(format!("{name}{end}"))).unwrap();
        };
        write("-key.pem", &key.serialize_pem());
        write(".pem", &certificate.pem());
    }
}
