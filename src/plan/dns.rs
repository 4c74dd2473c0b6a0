//! Words and numbers of DNS.

use std::fmt;

/// Declares what the DNS has a word and a number for.
macro_rules! dns_words {
    ($(#[$doc:meta])* $name:ident: $number:ty {
        $($variant:ident = $word:literal $value:literal,)*
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($variant,)* }

        impl $name {
            pub const ALL: [Self; [$($word,)*].len()] = [$(Self::$variant,)*];

            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            pub fn of_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }

            pub fn number(self) -> $number {
                match self { $(Self::$variant => $value,)* }
            }

            pub fn of(number: $number) -> Option<Self> {
                match number { $($value => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

dns_words! {
    /// The type of a record, as a question names it.
    RecordType: u16 {
        A = "A" 1,
        Ns = "NS" 2,
        Cname = "CNAME" 5,
        Soa = "SOA" 6,
        Ptr = "PTR" 12,
        Mx = "MX" 15,
        Txt = "TXT" 16,
        Aaaa = "AAAA" 28,
        Srv = "SRV" 33,
    }
}

dns_words! {
    /// The result of a query.
    Rcode: u8 {
        NoError = "NOERROR" 0,
        FormErr = "FORMERR" 1,
        ServFail = "SERVFAIL" 2,
        NxDomain = "NXDOMAIN" 3,
        NotImp = "NOTIMP" 4,
        Refused = "REFUSED" 5,
    }
}

impl fmt::Display for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl Rcode {
    /// Of a code with the upper bits of EDNS.
    pub fn of_extended(code: u16) -> Option<Self> {
        Self::of(u8::try_from(code).ok()?)
    }

    /// The word for such a code.
    pub fn describe(code: u16) -> String {
        let known = Self::of_extended(code);
        known.map_or_else(|| format!("code {code}"), |rcode| rcode.word().to_owned())
    }
}
