//! Certificate authorities and certificates, made for one test.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// Signs certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = params(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    /// The authority's own certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// For a server of these names.
    pub fn server(&self, names: &[&str]) -> Pair {
        self.sign(params(names[0], names), ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// For a server of these names, in the past.
    pub fn expired_server(&self, names: &[&str]) -> Pair {
        self.sign(
            in_the_past(params(names[0], names)),
            ExtendedKeyUsagePurpose::ServerAuth,
        )
    }

    /// For a client, with its name as common name.
    pub fn client(&self, name: &str) -> Pair {
        self.sign(params(name, &[]), ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// For a client, in the past.
    pub fn expired_client(&self, name: &str) -> Pair {
        self.sign(in_the_past(params(name, &[])), ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(&self, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> Pair {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }
}

impl Pair {
    /// Writes `<name>.pem` and `<name>.key`, for this process's user, or for that of the folder.
    pub fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
        replace(&certificate, &self.certificate);
        replace(&key, &self.key);
        (certificate, key)
    }
}

/// Writes a file in one step, as its readers may come at any time. It belongs to the folder's owner, and to nobody else:
/// servers refuse keys that others can read.
pub fn replace(file: &Path, content: &str) {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let folder = file.parent().expect("a file in a folder");
    let new = file.with_extension("new");
    std::fs::write(&new, content).expect("the folder is writable");
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).expect("own file");
    let owner = std::fs::metadata(folder).expect("the folder is there");
    chown(&new, Some(owner.uid()), Some(owner.gid())).expect("own file");
    std::fs::rename(&new, file).expect("the folder is writable");
}

fn params(name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2120, 1, 1);
    params
}

fn in_the_past(mut params: CertificateParams) -> CertificateParams {
    params.not_after = date_time_ymd(2021, 1, 1);
    params
}
