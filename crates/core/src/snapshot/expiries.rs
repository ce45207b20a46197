//! Expiries as byte planes: what each is later than the earliest one, its lowest bytes one behind the other, then its next ones.
//!
//! Which expiry a key has is unrelated to its place among the hashes, so there is nothing to be found in their order; but the
//! higher bytes take few values, of which zstd's entropy coding makes as little as they are worth.

use std::io;

use zstd::bulk::{Compressor, Decompressor};

use crate::{Expiry, bytes::Reader};

/// By measurement: higher levels search longer for repetitions, which there are none of, and give the same size.
const ZSTD_LEVEL: i32 = 1;

/// A reader takes blocks of up to so many entries.
pub(super) const BLOCK_ENTRIES_MAX: usize = 65_536;

const PLANE_RAW: u8 = 0;
const PLANE_ZSTD: u8 = 1;

/// Writes expiries; keeps zstd's memory between blocks.
pub(super) struct ExpiryEncoder {
    zstd: Compressor<'static>,
    plane: Vec<u8>,
    compressed: Vec<u8>,
}

impl ExpiryEncoder {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            zstd: Compressor::new(ZSTD_LEVEL)?,
            plane: Vec::new(),
            compressed: Vec::new(),
        })
    }

    /// Appends the earliest expiry, the number of planes, and the planes.
    pub(super) fn encode(
        &mut self,
        expiries: impl Iterator<Item = u32> + Clone,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        let (base, latest) = expiries
            .clone()
            .fold((u32::MAX, 0), |(least, most), expiry| {
                (least.min(expiry), most.max(expiry))
            });
        let planes = (u32::BITS - (latest - base).leading_zeros()).div_ceil(8);
        out.extend_from_slice(&base.to_le_bytes());
        out.push(planes as u8);
        for plane in 0..planes {
            self.plane.clear();
            let bytes = expiries
                .clone()
                .map(|expiry| ((expiry - base) >> (8 * plane)) as u8);
            self.plane.extend(bytes);
            self.compressed.clear();
            self.compressed
                .reserve(zstd::zstd_safe::compress_bound(self.plane.len()));
            self.zstd
                .compress_to_buffer(&self.plane, &mut self.compressed)?;
            let (codec, bytes) = if self.compressed.len() < self.plane.len() {
                (PLANE_ZSTD, &self.compressed)
            } else {
                (PLANE_RAW, &self.plane)
            };
            out.push(codec);
            out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            out.extend_from_slice(bytes);
        }
        Ok(())
    }
}

/// Reads expiries; keeps zstd's memory between blocks.
pub(super) struct ExpiryDecoder {
    zstd: Decompressor<'static>,
    plane: Vec<u8>,
    seconds: Vec<u32>,
}

impl ExpiryDecoder {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            zstd: Decompressor::new()?,
            plane: Vec::new(),
            seconds: Vec::new(),
        })
    }

    /// Reads `count` expiries, at most [`BLOCK_ENTRIES_MAX`]; `None` when the bytes are not those of so many.
    pub(super) fn decode(
        &mut self,
        count: usize,
        reader: &mut Reader<'_>,
    ) -> Option<impl Iterator<Item = Option<Expiry>> + '_> {
        debug_assert!(count <= BLOCK_ENTRIES_MAX);
        let base = reader.u32()?;
        let planes = u32::from(reader.u8()?);
        if planes > u32::BITS / 8 {
            return None;
        }
        self.seconds.clear();
        self.seconds.resize(count, 0);
        for plane in 0..planes {
            let codec = reader.u8()?;
            let length = usize::try_from(reader.u32()?).ok()?;
            let bytes = reader.take(length)?;
            let bytes = match codec {
                PLANE_RAW => bytes,
                PLANE_ZSTD => {
                    self.plane.resize(count, 0);
                    let length = self
                        .zstd
                        .decompress_to_buffer(bytes, &mut self.plane[..])
                        .ok()?;
                    &self.plane[..length]
                }
                _ => return None,
            };
            if bytes.len() != count {
                return None;
            }
            for (seconds, byte) in self.seconds.iter_mut().zip(bytes) {
                *seconds |= u32::from(*byte) << (8 * plane);
            }
        }
        let expiry = move |later: &u32| Expiry::from_unix_seconds(base.checked_add(*later)?);
        Some(self.seconds.iter().map(expiry))
    }
}
