//! Whether a direction copies or splices.

/// A read of at least this much is large: one of a sustained transfer.
const LARGE: usize = 64 * 1024;
/// Large reads in a row after which a direction splices.
const LARGE_READS: u8 = 2;
/// Reads below half of `LARGE` in a row after which it copies again.
const SMALL_READS: u8 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// `large`: how many reads in a row were.
    Copy { large: u8 },
    /// The kernel refused to splice one of the two sockets.
    CopyOnly,
    /// `full`: how many pipes in a row were.
    Splice { full: u8 },
    /// `small`: how many reads in a row were.
    SpliceSmall { small: u8 },
}

impl Default for Mode {
    fn default() -> Self {
        Self::Copy { large: 0 }
    }
}

impl Mode {
    /// The mode after a read of so many bytes. It takes more than one read to change it, either
    /// way. `allowed`: as many as the read was allowed to have.
    pub(super) fn after(self, bytes: usize, allowed: usize) -> Self {
        match self {
            Self::CopyOnly => Self::CopyOnly,
            // A read that was small because it had to be shows nothing about the transfer.
            _ if bytes == allowed && bytes < LARGE => self,
            Self::Copy { .. } if bytes < LARGE => Self::Copy { large: 0 },
            Self::Copy { large } if large + 1 < LARGE_READS => Self::Copy { large: large + 1 },
            Self::Copy { .. } => Self::Splice { full: 0 },
            Self::Splice { full } if bytes >= LARGE / 2 => Self::Splice { full },
            Self::SpliceSmall { .. } if bytes >= LARGE / 2 => Self::Splice { full: 0 },
            Self::Splice { .. } => Self::SpliceSmall { small: 1 },
            Self::SpliceSmall { small } if small + 1 < SMALL_READS => {
                Self::SpliceSmall { small: small + 1 }
            }
            Self::SpliceSmall { .. } => Self::Copy { large: 0 },
        }
    }

    pub(super) fn copies(self) -> bool {
        match self {
            Self::Copy { .. } | Self::CopyOnly => true,
            Self::Splice { .. } | Self::SpliceSmall { .. } => false,
        }
    }
}
