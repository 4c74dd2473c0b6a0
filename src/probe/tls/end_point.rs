//! What a login can be bound to inside TLS: the server's certificate ("tls-server-end-point", RFC
//! 5929), so that an attack with a certificate of its own cannot pass the login on.
//! Pure.

use sha2::{Digest, Sha256, Sha384, Sha512};

const SEQUENCE: u8 = 0x30;
const OBJECT: u8 = 0x06;

/// The signature algorithms, as they stand in a certificate.
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
const ECDSA_SHA1: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01];
const ECDSA_SHA2: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03];

/// The hash of a certificate in DER, by the algorithm that it is signed with; `None` where that
/// names no hash that both sides would agree on.
pub(in crate::probe) fn of(certificate: &[u8]) -> Option<Vec<u8>> {
    let (inside, _) = element(certificate, SEQUENCE)?;
    let (_, after_contents) = element(inside, SEQUENCE)?;
    let (algorithm, _) = element(after_contents, SEQUENCE)?;
    let (name, _) = element(algorithm, OBJECT)?;
    let (&last, family) = name.split_last()?;
    Some(match (family, last) {
        // MD5 and SHA-1 are not to be used any more: SHA-256 replaces them.
        (RSA, 4 | 5 | 11) | (ECDSA_SHA2, 2) => Sha256::digest(certificate).to_vec(),
        _ if name == ECDSA_SHA1 => Sha256::digest(certificate).to_vec(),
        (RSA, 12) | (ECDSA_SHA2, 3) => Sha384::digest(certificate).to_vec(),
        (RSA, 13) | (ECDSA_SHA2, 4) => Sha512::digest(certificate).to_vec(),
        _ => return None,
    })
}

/// What is inside an element of this kind, and what follows it.
fn element(bytes: &[u8], kind: u8) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        // The length of the length.
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(length - 0x80))?;
            let sum = |sum, digit: &u8| sum << 8 | usize::from(*digit);
            (digits.iter().fold(0, sum), rest)
        }
        _ => return None,
    };
    (first == kind).then_some(())?;
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As much of a certificate as is looked at.
    fn certificate(algorithm: &[u8]) -> Vec<u8> {
        let wrap = |kind: u8, inside: &[u8]| {
            let length = u16::try_from(inside.len()).expect("short").to_be_bytes();
            [&[kind, 0x82], &length[..], inside].concat()
        };
        let name = wrap(OBJECT, algorithm);
        let parts = [
            wrap(SEQUENCE, &[7; 300]),
            wrap(SEQUENCE, &name),
            vec![3, 1, 0],
        ];
        wrap(SEQUENCE, &parts.concat())
    }

    #[test]
    fn the_hash_is_that_of_the_signature() {
        for (family, last, bytes) in [
            (RSA, 5, Some(32)),
            (RSA, 11, Some(32)),
            (RSA, 12, Some(48)),
            (RSA, 13, Some(64)),
            (ECDSA_SHA2, 2, Some(32)),
            (ECDSA_SHA2, 3, Some(48)),
            (ECDSA_SHA2, 4, Some(64)),
            // RSASSA-PSS, whose parameters name the hash, and Ed25519, which names none.
            (RSA, 10, None),
            (&[0x2b, 0x65], 0x70, None),
        ] {
            let certificate = certificate(&[family, &[last]].concat());
            assert_eq!(of(&certificate).map(|hash| hash.len()), bytes, "{last}");
        }
        let sha1 = certificate(ECDSA_SHA1);
        assert_eq!(of(&sha1).as_deref(), Some(&Sha256::digest(&sha1)[..]));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, at in 0usize..400, byte: u8) {
            let _ = of(&bytes);
            let mut certificate = certificate(&[RSA, &[11]].concat());
            let at = at % certificate.len();
            certificate[at] = byte;
            let _ = of(&certificate);
            certificate.truncate(at);
            let _ = of(&certificate);
        }
    }
}
