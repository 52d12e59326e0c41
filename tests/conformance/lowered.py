#!/usr/bin/env python3
"""Judges integer operators that paring writes for tract, in tract and in ONNX Runtime.

    python3 tests/conformance/lowered.py --paring target/release/paring --models DIR --data DIR [NAME ...]

For each model: `quantize-int8` with `target: tract` and ONNX Runtime's own quantizer (QDQ, per
channel) make a quantized model, and `lower-qdq` integer operators of it. Of every lowered model

- `onnx.checker` accepts it, ONNX Runtime loads and runs it, and tract does;
- SQNR against the float model, and accuracy where there are labels, stand beside those of the
  quantized model that it was made of, all in ONNX Runtime;
- the latency in tract with one thread over that of the float model, in turn, is at most what the
  kind of the model asks: 0.6 for products of matrices, 0.7 for chains of 1x1 convolutions, 0.95
  for mobilenets. With `--measured` layers are chosen by measurement (`max-latency-ratio` of
  `quantize-int8`), and no model may be slower than its float model beyond the noise.

Shapes that the folder has no model of are generated: an MLP, transformer blocks, and a chain of
1x1 convolutions (`mlp1024`, `block256`, `block1024`, `pointwise`). tract's integer kernels need
VNNI, AMX or Arm dot products; on a CPU without them the ratios of unmeasured forms say nothing.
Needs onnx, onnxruntime and numpy.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import int8

# The most that the latency may be over the float model's, by name.
LIMITS = {
    "mlp1024": 0.6,
    "block256": 0.6,
    "block1024": 0.6,
    "all_minilm_l6_fp32": 0.6,
    "langid_transformer": 0.6,
    "pointwise": 0.7,
    "mobilenet_v2_random": 0.95,
    "fmnist_mobilenet_bn": 0.95,
    "efficientnet_lite0_bn": 0.95,
}
# A ratio of two equal models is measured to about so much.
NOISE = 1.05
# How many dB the lowered model may lose against the quantized model that it was made of.
LOSS_DB = 3.0
SAMPLES = 16


class Shape:
    """A graph under construction."""

    def __init__(self, dims: list[int]):
        self.nodes, self.constants, self.count, self.dims = [], [], 0, dims
        self.random = np.random.default_rng(0)

    def weight(self, *dims: int, scale: float | None = None) -> str:
        fan = int(np.prod(dims[1:])) if len(dims) == 4 else dims[0]
        data = self.random.normal(size=dims) * (scale or 1 / np.sqrt(fan))
        return self.constant(data.astype(np.float32))

    def constant(self, data: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(data, name))
        return name

    def op(self, op_type: str, *inputs: str, **attributes) -> str:
        self.count += 1
        out = f"v{self.count}"
        self.nodes.append(helper.make_node(op_type, inputs, [out], name=f"{op_type}_{self.count}", **attributes))
        return out

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        product = self.op("MatMul", x, self.weight(inputs, outputs))
        return self.op("Add", product, self.weight(outputs, scale=0.1))

    def norm(self, x: str, width: int) -> str:
        scale, shift = np.ones(width, np.float32), np.zeros(width, np.float32)
        return self.op("LayerNormalization", x, self.constant(scale), self.constant(shift), axis=-1)

    def save(self, path: pathlib.Path, y: str) -> None:
        self.nodes.append(helper.make_node("Identity", [y], ["y"]))
        graph = helper.make_graph(
            self.nodes,
            path.stem,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.dims)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(onnx.shape_inference.infer_shapes(model), path)


def mlp(path: pathlib.Path) -> None:
    g = Shape([64, 1024])
    x = "x"
    for _ in range(3):
        x = g.op("Relu", g.linear(x, 1024, 1024))
    g.save(path, x)


def block(path: pathlib.Path, rows: int, width: int) -> None:
    """A transformer block with normalization first and four heads."""
    g = Shape([1, rows, width])
    heads = 4
    split = g.constant(np.array([1, rows, heads, width // heads], np.int64))
    joined = g.constant(np.array([1, rows, width], np.int64))
    n = g.norm("x", width)
    to_heads = lambda v, perm: g.op("Transpose", g.op("Reshape", v, split), perm=perm)
    q = to_heads(g.linear(n, width, width), [0, 2, 1, 3])
    k = to_heads(g.linear(n, width, width), [0, 2, 3, 1])
    v = to_heads(g.linear(n, width, width), [0, 2, 1, 3])
    scores = g.op("Mul", g.op("MatMul", q, k), g.constant(np.float32(1 / np.sqrt(width // heads))))
    mixed = g.op("MatMul", g.op("Softmax", scores, axis=-1), v)
    mixed = g.op("Reshape", g.op("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
    x = g.op("Add", "x", g.linear(mixed, width, width))
    hidden = g.op("Relu", g.linear(g.norm(x, width), width, 4 * width))
    g.save(path, g.op("Add", x, g.linear(hidden, 4 * width, width)))


def pointwise(path: pathlib.Path) -> None:
    g = Shape([1, 256, 28, 28])
    x = "x"
    for _ in range(4):
        conv = g.op("Conv", x, g.weight(256, 256, 1, 1), g.weight(256, scale=0.1))
        x = g.op("Relu", conv)
    g.save(path, x)


MADE = {
    "mlp1024": mlp,
    "block256": lambda path: block(path, 128, 256),
    "block1024": lambda path: block(path, 128, 1024),
    "pointwise": pointwise,
}


def batch_of(i) -> int:
    return i.shape[0] if i.shape and isinstance(i.shape[0], int) else 1


def random_samples(model: pathlib.Path) -> dict:
    """Random inputs, where a model has no data: sizes that are left open are 1, or 32 in images."""
    out, random = {}, np.random.default_rng(1)
    for i in int8.session(model).get_inputs():
        dims = [d if isinstance(d, int) else 32 for d in i.shape]
        if dims:
            dims[0] = batch_of(i) * (SAMPLES if batch_of(i) == 1 else SAMPLES // 4)
        kind = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}.get(i.type, np.float32)
        data = random.normal(size=dims) if kind is np.float32 else random.integers(0, 2, size=dims)
        out[i.name] = data.astype(kind)
    return out


def outputs(path: pathlib.Path, data: dict) -> list[np.ndarray]:
    """Every output over all samples, a batch of the model's own size at a time."""
    s = int8.session(path)
    inputs = s.get_inputs()
    first = inputs[0]
    pick = lambda i, k: data[i.name][k * batch_of(i) : (k + 1) * batch_of(i)]
    count = len(data[first.name]) // batch_of(first)
    runs = [s.run(None, {i.name: pick(i, k) for i in inputs}) for k in range(count)]
    return [np.concatenate([np.atleast_1d(r[k]) for r in runs]) for k in range(len(runs[0]))]


def run(command: list) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-400:])
    return done.stdout


def optimized(args, source: pathlib.Path, out: pathlib.Path, step: str, data: pathlib.Path | None) -> str:
    command = [args.paring, "optimize", source, "-o", out, "--pass", step, "--no-time", "--no-validate"]
    return run(command + (["--data", data] if data else []) + args.arg)


def ratio(args, model: pathlib.Path, other: pathlib.Path) -> float:
    found = run([args.paring, "bench", model, other, "--json", "--min-time", args.seconds, *args.arg])
    return json.loads(found)["latency"]["ratio"]


def kinds(path: pathlib.Path) -> str:
    ops = [n.op_type for n in onnx.load(path, load_external_data=False).graph.node]
    shown = ["QLinearConv", "QLinearMatMul", "MatMulInteger", "QuantizeLinear", "DequantizeLinear"]
    return ", ".join(f"{ops.count(t)} {t}" for t in shown if ops.count(t))


def judge(args, name: str, model: pathlib.Path, maker: str, folder: pathlib.Path, calib: dict, test: dict) -> list[str]:
    """Quantizes, lowers and measures; what falls short is the answer."""
    data = folder / f"{name}.npz"
    np.savez(data, **calib)
    qdq, lowered = folder / f"{name}.{maker}.qdq.onnx", folder / f"{name}.{maker}.lowered.onnx"
    if maker == "ort":
        run([sys.executable, int8.__file__, "--ort-worker", model, data, qdq, "MinMax", "channel", "default"])
    else:
        options = ["target=tract"] + (["max-latency-ratio=1.0"] if args.measured else [])
        case = int8.CASES.get(name)
        options += [case.options] if case and case.options else []
        optimized(args, model, qdq, "quantize-int8:" + ",".join(options), data)
    measured = ":max-latency-ratio=1.0" if args.measured else ""
    optimized(args, qdq, lowered, f"lower-qdq{measured}", data)
    onnx.checker.check_model(str(lowered), full_check=True)
    reference = outputs(model, test)
    before, after = (int8.score(reference, outputs(p, test), test) for p in (qdq, lowered))
    found = ratio(args, model, lowered) if args.seconds > 0 else float("nan")
    size = lowered.stat().st_size / model.stat().st_size
    accuracy = ""
    if "accuracy" in after:
        accuracy = " accuracy {accuracy_f32:.4f} -> {:.4f} -> {accuracy:.4f},".format(before["accuracy"], **after)
    print(
        f"  {maker}: SQNR {before['sqnr']:.1f} -> {after['sqnr']:.1f} dB,{accuracy} bytes {size:.3f}, "
        f"tract {found:.3f} of f32; {kinds(lowered)}",
        flush=True,
    )
    out = []
    if after["sqnr"] < before["sqnr"] - LOSS_DB:
        out.append(f"{maker}: lowering lost {before['sqnr'] - after['sqnr']:.1f} dB")
    limit = NOISE if args.measured else LIMITS.get(name)
    if limit is not None and found > limit:
        out.append(f"{maker}: latency {found:.3f} of f32, more than {limit}")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paring", required=True)
    parser.add_argument("--models", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--keep", type=pathlib.Path, help="keep the models in this folder")
    parser.add_argument("--makers", default="paring,ort", help="who quantizes")
    parser.add_argument("--measured", action="store_true", help="choose layers by measurement")
    parser.add_argument("--seconds", default=2.0, type=float, help="how long each pair is timed; 0 leaves it out")
    parser.add_argument("--arg", action="append", default=[], help="one more argument for paring")
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    names = args.names or [*MADE, *sorted(p.stem for p in args.models.glob("*.onnx"))]
    failures = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or pathlib.Path(temporary)
        for name in names:
            print(name, flush=True)
            model = args.models / f"{name}.onnx"
            if name in MADE:
                model = folder / f"{name}.onnx"
                MADE[name](model)
            case = int8.CASES.get(name)
            if case:
                case.limit = min(case.limit, 128)
                calib, test = int8.samples(args.data, case)
                test = {k: v[:512] for k, v in test.items()}
            else:
                calib = test = random_samples(model)
            for maker in args.makers.split(","):
                try:
                    short = judge(args, name, model, maker, folder, calib, test)
                except Exception as e:
                    short = [f"{maker}: {e}"]
                for text in short:
                    print(f"  FAILED {text}", flush=True)
                failures += len(short)
    sys.exit(f"{failures} figures are not met" if failures else 0)


if __name__ == "__main__":
    main()
