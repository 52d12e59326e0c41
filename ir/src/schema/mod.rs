//! Operator knowledge.
