//! Frames: what everything in a snapshot file is wrapped in.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tag {
    Header,
    Section,
    Block,
    Footer,
}

/// Tag and payload's length.
pub(super) const FRAME_HEAD_BYTES: usize = 8;

/// The checksum behind the payload.
pub(super) const CHECKSUM_BYTES: usize = size_of::<u64>();

/// What a frame takes beyond its payload.
pub(super) const FRAME_BYTES: usize = FRAME_HEAD_BYTES + CHECKSUM_BYTES;

/// The salt of frames that are read before their file's salt is known: header and footer.
pub(super) const NO_SALT: u64 = 0;

impl Tag {
    pub(super) const fn bytes(self) -> [u8; 4] {
        *match self {
            Self::Header => b"HEAD",
            Self::Section => b"SECT",
            Self::Block => b"BLCK",
            Self::Footer => b"FOOT",
        }
    }

    const fn from_bytes(bytes: [u8; 4]) -> Option<Self> {
        match &bytes {
            b"HEAD" => Some(Self::Header),
            b"SECT" => Some(Self::Section),
            b"BLCK" => Some(Self::Block),
            b"FOOT" => Some(Self::Footer),
            _ => None,
        }
    }
}

/// The first bytes of a frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct FrameHead {
    /// `None` when no frame begins like this.
    pub(super) tag: Option<Tag>,
    pub(super) payload_bytes: usize,
}

impl FrameHead {
    /// Of the frame that `bytes` begin with; `None` when they are too few.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (tag, rest) = bytes.split_first_chunk()?;
        let length = rest.first_chunk()?;
        Some(Self {
            tag: Tag::from_bytes(*tag),
            payload_bytes: u32::from_le_bytes(*length) as usize,
        })
    }

    pub(super) const fn frame_bytes(self) -> usize {
        self.payload_bytes + FRAME_BYTES
    }
}

/// The payload of a whole frame; `None` when its checksum does not match.
pub(super) fn payload(frame: &[u8], salt: u64) -> Option<&[u8]> {
    let (content, sum) = frame.split_last_chunk()?;
    (xxh3_64_with_seed(content, salt) == u64::from_le_bytes(*sum))
        .then(|| content.get(FRAME_HEAD_BYTES..))?
}

/// Begins a frame: clears `out` for the payload to be appended.
pub(super) fn begin(out: &mut Vec<u8>, tag: Tag) {
    out.clear();
    out.extend_from_slice(&tag.bytes());
    out.extend_from_slice(&[0; 4]);
}

/// Ends the frame that was begun, and returns its checksum.
pub(super) fn seal(out: &mut Vec<u8>, salt: u64) -> u64 {
    let payload_bytes = u32::try_from(out.len() - FRAME_HEAD_BYTES)
        .expect("the limits of what a frame holds keep its length in 32 bits");
    out[4..FRAME_HEAD_BYTES].copy_from_slice(&payload_bytes.to_le_bytes());
    let checksum = xxh3_64_with_seed(out, salt);
    out.extend_from_slice(&checksum.to_le_bytes());
    checksum
}
