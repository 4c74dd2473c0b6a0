//! Certificates, made by openssl.

use super::{
    proc::{self, command},
    secs,
    temp::TempDir,
};
use std::path::PathBuf;

/// An authority of its own.
pub(crate) struct Authority {
    dir: TempDir,
}

pub(crate) struct Certificate {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";

impl Authority {
    #[track_caller]
    pub(crate) fn new(name: &str) -> Authority {
        let dir = TempDir::new();
        let mut make = command(&format!(
            "openssl req -x509 {KEY} -days 2 -subj /CN={name} -keyout ca.key -out ca.pem"
        ));
        make.current_dir(dir.path());
        proc::run_ok(secs(20), make);
        Authority { dir }
    }

    /// Whom to trust.
    pub(crate) fn file(&self) -> PathBuf {
        self.dir.file("ca.pem")
    }

    /// For these names, as in "DNS:db.example,IP:127.0.0.1"; valid for so many days from now.
    #[track_caller]
    pub(crate) fn issue(&self, name: &str, names: &str, days: i32) -> Certificate {
        let mut ask = command(&format!(
            "openssl req {KEY} -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ));
        ask.current_dir(self.dir.path());
        proc::run_ok(secs(20), ask);
        self.dir
            .write("extensions", &format!("subjectAltName={names}\n"));
        let mut sign = command(&format!(
            "openssl x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days {days} \
             -extfile extensions -out {name}.pem"
        ));
        sign.current_dir(self.dir.path());
        proc::run_ok(secs(20), sign);
        let (certificate, key) = (format!("{name}.pem"), format!("{name}.key"));
        Certificate {
            certificate: self.dir.file(&certificate),
            key: self.dir.file(&key),
        }
    }
}
