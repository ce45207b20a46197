//! What is in an object's file: one header line, then the object's bytes as they are.
//!
//! ```text
//! keydb-object format=1 version=6d1f…e0 bytes=1234 xxh3=27b0…9c
//! {"format": 1, …
//! ```
//!
//! The version is random for each write, so it never comes back, whatever the bytes, the clock and the file system do. It is in
//! the same file as the bytes, so the two are always of the same write. Length and XXH3-64 checksum are of the bytes after the
//! header line. To read an object without this program: `tail -n +2 FILE`.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::{Object, Version};

/// No header line is longer.
pub(super) const HEADER_BYTES_MAX: usize = 160;

pub(super) fn header(version: &Version, bytes: &[u8]) -> String {
    header_of(version, bytes.len() as u64, xxh3_64(bytes))
}

/// The header of content with this length and checksum.
pub(super) fn header_of(version: &Version, bytes: u64, checksum: u64) -> String {
    format!(
        "keydb-object format=1 version={} bytes={bytes} xxh3={checksum:016x}\n",
        version.tag()
    )
}

/// What the header line at the beginning of a file says.
pub(super) struct Header {
    version: Version,
    /// How long the content is that follows it.
    pub(super) content_bytes: u64,
    checksum: u64,
    /// How long the line itself is.
    pub(super) line_bytes: usize,
}

/// Reads the header line that a file begins with.
pub(super) fn read_header(file: &[u8]) -> Result<Header, String> {
    let start = &file[..file.len().min(HEADER_BYTES_MAX)];
    let end = start.iter().position(|&byte| byte == b'\n');
    let line = end.and_then(|end| std::str::from_utf8(&start[..end]).ok());
    let (Some(end), Some(line)) = (end, line) else {
        return Err("it does not begin with a header line".to_owned());
    };
    let fields = line.strip_prefix("keydb-object format=").and_then(|rest| {
        let (format, rest) = rest.split_once(" version=")?;
        let (version, rest) = rest.split_once(" bytes=")?;
        let (length, checksum) = rest.split_once(" xxh3=")?;
        Some((format, version, length, checksum))
    });
    let Some((format, version, length, checksum)) = fields else {
        return Err(format!("{line:?} is not an object's header line"));
    };
    if format != "1" {
        return Err(format!(
            "format {format:?} is not one that this build reads"
        ));
    }
    if version.len() != 32 || !version.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(format!("version {version:?} is not 32 hex digits"));
    }
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (Ok(content_bytes), Some(checksum)) = (length.parse(), hex(checksum)) else {
        return Err(format!("{line:?} is not an object's header line"));
    };
    Ok(Header {
        version: Version::new(version),
        content_bytes,
        checksum,
        line_bytes: end + 1,
    })
}

/// The object in a file; or what is wrong with it.
pub(super) fn decode(file: Bytes) -> Result<Object, String> {
    let header = read_header(&file)?;
    let bytes = file.slice(header.line_bytes..);
    if header.content_bytes != bytes.len() as u64 {
        return Err(format!(
            "it should hold {} bytes after the header and holds {}",
            header.content_bytes,
            bytes.len()
        ));
    }
    let found = xxh3_64(&bytes);
    if header.checksum != found {
        return Err(format!(
            "the checksum of its content is {found:016x}, the header says {:016x}",
            header.checksum
        ));
    }
    Ok(Object {
        bytes,
        version: header.version,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> Vec<u8> {
        let mut file = header(&Version::random(), content).into_bytes();
        assert!(file.len() <= HEADER_BYTES_MAX);
        file.extend_from_slice(content);
        file
    }

    #[test]
    fn an_object_file_reads_back_and_its_content_follows_the_first_line() {
        for content in [&b""[..], b"{}", b"a\nb\n", &[0, 255, 10]] {
            let version = Version::random();
            let mut bytes = header(&version, content).into_bytes();
            bytes.extend_from_slice(content);
            let object = decode(bytes.clone().into()).unwrap();
            assert_eq!((&object.bytes[..], &object.version), (content, &version));
            let line_end = bytes.iter().position(|&byte| byte == b'\n').unwrap();
            assert_eq!(&bytes[line_end + 1..], content);
        }
    }

    #[test]
    fn every_truncation_is_found() {
        let file = file(b"some content");
        for length in 0..file.len() {
            assert!(decode(file[..length].to_vec().into()).is_err(), "{length}");
        }
    }

    #[test]
    fn every_changed_bit_is_found_or_makes_another_version() {
        let file = file(b"some content");
        let intact = decode(file.clone().into()).unwrap();
        for bit in 0..file.len() * 8 {
            let mut damaged = file.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            if let Ok(object) = decode(damaged.into()) {
                assert_eq!(object.bytes, intact.bytes, "bit {bit}");
                assert_ne!(object.version, intact.version, "bit {bit}");
            }
        }
    }

    #[test]
    fn damage_is_described() {
        let told = |file: &str| decode(Bytes::from(file.to_owned())).unwrap_err();
        assert!(told("").contains("header line"));
        assert!(told("{\"format\": 1}\n").contains("not an object's header"));
        let intact = String::from_utf8(file(b"abc")).unwrap();
        assert!(told(&intact.replace("format=1", "format=2")).contains("\"2\""));
        assert!(
            told(&format!("{intact}d"))
                .contains("should hold 3 bytes after the header and holds 4")
        );
        assert!(told(&intact.replace("\nabc", "\nabd")).contains("checksum"));
    }
}
