//! Certificates, made by openssl.

use super::{
    proc::{self, command},
    secs,
    temp::TempDir,
};
use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::PathBuf,
};

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
    pub(crate) fn issue(&self, name: &str, names: &str, days: u32) -> Certificate {
        self.sign(
            name,
            names,
            &format!("openssl x509 -req -CA ca.pem -CAkey ca.key -CAcreateserial -days {days}"),
        )
    }

    /// One without extensions, as of old: then openssl makes it one of X.509 version 1.
    #[track_caller]
    pub(crate) fn issue_version_1(&self, name: &str) -> Certificate {
        let issued = self.issue(name, &format!("DNS:{name}"), 2);
        let mut sign = command(&format!(
            "openssl x509 -req -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -in {name}.csr \
             -out {name}.pem"
        ));
        sign.current_dir(self.dir.path());
        proc::run_ok(secs(20), sign);
        let mut show = command(&format!("openssl x509 -noout -text -in {name}.pem"));
        show.current_dir(self.dir.path());
        let text = proc::run_ok(secs(20), show);
        assert!(text.contains("Version: 1 (0x0)"), "{text}");
        issued
    }

    /// One that was valid once.
    #[track_caller]
    pub(crate) fn issue_expired(&self, name: &str, names: &str) -> Certificate {
        self.dir.write("index.txt", "");
        self.dir.write(
            "ca.cnf",
            "[ca]\ndefault_ca=own\n\
             [own]\ndatabase=index.txt\nnew_certs_dir=.\ndefault_md=sha256\npolicy=any\n\
             rand_serial=yes\n[any]\ncommonName=supplied\n",
        );
        self.sign(
            name,
            names,
            "openssl ca -batch -notext -config ca.cnf -cert ca.pem -keyfile ca.key \
             -startdate 20200101000000Z -enddate 20200201000000Z",
        )
    }

    #[track_caller]
    fn sign(&self, name: &str, names: &str, by: &str) -> Certificate {
        let mut ask = command(&format!(
            "openssl req {KEY} -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ));
        ask.current_dir(self.dir.path());
        proc::run_ok(secs(20), ask);
        self.dir
            .write("extensions", &format!("subjectAltName={names}\n"));
        let mut sign = command(&format!(
            "{by} -in {name}.csr -extfile extensions -out {name}.pem"
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

impl Certificate {
    /// Lets only this user read the key.
    pub(crate) fn owned_by(self, (user, group): (u32, u32)) -> Certificate {
        chown(&self.key, Some(user), Some(group)).unwrap();
        fs::set_permissions(&self.key, fs::Permissions::from_mode(0o600)).unwrap();
        self
    }
}
