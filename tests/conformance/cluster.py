#!/usr/bin/env python3
"""Judges clustered models of paring in ONNX Runtime and tract.

    python3 tests/conformance/cluster.py --paring target/release/paring --models DIR --data DIR \
        [--step STEP ...] [--keep DIR] [NAME ...]

Steps, all by default:
- `16`: the recipe `cluster` (16 clusters) with calibration data. Accuracy, or SQNR of the outputs
  where there are no labels, and the size of the file over that of the float model.
- `256`: the same with 256 clusters.
- `joint`: the recipe `prune-cluster`; how much smaller the file is after zstd.
- `plain`: 16 clusters without data, of every model in the folder: valid and loads.
- `snap`: 256 clusters in place of what has 256 values already: no output may change.

Every result must pass `onnx.checker`, run in ONNX Runtime, and give the same in tract (by `paring
compare`, SQNR against the float model). Figures come from samples that were not calibrated on.
Needs onnx, onnxruntime and numpy, and the program zstd.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx

import conformance
from int8 import Case, outputs, run_measured, samples, score, session

# The largest file of 16 and of 256 clusters, over the float model, where weights dominate: at
# least this share of the file are weights of layers and embeddings.
SIZE = {"16": 0.16, "256": 0.27}
DOMINATE = 0.9
# How much smaller a pruned, clustered and compressed model is.
SMALLER = 12.0
# What two engines may differ in their SQNR against the float model, in dB.
ENGINES = 0.5

CASES = {
    "efficientnet_lite0_bn": Case("natural_photos_calib", "imagenet20", drop=10.0),
    "ppocr_mobile_cls": Case("ocr_turned", "ocr_turned", split=True, sqnr=15.0),
    "ppocrv4_rec": Case("ocr_lines", "ocr_lines", split=True, sqnr=15.0),
    "fmnist_mobilenet_bn": Case("fmnist_calib", "fmnist_test", drop=0.3, limit=1024),
    "fmnist_resnet_bn": Case("fmnist_calib", "fmnist_test", drop=0.3, limit=1024),
    "fmnist_mlp": Case("fmnist_calib", "fmnist_test", drop=0.3, limit=1024),
    "langid_transformer": Case("langid_calib", "langid_test", drop=0.3, limit=1024),
    "langid_bilstm": Case("langid_calib", "langid_test", drop=0.3, limit=1024),
    "magika_v3_3": Case("magika_calib", "magika_test", drop=1.0, limit=1024),
    "all_minilm_l6_fp32": Case("minilm_sentences", "minilm_sentences", split=True, cosine=0.95),
}
# Shapes of inputs that open dimensions don't tell.
SHAPES = {"silero_vad": {"input": [1, 512], "state": [2, 1, 128]}}
JOINT = {"fmnist_resnet_bn": 1.0, "langid_transformer": 1.0}


@dataclasses.dataclass
class Job:
    """One run of the program."""

    name: str
    arguments: list
    data: bool = True


def zstd(path: pathlib.Path, level: int) -> int:
    run = subprocess.run(["zstd", f"-{level}", "-q", "-c", str(path)], capture_output=True, check=True)
    return len(run.stdout)


def optimize(args, model: pathlib.Path, out: pathlib.Path, job: Job, calib: pathlib.Path | None) -> dict:
    command = [args.paring, "optimize", str(model), "-o", str(out), *job.arguments, "--no-time", "--no-validate"]
    command += ["--allow-unvalidated", *args.arg]
    if calib is not None and job.data:
        command += ["--data", str(calib)]
    run, cpu, memory = run_measured(command)
    if run.returncode:
        return {"failed": run.stderr.strip()[-600:]}
    row = {"cpu": cpu, "memory": memory}
    size = model.stat().st_size
    row["size"] = out.stat().st_size / size
    row["zstd3"], row["zstd19"] = (size / zstd(out, level) for level in (3, 19))
    try:
        onnx.checker.check_model(str(out), full_check=True)
        session(out)
    except Exception as e:
        row["failed"] = str(e)[-600:]
    return row


def compare(args, model: pathlib.Path, out: pathlib.Path, data: pathlib.Path | None) -> dict:
    """What the program says of two models that it runs in tract."""
    command = [args.paring, "compare", "--json", str(model), str(out)]
    command += ["--data", str(data)] if data is not None else []
    run = subprocess.run(command, capture_output=True, text=True)
    if not run.stdout:
        return {"failed": run.stderr.strip()[-600:]}
    return json.loads(run.stdout).get("validation") or {"failed": "not validated"}


def judge(args, name: str, step: str, folder: pathlib.Path) -> list[str]:
    """Runs one step on one model of the table, prints its figures and returns what falls short."""
    case, model = CASES[name], args.models / f"{name}.onnx"
    calib, test = samples(args.data, case)
    calib_path, test_path = folder / f"{name}.calib.npz", folder / f"{name}.test.npz"
    np.savez(calib_path, **{k: v for k, v in calib.items() if k != "label"})
    np.savez(test_path, **test)
    out = folder / f"{name}.{step}.onnx"
    arguments = {
        "16": ["--recipe", "cluster"],
        "256": ["--recipe", "clean", "--pass", "cluster-weights:bits=8"],
        "joint": ["--recipe", "prune-cluster"],
    }[step]
    if args.options and step == "16":
        arguments = ["--recipe", "clean", "--pass", f"cluster-weights:{args.options}"]
    row = optimize(args, model, out, Job(name, arguments), calib_path)
    if "failed" in row:
        print(f"  {step}: {row['failed']}")
        return [row["failed"]]
    row |= score(outputs(model, test), outputs(out, test), test)
    tract = compare(args, model, out, test_path)
    print(f"  {step}: {described(row)}", flush=True)
    return misses(case, step, name, row, tract, share_of_weights(model))


def described(row: dict) -> str:
    parts = [f"{row['sqnr']:.2f} dB"]
    if "accuracy" in row:
        parts.append(f"accuracy {row['accuracy']:.4f} of {row['accuracy_f32']:.4f}")
    parts += [f"{key} {row[key]:.4f}" for key in ("agreement", "cosine", "size") if key in row]
    parts.append(f"with zstd {row['zstd3']:.2f}x, at level 19 {row['zstd19']:.2f}x")
    return ", ".join(parts) + f", {row['cpu']:.1f} CPU s, {row['memory']:.0f} MB"


def share_of_weights(model: pathlib.Path) -> float:
    """The share of a file that are float tensors of two axes or more."""
    graph = onnx.load(model).graph
    held = [n.attribute[0].t for n in graph.node if n.op_type == "Constant" and n.attribute[0].HasField("t")]
    tensors = [t for t in [*graph.initializer, *held] if t.data_type == onnx.TensorProto.FLOAT]
    elements = sum(int(np.prod(t.dims)) for t in tensors if len(t.dims) > 1)
    return 4 * elements / model.stat().st_size


def misses(case: Case, step: str, name: str, row: dict, tract: dict, weights: float) -> list[str]:
    """What the figures fall short of."""
    out = []
    drop = {"16": case.drop, "256": min(case.drop or 0.3, 0.3), "joint": JOINT.get(name)}[step]
    lost = 100 * (row.get("accuracy_f32", 0) - row.get("accuracy", 0))
    if drop is not None and "accuracy" in row and lost > drop + 1e-9:
        out.append(f"accuracy fell by {lost:.2f} points")
    if step == "16" and case.sqnr is not None and row["sqnr"] < case.sqnr:
        out.append(f"SQNR below {case.sqnr} dB")
    if step == "16" and case.cosine is not None and row["cosine"] < case.cosine:
        out.append(f"cosine below {case.cosine}")
    if step in SIZE and weights >= DOMINATE and row["size"] > SIZE[step]:
        out.append(f"larger than {SIZE[step]} of the float model")
    if step == "joint" and name in JOINT and row["zstd3"] < SMALLER:
        out.append(f"{row['zstd3']:.2f}x smaller after zstd")
    if "failed" in tract:
        out.append(f"tract: {tract['failed']}")
    elif (sqnr := tract.get("sqnr_db")) is not None and abs(sqnr - row["sqnr"]) > ENGINES and row["sqnr"] < 90:
        out.append(f"{sqnr:.2f} dB in tract")
    return out


def judge_plain(args, model: pathlib.Path, folder: pathlib.Path) -> list[str]:
    """A model clustered without data, on seeded inputs."""
    out = folder / f"{model.stem}.plain.onnx"
    row = optimize(args, model, out, Job(model.stem, ["--recipe", "cluster"]), None)
    if "failed" in row:
        return [row["failed"]]
    found = ", ".join(f"{k} {row[k]:.3f}" for k in ("size", "zstd3", "cpu"))
    tract = compare(args, model, out, None)
    said = tract.get("failed") or f"{tract.get('sqnr_db')} dB in tract"
    try:
        ran = same_in_ort(model, out)
    except Exception as e:
        return [str(e)[-300:]]
    print(f"  plain: {found}; {ran:.2f} dB in ONNX Runtime, {said}", flush=True)
    return []


def same_in_ort(model: pathlib.Path, out: pathlib.Path) -> float:
    """SQNR of the outputs on seeded inputs."""
    a, b = session(model), session(out)
    fed, before = conformance.run_at_some_size(a, 0, 1, SHAPES.get(model.stem, {}))
    pairs = list(zip(before, b.run(None, fed)))
    noise = sum(float(np.sum((x.astype(np.float64) - y) ** 2)) for x, y in pairs)
    signal = sum(float(np.sum(x.astype(np.float64) ** 2)) for x in before)
    return 10 * np.log10(signal / noise) if noise else 300.0


def judge_snap(args, name: str, folder: pathlib.Path) -> list[str]:
    """What was snapped to 16 clusters and is snapped and stored again with as many."""
    case, model = CASES[name], args.models / f"{name}.onnx"
    snapped, again, stored = (folder / f"{name}.{k}.onnx" for k in ("snapped", "again", "stored"))
    step = "cluster-weights:bits=4,form={},scales=none,sensitive-bits=4,min-elements=1"
    first = optimize(args, model, snapped, Job(name, ["--pass", step.format("snap"), "--no-provenance"]), None)
    short = [first["failed"]] if "failed" in first else []
    _, test = samples(args.data, case)
    test = {k: v[:20] for k, v in test.items()}
    for out, form in ((again, "snap"), (stored, "table")):
        row = optimize(args, snapped, out, Job(name, ["--pass", step.format(form)]), None)
        if "failed" in row:
            short.append(row["failed"])
            continue
        pairs = zip(outputs(snapped, test), outputs(out, test))
        if not all(np.array_equal(a, b) for a, b in pairs):
            short.append(f"{form} changed outputs")
    if not short:
        print(f"  snap: nothing changed; snapped file with zstd {first['zstd3']:.2f}x", flush=True)
    return short


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paring", required=True)
    parser.add_argument("--models", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--keep", type=pathlib.Path, help="keep the models in this folder")
    parser.add_argument("--step", action="append", choices=["16", "256", "joint", "plain", "snap"])
    parser.add_argument("--options", default="", help="options of cluster-weights in the step 16, key=value,...")
    parser.add_argument("--arg", action="append", default=[], help="one more argument for paring optimize")
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or pathlib.Path(temporary)
        folder.mkdir(exist_ok=True)
        for step in args.step or ["16", "256", "joint", "snap", "plain"]:
            known = {"plain": [m.stem for m in sorted(args.models.glob("*.onnx"))], "joint": list(JOINT)}
            for name in args.names or known.get(step, list(CASES)):
                print(name, flush=True)
                if step == "plain":
                    short = judge_plain(args, args.models / f"{name}.onnx", folder)
                elif step == "snap":
                    short = judge_snap(args, name, folder)
                else:
                    short = judge(args, name, step, folder)
                failures += bool(short)
                print(f"    {'ok' if not short else 'FAIL ' + '; '.join(short)}", flush=True)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
