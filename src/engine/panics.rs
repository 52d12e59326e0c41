//! Panics of the engine, turned into errors.
//!
//! Unwinding gives the payload, but the panic hook has printed the message by then. So a hook
//! is installed, once, in front of the one that is there: it keeps quiet for threads that are
//! inside [`catch`] and for the engine's own worker threads, and passes every other panic on.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

/// The prefix of the names of the threads that work for the engine.
pub(crate) const WORKER_PREFIX: &str = "paring-engine-";

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if DEPTH.with(Cell::get) > 0 {
                let place = info.location().map(|l| {
                    let file = l.file().rsplit(['/', '\\']).next().unwrap_or_default();
                    format!("{file}:{}", l.line())
                });
                PLACE.with(|p| *p.borrow_mut() = place);
                return;
            }
            let worker = std::thread::current()
                .name()
                .is_some_and(|n| n.starts_with(WORKER_PREFIX));
            if !worker {
                previous(info);
            }
        }));
    });
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|s| (*s).to_string())
        .or_else(|| payload.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "no message".to_string())
}

/// Runs `f`; a panic becomes its message, and nothing is printed.
///
/// What `f` changes must not be used after a panic, or be good in any state.
pub(crate) fn catch<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    install_hook();
    DEPTH.with(|d| d.set(d.get() + 1));
    let result = catch_unwind(AssertUnwindSafe(f));
    DEPTH.with(|d| d.set(d.get().saturating_sub(1)));
    result.map_err(|payload| {
        let place = PLACE.with(|p| p.borrow_mut().take());
        let text = message(&*payload);
        match place {
            Some(place) => format!("{text} (at {place})"),
            None => text,
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail so")]
    use super::*;

    #[test]
    fn a_panic_becomes_its_message_and_a_value_passes() {
        assert_eq!(catch(|| 3).unwrap(), 3);
        let e = catch(|| -> () { panic!("index {} out of range", 7) }).unwrap_err();
        assert!(e.starts_with("index 7 out of range (at panics.rs:"), "{e}");
        // Nested: the inner one is caught inside, the outer one goes on.
        assert_eq!(catch(|| catch(|| panic!("inner")).is_err()), Ok(true));
    }

    #[test]
    fn panics_of_other_threads_are_not_swallowed() {
        catch(|| ()).unwrap();
        let worker = std::thread::spawn(|| DEPTH.with(Cell::get));
        assert_eq!(worker.join().unwrap(), 0);
    }
}
