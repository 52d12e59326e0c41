//! Writing a model to a file, whole or not at all.
//!
//! The file is written under another name in the same folder, brought to disk, and renamed;
//! a side file before the model that names it. Side files are named by what is in them, so a
//! new one never takes the place of one that an older model still needs.

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::path::{Component, Path, PathBuf};

use paring_ir::Model;

use super::rope::Rope;
use super::scan::scan;
use super::write::{self, LIMIT, Plan};
use super::{ExternalData, WriteError, map};

/// Links from link to link that an output may be.
const MAX_LINKS: usize = 40;

/// What was written.
#[derive(Debug, Default, Clone)]
pub struct WriteReport {
    /// The side file that holds the large tensors.
    pub side_file: Option<PathBuf>,
    /// Side files in the folder that the model at this place needed before and does not need
    /// any more. They are never deleted, since other models may need them.
    pub left_behind: Vec<PathBuf>,
    /// Bytes of the model file and the side file.
    pub bytes: u64,
    /// What could not be written.
    pub warnings: Vec<String>,
}

/// Writes a model to a file.
pub(super) fn save(
    model: &Model,
    path: &Path,
    external: ExternalData,
) -> Result<WriteReport, WriteError> {
    let target = Target::find(path)?;
    let (rope, plan) = encode(model, &target, external)?;
    let side_file = plan.as_ref().map(|p| target.folder.join(&p.location));
    let mut report = WriteReport {
        left_behind: target.left_behind(side_file.as_deref()),
        bytes: rope.len(),
        ..WriteReport::default()
    };
    if !model.extra.training_info.is_empty() && !write::keeps_training_info(model) {
        report
            .warnings
            .push("the training information is left out, since the model has changed".to_owned());
    }
    if let (Some(plan), Some(side)) = (&plan, side_file) {
        report.bytes += plan.pieces.last().map_or(0, |(at, b)| at + b.len() as u64);
        if !same_content(&side, plan) {
            target.replace(&side, &mut |out| write_pieces(plan, out))?;
        }
        report.side_file = Some(side);
    }
    target.replace(&target.file, &mut |out| rope.write_to(out))?;
    Ok(report)
}

/// The model file, and the plan of the side file when there is one.
fn encode(
    model: &Model,
    target: &Target,
    external: ExternalData,
) -> Result<(Rope, Option<Plan>), WriteError> {
    let outside = match external {
        ExternalData::Always => true,
        ExternalData::Never => false,
        ExternalData::Auto => write::was_external(model),
    };
    if !outside {
        let rope = write::encode(model, None)?;
        if rope.len() <= LIMIT {
            return Ok((rope, None));
        }
        if external == ExternalData::Never {
            return Err(WriteError::TooLarge {
                bytes: rope.len(),
                advice: "let the weights stand in a side file (external data)",
            });
        }
    }
    let plan = Some(write::plan(model, &target.stem())).filter(|p| !p.pieces.is_empty());
    if plan.is_some() && target.linked_from_elsewhere {
        return Err(WriteError::Target {
            path: target.file.clone(),
            problem: "the output is a link into another folder, and a side file would be found \
                      from only one of them; give the file that the link leads to"
                .to_owned(),
        });
    }
    let rope = write::encode(model, plan.as_ref())?;
    if rope.len() > LIMIT {
        return Err(WriteError::TooLarge {
            bytes: rope.len(),
            advice: "that is without the weights in the side file, so it can't be made to fit",
        });
    }
    Ok((rope, plan))
}

/// The pieces of a side file with zeros between them.
fn write_pieces(plan: &Plan, out: &mut dyn Write) -> io::Result<()> {
    let mut at = 0u64;
    for (offset, bytes) in &plan.pieces {
        let gap = usize::try_from(offset.saturating_sub(at)).unwrap_or(0);
        out.write_all(ZEROS.get(..gap).unwrap_or(&ZEROS))?;
        out.write_all(bytes)?;
        at = offset + bytes.len() as u64;
    }
    Ok(())
}

/// What stands between pieces: less than a page.
static ZEROS: [u8; 4096] = [0; 4096];

/// Whether a file already holds just what would be written.
fn same_content(path: &Path, plan: &Plan) -> bool {
    let regular = std::fs::symlink_metadata(path).is_ok_and(|m| m.is_file());
    let Some(found) = regular.then(|| map::open(path, true).ok()).flatten() else {
        return false;
    };
    let mut at = 0usize;
    for (offset, bytes) in &plan.pieces {
        let Ok(offset) = usize::try_from(*offset) else {
            return false;
        };
        let gap = found
            .get(at..offset)
            .is_some_and(|g| g.iter().all(|&b| b == 0));
        at = offset + bytes.len();
        if !gap || found.get(offset..at) != Some(&bytes[..]) {
            return false;
        }
    }
    at == found.len()
}

/// Where a model goes.
struct Target {
    /// The file, with links followed.
    file: PathBuf,
    /// Its folder.
    folder: PathBuf,
    /// What the file that stands there lets others do.
    permissions: Option<Permissions>,
    /// The output was a link from another folder.
    linked_from_elsewhere: bool,
}

impl Target {
    fn find(path: &Path) -> Result<Target, WriteError> {
        let refuse = |problem: String| WriteError::Target {
            path: path.to_owned(),
            problem,
        };
        let mut file = path.to_owned();
        let mut links = 0;
        while std::fs::symlink_metadata(&file).is_ok_and(|m| m.is_symlink()) {
            links += 1;
            if links > MAX_LINKS {
                return Err(refuse("the link leads to itself".to_owned()));
            }
            let next = std::fs::read_link(&file).map_err(|e| refuse(e.to_string()))?;
            file = folder_of(&file).join(next);
        }
        let permissions = match std::fs::metadata(&file) {
            Ok(m) if m.is_file() => Some(m.permissions()),
            Ok(m) => {
                return Err(refuse(format!(
                    "it is {}, expected a file or nothing",
                    map::kind(&m)
                )));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(refuse(e.to_string())),
        };
        if file.file_name().is_none() {
            return Err(refuse("the path names no file".to_owned()));
        }
        let folder = folder_of(&file);
        if !folder.is_dir() {
            let shown = paring_ir::escape(&folder.display().to_string());
            return Err(refuse(format!("there is no folder {shown}; make it first")));
        }
        let same = |a: &Path, b: &Path| match (a.canonicalize(), b.canonicalize()) {
            (Ok(a), Ok(b)) => a == b,
            _ => false,
        };
        Ok(Target {
            linked_from_elsewhere: links > 0 && !same(&folder, &folder_of(path)),
            file,
            folder,
            permissions,
        })
    }

    /// The start of the names of side files.
    fn stem(&self) -> String {
        const LONGEST: usize = 200;
        let stem = self.file.file_stem().unwrap_or_default().to_string_lossy();
        let mut out = String::new();
        for c in stem.chars().filter(|c| !c.is_control()) {
            if out.len() + c.len_utf8() > LONGEST {
                break;
            }
            out.push(c);
        }
        out
    }

    /// Side files of this folder that the model at this place will not need any more: those
    /// that it names now, and those that were named for it.
    fn left_behind(&self, new: Option<&Path>) -> Vec<PathBuf> {
        let mut out = BTreeSet::new();
        if self.permissions.is_some()
            && let Ok(old) = map::open(&self.file, true)
            && let Ok(old) = scan(&old)
        {
            for location in &old.locations {
                let plain =
                    |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
                if Path::new(location).components().all(plain) {
                    // Collecting the components takes out "./".
                    out.insert(self.folder.join(location).components().collect());
                }
            }
        }
        let start = format!("{}-", self.stem());
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let middle = name
                .to_str()
                .and_then(|n| n.strip_prefix(&start)?.strip_suffix(".data"));
            if middle.is_some_and(|m| m.len() == 16 && m.bytes().all(|b| b.is_ascii_hexdigit())) {
                out.insert(self.folder.join(name).components().collect::<PathBuf>());
            }
        }
        let new: Option<PathBuf> = new.map(|n| n.components().collect());
        out.into_iter()
            .filter(|p| Some(p) != new.as_ref() && p.is_file())
            .collect()
    }

    /// Puts a file in place, whole or not at all.
    fn replace(
        &self,
        path: &Path,
        write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), WriteError> {
        self.try_replace(path, write)
            .map_err(|source| WriteError::Io {
                path: path.to_owned(),
                source,
            })
    }

    fn try_replace(
        &self,
        path: &Path,
        write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".paring-").suffix(".tmp");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // As any new file: what the umask leaves of this.
            builder.permissions(Permissions::from_mode(0o666));
        }
        let mut file = builder.tempfile_in(&self.folder)?;
        let mut out = BufWriter::with_capacity(1 << 18, file.as_file_mut());
        write(&mut out)?;
        out.flush()?;
        drop(out);
        if let Some(permissions) = &self.permissions {
            file.as_file().set_permissions(permissions.clone())?;
        }
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        // The rename is on disk when the folder is.
        #[cfg(unix)]
        File::open(&self.folder)?.sync_all()?;
        Ok(())
    }
}

/// The folder of a file; that of a bare name is the current one.
fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
        _ => PathBuf::from("."),
    }
}
