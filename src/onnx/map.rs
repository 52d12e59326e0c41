//! Bytes of files: mapped where that is wanted, read otherwise. The only file of the project
//! with `unsafe`.
//!
//! Only regular files are opened, so that nothing waits for a pipe or reads a device.

#![allow(
    unsafe_code,
    reason = "mapping a file is unsafe, and the point of this file"
)]

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;
use memmap2::Mmap;

/// What standard input may hold: the largest message that protobuf libraries take, and one
/// byte more, to tell that there is more.
pub(super) const STREAM_LIMIT: u64 = i32::MAX as u64;

/// Why the bytes of a file can't be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The operating system refuses.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is no regular file.
    #[error("expected a file, found {0}")]
    NotAFile(&'static str),
    /// The file became another one while it was opened.
    #[error("the file was replaced while it was opened")]
    Replaced,
    /// More bytes than a model can have.
    #[error("more than {STREAM_LIMIT} bytes, which is the most that a model can have")]
    TooLong,
}

/// The bytes of a regular file. Links are followed.
///
/// A mapped file must not be truncated by others while the bytes are in use: reading what is
/// gone ends the process. Replacing the file by renaming is fine.
pub(super) fn open(path: &Path, mmap: bool) -> Result<Bytes, OpenError> {
    open_checked(path, mmap, &std::fs::metadata(path)?)
}

/// The bytes of the file that the caller looked at before.
pub(super) fn open_checked(path: &Path, mmap: bool, seen: &Metadata) -> Result<Bytes, OpenError> {
    if !seen.is_file() {
        return Err(OpenError::NotAFile(kind(seen)));
    }
    let mut file = File::open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || !same_file(seen, &found) {
        return Err(OpenError::Replaced);
    }
    if found.len() == 0 {
        return Ok(Bytes::new());
    }
    if !mmap {
        return read(&mut file, found.len());
    }
    // SAFETY: the map is read-only and private, its length is that of the file, and it is
    // owned by the returned bytes. That nobody truncates the file is documented as the
    // caller's part, with reading instead of mapping as the way out.
    let map = unsafe { Mmap::map(&file)? };
    Ok(Bytes::from_owner(map))
}

/// The bytes of a stream, such as standard input.
pub(super) fn read_stream(stream: &mut dyn Read) -> Result<Bytes, OpenError> {
    let mut bytes = Vec::new();
    stream.take(STREAM_LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > STREAM_LIMIT {
        return Err(OpenError::TooLong);
    }
    Ok(bytes.into())
}

fn read(file: &mut File, length: u64) -> Result<Bytes, OpenError> {
    let mut bytes = Vec::new();
    let length = usize::try_from(length).map_err(|_| OpenError::TooLong)?;
    bytes
        .try_reserve_exact(length)
        .map_err(|e| io::Error::new(io::ErrorKind::OutOfMemory, e))?;
    file.take(length as u64).read_to_end(&mut bytes)?;
    Ok(bytes.into())
}

/// What something that is no regular file is.
pub(super) fn kind(metadata: &Metadata) -> &'static str {
    if metadata.is_dir() {
        return "a directory";
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let t = metadata.file_type();
        if t.is_fifo() {
            return "a pipe";
        }
        if t.is_char_device() || t.is_block_device() {
            return "a device";
        }
        if t.is_socket() {
            return "a socket";
        }
    }
    "something that is no regular file"
}

#[cfg(unix)]
fn same_file(a: &Metadata, b: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn same_file(a: &Metadata, b: &Metadata) -> bool {
    a.len() == b.len()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use super::*;

    #[test]
    fn files_are_mapped_or_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"some bytes").unwrap();
        assert_eq!(open(&path, true).unwrap(), open(&path, false).unwrap());
        std::fs::write(&path, b"").unwrap();
        assert_eq!(open(&path, true).unwrap(), Bytes::new());
    }

    #[test]
    fn other_things_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let e = open(dir.path(), true).unwrap_err();
        assert_eq!(e.to_string(), "expected a file, found a directory");
        assert!(matches!(
            open(&dir.path().join("absent"), true),
            Err(OpenError::Io(_))
        ));
        #[cfg(target_os = "linux")]
        assert_eq!(
            open(Path::new("/dev/zero"), true).unwrap_err().to_string(),
            "expected a file, found a device"
        );
    }
}
