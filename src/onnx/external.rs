//! Side files: tensors whose elements stand outside the model file.
//!
//! Names, offsets and lengths come from the model, so they are hostile until checked. A
//! location is a relative path that stays inside the model's folder. Links would lead out of
//! it, symbolic ones openly and hard ones unseen, so both are refused unless
//! [`ReadOptions::follow_links_in`](super::ReadOptions) names a folder that they may lead into.
//! Each side file is mapped once; tensors are slices of it.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use paring_ir::{Name, escape};

use super::map;

/// The side files of a model that is being read.
pub(super) struct SideFiles {
    folder: Option<PathBuf>,
    mmap: bool,
    follow: Option<PathBuf>,
    files: BTreeMap<PathBuf, Bytes>,
    /// Whether an entry gave a checksum, which is not verified.
    pub(super) checksums: bool,
}

impl SideFiles {
    /// Side files beside a model in `folder`; without a folder there are none.
    pub(super) fn new(folder: Option<&Path>, mmap: bool, follow: Option<&Path>) -> SideFiles {
        // The folder of a bare file name is the current one.
        let folder = folder.map(|f| {
            if f.as_os_str().is_empty() {
                Path::new(".")
            } else {
                f
            }
        });
        SideFiles {
            folder: folder.map(Path::to_owned),
            mmap,
            follow: follow.map(Path::to_owned),
            files: BTreeMap::new(),
            checksums: false,
        }
    }

    /// The side files that were opened.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        let folder = self.folder.clone().unwrap_or_default();
        self.files.keys().map(|p| folder.join(p)).collect()
    }

    /// Bytes of the side files that were opened.
    pub(super) fn bytes(&self) -> u64 {
        self.files.values().map(|f| f.len() as u64).sum()
    }

    /// The elements that the entries of `external_data` point to; `expected` is their length.
    pub(super) fn elements(
        &mut self,
        entries: &[(Name, Name)],
        expected: usize,
    ) -> Result<Bytes, String> {
        let entry = |key: &str| entries.iter().find(|(k, _)| &**k == key).map(|(_, v)| v);
        let location = entry("location")
            .ok_or("the elements are external, but external_data has no \"location\"")?;
        self.checksums |= entry("checksum").is_some();
        let offset = entry("offset").map_or(Ok(0), |v| number("offset", v))?;
        let length = entry("length").map(|v| number("length", v)).transpose()?;
        let length = length.unwrap_or(expected);
        if length != expected {
            return Err(format!(
                "external_data says length {length}, the shape needs {expected} bytes"
            ));
        }
        let file = self.file(location)?;
        match offset.checked_add(length) {
            Some(end) if end <= file.len() => Ok(file.slice(offset..end)),
            _ => Err(format!(
                "{length} bytes at offset {offset} go past the end of side file \"{}\", which has {}: \
                 is it the right file, and whole?",
                escape(location),
                file.len()
            )),
        }
    }

    fn file(&mut self, location: &str) -> Result<Bytes, String> {
        let relative = relative_path(location)?;
        if let Some(file) = self.files.get(&relative) {
            return Ok(file.clone());
        }
        let folder = self.folder.as_ref().ok_or_else(|| {
            format!(
                "the elements stand in side file \"{}\", but the model was not read from a \
                 folder: open it from its file, or say which folder it belongs to",
                escape(location)
            )
        })?;
        let fail = |e: &dyn std::fmt::Display| format!("side file \"{}\": {e}", escape(location));
        let path = folder.join(&relative);
        let seen = self.permitted(folder, &relative).map_err(|e| fail(&e))?;
        let bytes = map::open_checked(&path, self.mmap, &seen).map_err(|e| fail(&e))?;
        self.files.insert(relative, bytes.clone());
        Ok(bytes)
    }

    /// Refuses links that are not asked for.
    fn permitted(&self, folder: &Path, relative: &Path) -> Result<Metadata, String> {
        let mut path = folder.to_owned();
        let mut link = None;
        for part in relative.components() {
            path.push(part);
            let metadata = std::fs::symlink_metadata(&path).map_err(|e| e.to_string())?;
            if metadata.is_symlink() {
                link = Some("a symbolic link");
                break;
            }
        }
        let path = folder.join(relative);
        let metadata = std::fs::metadata(&path).map_err(|e| e.to_string())?;
        if link.is_none() && metadata.is_file() && hard_links(&metadata) > 1 {
            link = Some("a file with several hard links");
        }
        let Some(link) = link else {
            return Ok(metadata);
        };
        let Some(allowed) = &self.follow else {
            return Err(format!(
                "it is or goes through {link}, which may lead anywhere; to follow it, name the \
                 folder that links may lead into (--follow-links)"
            ));
        };
        let real = |p: &Path| {
            p.canonicalize()
                .map_err(|e| format!("{}: {e}", p.display()))
        };
        if real(&path)?.starts_with(real(allowed)?) {
            Ok(metadata)
        } else {
            Err(format!(
                "it is or goes through {link} that leads out of {}",
                allowed.display()
            ))
        }
    }
}

fn number(key: &str, text: &str) -> Result<usize, String> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(n) if plain => Ok(n),
        _ => Err(format!(
            "external_data says {key} \"{}\", expected a number of bytes",
            escape(text)
        )),
    }
}

/// A location as a path that can't leave the folder that it is joined to.
fn relative_path(location: &str) -> Result<PathBuf, String> {
    let refuse = |why: &str| {
        Err(format!(
            "side file \"{}\": {why}; expected a path inside the model's folder",
            escape(location)
        ))
    };
    if location.contains('\0') {
        return refuse("the name holds a NUL character");
    }
    let mut out = PathBuf::new();
    for part in Path::new(location).components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::CurDir => {}
            Component::ParentDir => return refuse("the path has a \"..\""),
            Component::RootDir | Component::Prefix(_) => return refuse("the path is absolute"),
        }
    }
    if out.as_os_str().is_empty() {
        return refuse("the path is empty");
    }
    Ok(out)
}

#[cfg(unix)]
fn hard_links(metadata: &Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::nlink(metadata)
}

#[cfg(not(unix))]
fn hard_links(_: &Metadata) -> u64 {
    1
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use super::*;

    fn entries(list: &[(&str, &str)]) -> Vec<(Name, Name)> {
        list.iter().map(|&(k, v)| (k.into(), v.into())).collect()
    }

    fn folder() -> (tempfile::TempDir, SideFiles) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("w.bin"), [1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        let files = SideFiles::new(Some(dir.path()), true, None);
        (dir, files)
    }

    #[test]
    fn elements_are_slices_of_the_side_file() {
        let (_dir, mut files) = folder();
        let e = entries(&[("location", "./w.bin"), ("offset", "2"), ("length", "4")]);
        assert_eq!(&files.elements(&e, 4).unwrap()[..], [3, 4, 5, 6]);
        let e = entries(&[("location", "w.bin")]);
        assert_eq!(files.elements(&e, 8).unwrap().len(), 8);
        assert_eq!(files.paths().len(), 1);
    }

    #[test]
    fn offsets_and_lengths_are_checked() {
        let (_dir, mut files) = folder();
        let mut fail = |offset: &str, length: &str, expected| {
            let e = entries(&[
                ("location", "w.bin"),
                ("offset", offset),
                ("length", length),
            ]);
            files.elements(&e, expected).unwrap_err()
        };
        assert!(fail("6", "4", 4).contains("past the end"));
        assert!(fail("18446744073709551615", "4", 4).contains("past the end"));
        assert!(fail("0", "5", 4).contains("the shape needs 4"));
        assert!(fail("-1", "4", 4).contains("expected a number"));
        assert!(fail("+1", "4", 4).contains("expected a number"));
        assert!(fail("99999999999999999999", "4", 4).contains("expected a number"));
    }

    #[test]
    fn paths_stay_inside_the_folder() {
        let (_dir, mut files) = folder();
        for (location, why) in [
            ("../w.bin", "\"..\""),
            ("a/../../w.bin", "\"..\""),
            ("/etc/passwd", "absolute"),
            ("", "empty"),
            (".", "empty"),
            ("w\0bin", "NUL"),
            ("absent", "No such file"),
        ] {
            let e = files
                .elements(&entries(&[("location", location)]), 8)
                .unwrap_err();
            assert!(e.contains(why), "{location}: {e}");
        }
        assert!(
            files
                .elements(&[], 8)
                .unwrap_err()
                .contains("no \"location\"")
        );
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_only_where_allowed() {
        let (dir, mut files) = folder();
        let cache = tempfile::tempdir().unwrap();
        std::fs::write(cache.path().join("blob"), [9; 8]).unwrap();
        std::os::unix::fs::symlink(cache.path().join("blob"), dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink(cache.path(), dir.path().join("sub")).unwrap();
        std::fs::hard_link(dir.path().join("w.bin"), dir.path().join("twin")).unwrap();
        for location in ["link", "sub/blob", "twin"] {
            let e = files
                .elements(&entries(&[("location", location)]), 8)
                .unwrap_err();
            assert!(e.contains("which may lead anywhere"), "{location}: {e}");
        }
        let mut files = SideFiles::new(Some(dir.path()), true, Some(cache.path()));
        for location in ["link", "sub/blob"] {
            let e = entries(&[("location", location)]);
            assert_eq!(&files.elements(&e, 8).unwrap()[..], [9; 8]);
        }
        let e = files
            .elements(&entries(&[("location", "twin")]), 8)
            .unwrap_err();
        assert!(e.contains("leads out of"), "{e}");
    }

    #[test]
    fn a_model_in_memory_has_no_side_files() {
        let mut files = SideFiles::new(None, true, None);
        let e = files
            .elements(&entries(&[("location", "w.bin")]), 8)
            .unwrap_err();
        assert!(e.contains("not read from a folder"), "{e}");
    }
}
