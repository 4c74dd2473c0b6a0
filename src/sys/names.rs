//! What the system's resolver knows of one family of addresses. Where a name server fails for one
//! of two families, the resolver passes on the addresses of the other without a word.

use libc::{AF_INET, AF_INET6, EAI_NODATA, EAI_NONAME, SOCK_STREAM, addrinfo};
use std::{ffi::CString, ptr};

/// The name is known in another family alone, to a file of the system. Not in `libc`.
const EAI_ADDRFAMILY: i32 = -9;

/// Whether it is certain that a name has no address of this family. May take as long as any
/// look-up.
pub fn is_without(host: &str, is_ipv6: bool) -> bool {
    let Ok(host) = CString::new(host) else {
        return false;
    };
    let hints = addrinfo {
        ai_flags: 0,
        ai_family: if is_ipv6 { AF_INET6 } else { AF_INET },
        ai_socktype: SOCK_STREAM,
        ai_protocol: 0,
        ai_addrlen: 0,
        ai_addr: ptr::null_mut(),
        ai_canonname: ptr::null_mut(),
        ai_next: ptr::null_mut(),
    };
    let mut found = ptr::null_mut();
    // SAFETY: the name ends with a zero byte, a null pointer stands for no service, `hints` and
    // `found` are valid for the call.
    let code =
        unsafe { libc::getaddrinfo(host.as_ptr(), ptr::null(), &raw const hints, &raw mut found) };
    if code == 0 && !found.is_null() {
        // SAFETY: the list comes from the call above and is given back once.
        unsafe { libc::freeaddrinfo(found) };
    }
    matches!(code, EAI_NONAME | EAI_NODATA | EAI_ADDRFAMILY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_of_its_family_alone() {
        assert!(!is_without("127.0.0.1", false));
        assert!(is_without("127.0.0.1", true));
        assert!(!is_without("::1", true));
        assert!(is_without("::1", false));
        assert!(
            !is_without("a\0b", true),
            "nothing is certain about what is no name"
        );
    }
}
