//! Values of scalar keys, and the types of the fields that they go into.

use std::time::Duration;

/// The value of a scalar key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scalar {
    Flag(bool),
    Number(u64),
    Duration(Duration),
    Word(&'static str),
}

/// A type of a field that a scalar goes into.
pub(crate) trait Value {
    /// A scalar of another form leaves the field as it is: the form of a row is that of its field.
    fn set(&mut self, scalar: Scalar);
    fn get(&self) -> Scalar;
}

/// The type of a key that takes words.
pub(crate) trait Word: Copy + PartialEq + 'static {
    const WORDS: &'static [(&'static str, Self)];

    fn word(self) -> &'static str {
        let of_self = Self::WORDS.iter().find(|(_, value)| *value == self);
        of_self.map_or("", |(word, _)| word)
    }

    fn words() -> Vec<&'static str> {
        Self::WORDS.iter().map(|(word, _)| *word).collect()
    }
}

/// Declares the words of types.
macro_rules! words {
    ($($type:ty { $($word:literal => $value:expr,)* })*) => { $(
        impl $crate::config::keys::scalar::Word for $type {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, $value),)*];
        }

        impl $crate::config::keys::scalar::Value for $type {
            fn set(&mut self, scalar: $crate::config::keys::scalar::Scalar) {
                use $crate::config::keys::scalar::{Scalar, Word};
                let Scalar::Word(word) = scalar else { return };
                if let Some((_, value)) = Self::WORDS.iter().find(|(allowed, _)| *allowed == word) {
                    *self = *value;
                }
            }

            fn get(&self) -> $crate::config::keys::scalar::Scalar {
                use $crate::config::keys::scalar::{Scalar, Word};
                Scalar::Word(self.word())
            }
        }
    )* };
}
pub(crate) use words;

impl Value for bool {
    fn set(&mut self, scalar: Scalar) {
        if let Scalar::Flag(flag) = scalar {
            *self = flag;
        }
    }

    fn get(&self) -> Scalar {
        Scalar::Flag(*self)
    }
}

macro_rules! number {
    ($($type:ty)*) => { $(
        impl Value for $type {
            fn set(&mut self, scalar: Scalar) {
                if let Scalar::Number(number) = scalar {
                    *self = number.try_into().unwrap_or(Self::MAX);
                }
            }

            fn get(&self) -> Scalar {
                Scalar::Number((*self).try_into().unwrap_or(u64::MAX))
            }
        }
    )* };
}
number! { u8 u16 u32 u64 usize }

impl Value for Duration {
    fn set(&mut self, scalar: Scalar) {
        if let Scalar::Duration(duration) = scalar {
            *self = duration;
        }
    }

    fn get(&self) -> Scalar {
        Scalar::Duration(*self)
    }
}

/// A limit: zero is none.
impl Value for Option<Duration> {
    fn set(&mut self, scalar: Scalar) {
        if let Scalar::Duration(duration) = scalar {
            *self = Some(duration).filter(|duration| !duration.is_zero());
        }
    }

    fn get(&self) -> Scalar {
        Scalar::Duration(self.unwrap_or_default())
    }
}
