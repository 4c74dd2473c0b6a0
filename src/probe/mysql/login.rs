//! How a password is proved to a server, by each of the plugins that accounts may want. Pure.

use rsa::{Oaep, PublicKey, pkcs8::DecodePublicKey};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Length of a signature.
const ED25519: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plugin {
    Native,
    CachingSha2,
    /// The password itself: for a server whose identity is proven.
    Clear,
}

impl Plugin {
    pub(super) fn named(name: &[u8]) -> Option<Self> {
        match name {
            b"mysql_native_password" => Some(Self::Native),
            b"caching_sha2_password" => Some(Self::CachingSha2),
            b"mysql_clear_password" => Some(Self::Clear),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static [u8] {
        match self {
            Self::Native => b"mysql_native_password",
            Self::CachingSha2 => b"caching_sha2_password",
            Self::Clear => b"mysql_clear_password",
        }
    }

    /// The first answer. For an empty password it is empty.
    pub(super) fn answer(self, password: &[u8], nonce: &[u8]) -> Vec<u8> {
        match self {
            Self::Clear => clear(password),
            _ if password.is_empty() => Vec::new(),
            Self::Native => {
                let hash = sha1(&[password]);
                let twice = sha1(&[&hash]);
                mix(hash, &sha1(&[nonce, &twice]))
            }
            Self::CachingSha2 => {
                let hash = sha256(&[password]);
                let twice = sha256(&[&hash]);
                mix(hash, &sha256(&[&twice, nonce]))
            }
        }
    }
}

pub(super) fn clear(password: &[u8]) -> Vec<u8> {
    [password, b"\0"].concat()
}

/// The answer to a plugin that is not supported, by its name: empty, or as many zero bytes as its
/// proofs are long, so that the server refuses the login and does not count a client that left.
pub(super) fn nothing(wanted: &[u8]) -> Vec<u8> {
    match wanted.starts_with(b"client_ed25519\0") {
        true => vec![0; ED25519],
        false => Vec::new(),
    }
}

/// The password, encrypted for the owner of this key. The key is not verified: it protects against
/// eavesdropping, not against an active attack. `None`: it is no key, or the password is too long
/// for it.
pub(super) fn sealed(key: &[u8], password: &[u8], nonce: &[u8]) -> Option<Vec<u8>> {
    let key = PublicKey::from_public_key_pem(str::from_utf8(key).ok()?).ok()?;
    let nonce: Vec<u8> = nonce
        .iter()
        .copied()
        .cycle()
        .take(password.len() + 1)
        .collect();
    let text = mix(clear(password), &nonce);
    key.encrypt(&mut rand::rng(), Oaep::<Sha1>::new(), &text)
        .ok()
}

/// Both are of one length.
fn mix(mut bytes: Vec<u8>, with: &[u8]) -> Vec<u8> {
    bytes
        .iter_mut()
        .zip(with)
        .for_each(|(byte, with)| *byte ^= with);
    bytes
}

fn sha1(parts: &[&[u8]]) -> Vec<u8> {
    Sha1::digest(parts.concat()).to_vec()
}

fn sha256(parts: &[&[u8]]) -> Vec<u8> {
    Sha256::digest(parts.concat()).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// What `openssl` writes when it reads `input`.
    fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
        use std::io::Write as _;
        let mut child = Command::new("openssl")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input).expect("it reads");
        drop(stdin);
        let output = child.wait_with_output().expect("an end");
        assert!(output.status.success(), "{arguments:?}");
        output.stdout
    }

    fn digest(name: &str, text: &[u8]) -> Vec<u8> {
        openssl(&["dgst", name, "-binary"], text)
    }

    #[test]
    fn answers_of_the_plugins() {
        let nonce: Vec<u8> = (1..=20).collect();
        // By the formulas of the documentation, with the digests of another library.
        let xor =
            |a: Vec<u8>, b: Vec<u8>| -> Vec<u8> { a.iter().zip(b).map(|(a, b)| a ^ b).collect() };
        let once = digest("-sha1", b"secret");
        let seed = [&nonce[..], &digest("-sha1", &once)].concat();
        let native = xor(once, digest("-sha1", &seed));
        assert_eq!(hex(&Plugin::Native.answer(b"secret", &nonce)), hex(&native));
        let once = digest("-sha256", b"secret");
        let seed = [&digest("-sha256", &once)[..], &nonce].concat();
        let caching = xor(once, digest("-sha256", &seed));
        assert_eq!(
            hex(&Plugin::CachingSha2.answer(b"secret", &nonce)),
            hex(&caching)
        );
        assert_eq!(Plugin::Clear.answer(b"secret", &nonce), b"secret\0");
        assert_eq!(Plugin::Native.answer(b"", &nonce), b"");
        assert_eq!(Plugin::CachingSha2.answer(b"", &nonce), b"");
    }

    /// From the tests of go-sql-driver/mysql.
    #[test]
    fn vectors_of_another_client() {
        let nonce = [
            10, 47, 74, 111, 75, 73, 34, 48, 88, 76, 114, 74, 37, 13, 3, 80, 82, 2, 23, 21,
        ];
        for (password, wanted) in [
            (
                "secret",
                "f490e76f66d9d86665ce54d98c78d0acfe2fb0b08b423da807144873d30b312c",
            ),
            (
                "secret2",
                "abc3934a012cf342e876071c8ee202de51785b430258a7a0138bc79c4d800bc6",
            ),
        ] {
            let answer = Plugin::CachingSha2.answer(password.as_bytes(), &nonce);
            assert_eq!(hex(&answer), wanted);
        }
    }

    #[test]
    fn what_is_sealed_is_opened_by_the_owner_of_the_key() {
        let private = openssl(&["genrsa", "2048"], b"");
        let public = openssl(&["rsa", "-pubout"], &private);
        let nonce = [7; 20];
        // Longer than the nonce, which begins again then.
        let password = b"a password of more than twenty bytes";
        let bytes = sealed(&public, password, &nonce).expect("sealed");
        let file = std::env::temp_dir().join(format!("tembuku-key-{}.pem", std::process::id()));
        std::fs::write(&file, &private).expect("a file");
        let path = file.to_str().expect("a name");
        let padding = "rsa_padding_mode:oaep";
        let text = openssl(
            &["pkeyutl", "-decrypt", "-inkey", path, "-pkeyopt", padding],
            &bytes,
        );
        std::fs::remove_file(&file).expect("ours");
        let text: Vec<u8> = text.iter().map(|b| b ^ 7).collect();
        assert_eq!(text, clear(password));
        assert_eq!(sealed(&public, &[b'x'; 300], &nonce), None, "too long");
        assert_eq!(sealed(b"no key", password, &nonce), None);
    }
}
