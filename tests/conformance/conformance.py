#!/usr/bin/env python3
"""Judges paring by the reference tools: onnx.checker and ONNX Runtime.

    python3 tests/conformance/conformance.py --paring target/release/paring MODEL.onnx ...

For each model: `paring optimize` with the clean-up recipe must succeed; its output must pass
`onnx.checker` with full check, load in ONNX Runtime, keep the names and types of inputs and
outputs, and agree with the original there within float noise on seeded inputs. Prints a line
per model and exits with 1 when any of them fails. Needs onnx, onnxruntime and numpy.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort

# Float noise: the largest difference allowed, relative to the root mean square of the output, or
# this many times what the original differs by when ONNX Runtime runs it as it is and optimized.
TOLERANCE = 1e-4
NOISE_FACTOR = 10
# Sizes tried for an open first dimension, and those for any other open dimension, of the first input
# and of the others (`None`: the batch, as states have it): the first that the original runs with.
BATCHES = (1, 2)
OPEN_SIZES = ((64, 64), (512, 512), (512, None))


def session(path: pathlib.Path, optimize: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def count_nodes(graph: onnx.GraphProto) -> int:
    """Operators, those in subgraphs included, Constant not counted."""
    total = 0
    for node in graph.node:
        total += node.op_type != "Constant"
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
                total += count_nodes(inner)
    return total


def make_inputs(s: ort.InferenceSession, seed: int, batch: int, sizes: tuple, overrides: dict[str, list[int]]) -> dict:
    """Inputs of a kind that models take: open dimensions are the batch, or the side of an image or a length."""
    rng = np.random.default_rng(seed)
    inputs = {}
    for number, i in enumerate(s.get_inputs()):
        size = sizes[min(number, 1)] or batch
        shape = overrides.get(i.name) or [
            d if isinstance(d, int) and d > 0 else (size if axis else batch)
            for axis, d in enumerate(i.shape)
        ]
        if "float16" in i.type:
            inputs[i.name] = rng.standard_normal(shape).astype(np.float16)
        elif "float" in i.type or "double" in i.type:
            kind = np.float64 if "double" in i.type else np.float32
            inputs[i.name] = rng.standard_normal(shape).astype(kind)
        elif "bool" in i.type:
            inputs[i.name] = np.ones(shape, bool)
        else:
            kind = np.dtype(i.type[len("tensor(") : -1])
            if i.name == "sr":
                inputs[i.name] = np.full(shape, 16000, kind)
            elif "mask" in i.name:
                inputs[i.name] = np.ones(shape, kind)
            elif "type" in i.name:
                inputs[i.name] = np.zeros(shape, kind)
            else:
                inputs[i.name] = rng.integers(0, 100, shape).astype(kind)
    return inputs


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference over the root mean square of `a`; infinite when the forms differ."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if a.size == 0:
        return 0.0
    if a.dtype.kind in "biuOSU":
        return 0.0 if np.array_equal(a, b) else float("inf")
    a, b = a.astype(np.float64), b.astype(np.float64)
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return float("inf")
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    scale = float(np.sqrt(np.mean(a * a))) or 1.0
    return float(np.max(np.abs(a - b))) / scale


def run_at_some_size(s: ort.InferenceSession, seed: int, batch: int, overrides: dict) -> tuple[dict, list]:
    """Inputs that the model runs with, and its outputs."""
    for sizes in OPEN_SIZES:
        inputs = make_inputs(s, seed, batch, sizes, overrides)
        try:
            return inputs, s.run(None, inputs)
        except Exception:
            if sizes == OPEN_SIZES[-1]:
                raise
    raise AssertionError("there are sizes to try")


def interface(s: ort.InferenceSession) -> list:
    return [(v.name, v.type) for v in [*s.get_inputs(), *s.get_outputs()]]


def judge(paring: str, model: pathlib.Path, extra: list[str], overrides: dict, keep: pathlib.Path | None) -> tuple[bool, str]:
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(keep or folder) / model.name
        command = [paring, "optimize", str(model), "-o", str(out), *extra]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            return False, f"paring exits with {run.returncode}: {run.stderr.strip()[-300:]}"
        try:
            onnx.checker.check_model(str(out), full_check=True)
        except Exception as e:  # whatever the checker raises is its verdict
            return False, f"onnx.checker: {str(e)[:300]}"
        try:
            before, after, plain = session(model), session(out), session(model, optimize=False)
        except Exception as e:
            return False, f"ONNX Runtime: {str(e)[:300]}"
        if interface(before) != interface(after):
            return False, f"inputs or outputs changed: {interface(before)} {interface(after)}"
        worst, noise = 0.0, 0.0
        for batch in BATCHES:
            for seed in (0, 1):
                try:
                    inputs, expected = run_at_some_size(before, seed, batch, overrides)
                except Exception as e:
                    return False, f"the original does not run on these inputs: {str(e)[:200]}"
                found = after.run(None, inputs)
                worst = max([worst, *(difference(a, b) for a, b in zip(expected, found))])
                noise = max([noise, *(difference(a, b) for a, b in zip(expected, plain.run(None, inputs)))])
        nodes = [count_nodes(onnx.load(str(p), load_external_data=False).graph) for p in (model, out)]
        text = f"{nodes[0]:5} -> {nodes[1]:5} nodes, largest relative difference {worst:.1e}, noise {noise:.1e}"
        return worst <= max(TOLERANCE, NOISE_FACTOR * noise), text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paring", required=True, help="the program")
    parser.add_argument("--keep", type=pathlib.Path, help="keep the outputs in this folder")
    parser.add_argument("--shape", action="append", default=[], metavar="MODEL:INPUT=DIMS", help="the shape of an input")
    parser.add_argument("--arg", action="append", default=[], help="one more argument for paring optimize")
    parser.add_argument("models", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    shapes: dict[str, dict[str, list[int]]] = {}
    for text in args.shape:
        name, _, rest = text.partition(":")
        value, _, dims = rest.rpartition("=")
        shapes.setdefault(name, {})[value] = [int(d) for d in dims.split(",")]
    failures = 0
    for model in args.models:
        good, text = judge(args.paring, model, args.arg, shapes.get(model.stem, {}), args.keep)
        failures += not good
        print(f"{'ok  ' if good else 'FAIL'} {model.stem:28} {text}", flush=True)
    print(f"{len(args.models) - failures} passed, {failures} failed")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
