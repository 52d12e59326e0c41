#!/usr/bin/env python3
"""Removes half the channels of networks of every usual shape, and lets other tools judge.

    python3 tests/conformance/topologies.py --paring target/release/paring \\
        --generate target/release/examples/generate [--work DIR] [NAME ...]

`generate` writes the networks of benches/topologies.rs, for small images. From each of them
`paring optimize --pass remove-channels` removes half of every group of channels. The result must
pass `onnx.checker` with full shape inference, run in ONNX Runtime with one sample and with
several where the batch is open, give outputs of the shapes that the original gives, and run in
paring's own engine. What is left of the multiply-accumulates must not exceed the limit of the
table below, and a second run must give the same bytes. With `--models` a folder of other models
is judged in the same way, without limits: of each something must go, or every group must say
by a reason code why not.

Needs onnx, onnxruntime and numpy.
"""

import argparse
import collections
import json
import pathlib
import subprocess
import sys
import time

import numpy as np
import onnx
import onnxruntime as ort

# The most of the multiply-accumulates that may be left when half the channels of each group go.
# Where every layer loses half its inputs and half its outputs a quarter is left. First and last
# layers keep one side, depthwise layers have but one, the main stream of a transformer stays, and
# at a quarter of the published widths multiples of 8 are coarse.
LIMITS = {
    "resnet50": 0.29,
    "mobilenet_v1": 0.32,
    "mobilenet_v2": 0.33,
    "mobilenet_v3": 0.35,
    "densenet121": 0.30,
    "inception": 0.31,
    "shufflenet_v2": 0.45,
    "resnext": 0.31,
    "unet": 0.26,
    "yolo": 0.30,
    "vit": 0.70,
    "bert": 0.51,
    "shared": 0.33,
}

TYPES = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


class Failed(Exception):
    """A model that did not do what it must; the text says what."""


def run(command):
    """Runs a command and gives its standard output."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"{command[1]} ended with {done.returncode}: {done.stderr.strip()[-800:]}")
    return done.stdout


def session(path):
    """An ONNX Runtime session on one thread that prints nothing: the original may refuse some inputs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def inputs(wanted, batch, size, generator):
    """Random inputs. An open first axis is the batch; open axes of space or time have a size."""
    feed = {}
    for one in wanted:
        last = len(one.shape) - 1
        open_size = [size if axis >= min(2, last) else 1 for axis in range(last + 1)]
        dims = [d if isinstance(d, int) else s for d, s in zip(one.shape, open_size)]
        if one.shape and not isinstance(one.shape[0], int):
            dims[0] = batch
        if one.type == "tensor(float)":
            feed[one.name] = generator.standard_normal(dims).astype(np.float32)
        elif one.type in TYPES and not dims:
            # A single integer is a rate, of sound for example.
            feed[one.name] = np.array(16000, TYPES[one.type])
        elif one.type in TYPES:
            feed[one.name] = generator.integers(0, 2, dims).astype(TYPES[one.type])
        else:
            raise Failed(f"no random values of type {one.type}")
    return feed


def judge(before, after):
    """Checks a rewritten model in the checker and in ONNX Runtime, against the original."""
    onnx.checker.check_model(onnx.load(str(after)), full_check=True)
    old, new = session(before), session(after)
    generator = np.random.default_rng(0)
    taken = 0
    for batch, size in ((1, 1), (3, 1), (1, 512)):
        feed = inputs(old.get_inputs(), batch, size, generator)
        try:
            wanted = [np.shape(y) for y in old.run(None, feed)]
        except Exception:  # The original can't take such inputs, so the other need not.
            continue
        taken += 1
        found = new.run(None, feed)
        if [np.shape(y) for y in found] != wanted:
            raise Failed(f"with {batch} samples of size {size} shapes {[np.shape(y) for y in found]}, not {wanted}")
        # Random weights can be a little wild; what is no number at all is a broken model.
        if not all(np.isfinite(y).all() for y in found if np.issubdtype(np.asarray(y).dtype, np.floating)):
            raise Failed("its outputs are not finite")
    if taken == 0:
        raise Failed("the original takes none of the inputs that were tried")


def in_engine(args, before, after):
    """Whether paring's own engine runs both models; that of the original only is a failure."""
    try:
        run([args.paring, "compare", before, after, "--json"])
        return True
    except Failed:
        try:
            run([args.paring, "bench", before, "--min-time", "0"])
        except Failed:
            return False
        raise


def remarks(report):
    """By reason: the groups of channels that stayed; and the number of groups that shrank."""
    why = collections.Counter()
    removed = 0
    for one in report["passes"]:
        if one["name"] == "remove-channels":
            why.update(one["remarks"]["missed"])
            removed += one["remarks"]["applied"].get("removed", 0)
    return removed, why


def prune(args, path, out, report, extra=()):
    """Removes half the channels of a model."""
    run(
        [args.paring, "optimize", path, "-o", out, "--pass", f"remove-channels:round-to={args.round_to}"]
        + ["--no-time", "--no-validate", "--allow-unvalidated", "--report", report, *extra]
    )
    return json.loads(report.read_text())


def one(args, name, path):
    """Prunes and judges one model; a line of the table."""
    out, report = args.work / f"{name}.pruned.onnx", args.work / f"{name}.json"
    start = time.time()
    said = prune(args, path, out, report)
    seconds = time.time() - start
    judge(path, out)
    engine = "" if in_engine(args, path, out) else "the engine does not run the original; "
    again = args.work / f"{name}.again.onnx"
    prune(args, path, again, report)
    if again.read_bytes() != out.read_bytes():
        raise Failed("a second run gives other bytes")
    again.unlink()
    removed, why = remarks(said)
    share = {k: said["after"][k] / max(said["before"][k], 1) for k in ("macs", "parameters")}
    limit = LIMITS.get(name) if args.models is None else None
    if limit is not None and share["macs"] > limit:
        raise Failed(f"{share['macs']:.3f} of the multiply-accumulates are left, at most {limit} may be")
    if removed == 0 and not why:
        raise Failed("nothing was removed, and nothing says why")
    stays = ", ".join(f"{n} {code}" for code, n in sorted(why.items()))
    return (
        f"{name:28} {share['macs']:6.3f} {share['parameters']:6.3f} {removed:8} {seconds:6.1f}  {engine}{stays}"
    )


def main():
    """Judges the chosen networks; the exit code counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paring", default="target/release/paring")
    parser.add_argument("--generate", default="target/release/examples/generate")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("target/topologies"))
    parser.add_argument("--side", type=int, default=64, help="of the images; 224 gives networks of full size")
    parser.add_argument("--round-to", type=int, default=8)
    parser.add_argument("--models", type=pathlib.Path, help="judge the models of this folder instead")
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.models is None:
        names = args.names or list(LIMITS)
        for name in names:
            run([args.generate, f"topology:{name}", args.side, args.work / f"{name}.onnx"])
        paths = [(name, args.work / f"{name}.onnx") for name in names]
    else:
        paths = [(p.stem, p) for p in sorted(args.models.glob("*.onnx"))]
        paths = [(name, p) for name, p in paths if not args.names or name in args.names]
    print(f"{'':28} {'MACs':>6} {'params':>6} {'groups':>8} {'s':>6}  groups that stay")
    failed = 0
    for name, path in paths:
        try:
            print(one(args, name, path), flush=True)
        except Exception as e:  # Whatever a tool says against one model, the others are judged, too.
            failed += 1
            print(f"{name:28} FAILED: {e}", flush=True)
    if not paths:
        print("there is no such model", file=sys.stderr)
    return 1 if failed or not paths else 0


if __name__ == "__main__":
    sys.exit(main())
