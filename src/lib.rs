//! placeholder

pub mod onnx;
