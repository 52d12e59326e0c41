//! Pages for people: what is inside a model, what an optimization did, what differs between two
//! models. Each is one HTML file that needs nothing else and makes no connection.

mod asked;
mod diff;
mod fold;
pub(crate) mod format;
mod graphs;
mod inspect;
mod kit;
mod optimize;
mod plot;

pub use diff::diff_page;
pub use inspect::inspect_page;
pub use optimize::{Story, optimize_page};
