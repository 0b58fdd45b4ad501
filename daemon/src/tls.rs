//! TLS of the data plane: certificates from files, read again when these change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::config::TlsFiles;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// The files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// One of them cannot be read.
    #[error("the file {path} cannot be used: {problem}. Check {key} in the configuration")]
    File {
        /// The key that names it.
        key: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// They do not fit together.
    #[error(
        "server.tls.certificate and server.tls.key cannot be used together: {0}. Name a certificate and the key that belongs to it"
    )]
    Unfit(#[from] rustls::Error),
    /// There is nothing in the file of client certificates to check them with.
    #[error("the certificates of server.tls.client_ca cannot be used: {0}")]
    ClientCa(String),
}

/// The certificate that is shown now, and where the next one will be found.
pub struct Tls {
    files: TlsFiles,
    current: ArcSwap<ServerConfig>,
}

impl Tls {
    /// Reads the files.
    pub fn open(files: TlsFiles) -> Result<Self, TlsError> {
        let current = ArcSwap::from(load(&files)?);
        Ok(Self { files, current })
    }

    /// For the next connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.load_full())
    }

    /// Reads the files again whenever they change. A wrong file never takes the place of a right one.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let mut seen = self.fingerprint();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let now = self.fingerprint();
            if now != seen {
                seen = now;
                self.reload();
            }
        }
    }

    /// Reads the files now.
    pub fn reload(&self) {
        match load(&self.files) {
            Ok(config) => {
                self.current.store(config);
                tracing::info!("the TLS certificate was read again");
            }
            Err(error) => {
                tracing::error!(%error, "the TLS files have changed and are wrong; the old ones are kept");
            }
        }
    }

    /// Of the files' contents; a file that cannot be read counts as empty.
    fn fingerprint(&self) -> [u8; 32] {
        let files = [Some(&self.files.certificate), Some(&self.files.key), self.files.client_ca.as_ref()];
        let mut hash = Sha256::new();
        for path in files.into_iter().flatten() {
            let bytes = std::fs::read(path).unwrap_or_default();
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(&bytes);
        }
        hash.finalize().into()
    }
}

fn load(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates("server.tls.certificate", &files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key);
    let key = key.map_err(|error| wrong("server.tls.key", &files.key, &error))?;
    let builder = ServerConfig::builder();
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("server.tls.client_ca", path)? {
                roots.add(certificate).map_err(|error| TlsError::ClientCa(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build();
            builder
                .with_client_cert_verifier(verifier.map_err(|error| TlsError::ClientCa(error.to_string()))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_file_iter(path).map_err(|error| wrong(key, path, &error))?;
    let found: Vec<_> = found.collect::<Result<_, _>>().map_err(|error| wrong(key, path, &error))?;
    if found.is_empty() {
        return Err(TlsError::File {
            key,
            path: path.to_owned(),
            problem: "it holds no certificate".to_owned(),
        });
    }
    Ok(found)
}

fn wrong(key: &'static str, path: &Path, error: &rustls::pki_types::pem::Error) -> TlsError {
    TlsError::File { key, path: path.to_owned(), problem: error.to_string() }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};

    use super::*;
    use crate::upstream::install_crypto;

    fn write(files: &TlsFiles, made: &CertifiedKey<KeyPair>) {
        std::fs::write(&files.certificate, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    }

    #[test]
    fn a_new_certificate_is_taken_and_a_wrong_one_is_not() {
        install_crypto();
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name);
        let files = TlsFiles { certificate: path("chain.pem"), key: path("key.pem"), client_ca: None };
        assert!(Tls::open(files.clone()).is_err(), "there are no files");
        let make = || generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        write(&files, &make());
        let tls = Tls::open(files.clone()).unwrap();
        let (first, seen) = (tls.current.load_full(), tls.fingerprint());
        write(&files, &make());
        assert_ne!(tls.fingerprint(), seen);
        tls.reload();
        let second = tls.current.load_full();
        assert!(!Arc::ptr_eq(&first, &second));
        for wrong in ["", "no certificate", &make().cert.pem()] {
            std::fs::write(&files.certificate, wrong).unwrap();
            tls.reload();
            assert!(Arc::ptr_eq(&second, &tls.current.load_full()), "{wrong}");
        }
    }
}
