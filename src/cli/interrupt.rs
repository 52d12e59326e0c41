//! Ctrl-C: the first time the work stops at the next good place, the second time at once.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use signal_hook::consts::SIGINT;
use signal_hook::flag;

use super::exit::Exit;

/// A flag that Ctrl-C sets.
pub(super) fn on_ctrl_c() -> anyhow::Result<Arc<AtomicBool>> {
    let asked = Arc::new(AtomicBool::new(false));
    // This comes first, so that it finds the flag set only from the second time on.
    flag::register_conditional_shutdown(SIGINT, Exit::Cancelled as i32, Arc::clone(&asked))
        .and_then(|_| flag::register(SIGINT, Arc::clone(&asked)))
        .context("Ctrl-C can't be watched for")?;
    Ok(asked)
}
