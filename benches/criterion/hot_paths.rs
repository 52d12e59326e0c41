//! What every run of the tool goes through, on a graph of 4,000 operators: reading, shape
//! inference, the verifier, the clean-up recipe and writing.
//!
//! ```text
//! cd benches/criterion
//! cargo bench
//! cargo bench -- clean --save-baseline before
//! cargo bench -- clean --baseline before
//! ```

#![allow(
    missing_docs,
    reason = "criterion's macros make undocumented functions"
)]

#[allow(dead_code, reason = "the other programs use the rest")]
#[path = "../graphs.rs"]
mod graphs;

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use paring::analysis::Shapes;
use paring::analysis::shapes::ShapeOptions;
use paring::onnx::{ReadOptions, read_bytes, to_bytes};
use paring::{Model, Optimizer, verify};

/// Operators of the graph.
const NODES: usize = 4000;

fn hot_paths(c: &mut Criterion) {
    let model = graphs::mixed(NODES).expect("the graph is valid");
    let file = Bytes::from(to_bytes(&model).expect("the model can be written"));
    let mut group = c.benchmark_group("hot paths");
    group.throughput(Throughput::Elements(NODES as u64));
    group.bench_function("read", |b| {
        b.iter(|| read(&file));
    });
    group.bench_function("shapes", |b| {
        b.iter(|| Shapes::infer(black_box(&model), &ShapeOptions::default()));
    });
    group.bench_function("verify", |b| {
        b.iter(|| verify::verify(black_box(&model)));
    });
    group.bench_function("write", |b| {
        b.iter(|| to_bytes(black_box(&model)));
    });
    clean(&mut group, &file);
    group.finish();
}

/// The clean-up as the command line runs it, without validation and timing. Each run starts from a
/// model that was just read, since passes leave analyses and revisions behind.
fn clean(
    group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>,
    file: &Bytes,
) {
    let registry = paring::registry();
    let optimizer = Optimizer::new(&registry).named("clean");
    let mut optimizer = optimizer.expect("a ready-made recipe");
    optimizer.settings.validate = false;
    optimizer.settings.time = false;
    group.bench_function("clean", |b| {
        b.iter_batched(
            || read(file),
            |mut model| optimizer.run(&mut model).expect("the clean-up works"),
            BatchSize::LargeInput,
        );
    });
}

fn read(file: &Bytes) -> Model {
    let loaded = read_bytes(file.clone(), None, &ReadOptions::default());
    loaded.expect("the model can be read").model
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .measurement_time(Duration::from_secs(8));
    targets = hot_paths
}
criterion_main!(benches);
