//! Operator knowledge.
/// stub
#[derive(Debug)]
pub struct Knowledge {}
/// stub
pub fn knowledge(_: &str) -> Option<&'static Knowledge> {
    None
}
/// stub
pub fn operator_names() -> impl Iterator<Item = &'static str> {
    std::iter::empty()
}
