//! placeholder

pub mod data;
pub mod engine;
pub mod onnx;
pub mod validate;
