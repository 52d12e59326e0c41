//! Pages for people: what is inside a model, what an optimization did, what differs between two
//! models. Each is one HTML file that needs nothing else and makes no connection.

pub(crate) mod format;
mod inspect;
mod kit;
mod plot;

mod optimize;

pub use inspect::inspect_page;
pub use optimize::{Story, optimize_page};
