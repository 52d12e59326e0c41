#!/usr/bin/env python3
"""Judges int8 models of paring in ONNX Runtime, beside those of its own quantizer.

    python3 tests/conformance/int8.py --paring target/release/paring --models DIR --data DIR [NAME ...]

For each model of the table below: `paring optimize --pass quantize-int8 --data CALIB` and ONNX
Runtime's `quantize_static` (its calibrators, per channel or not, its default operators or
Conv/MatMul/Gemm only) get the same calibration samples. Every result runs in ONNX Runtime on
other samples: SQNR of the outputs in dB against the float model, accuracy where there are labels
(agreement of the largest output otherwise), the file's size and the latency with one thread over
that of the float model, interleaved. The result of paring must pass `onnx.checker`.

ONNX Runtime's results depend on nothing here, so `--cache FILE` keeps them between runs.
Needs onnx, onnxruntime and numpy.
"""

import argparse
import dataclasses
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnx
import onnxruntime as ort

# The least gain in SQNR over the best of ONNX Runtime's, and the most latency over its.
MIN_GAIN_DB = 3.0
MAX_LATENCY = 1.05


@dataclasses.dataclass
class Case:
    """A model, its samples for calibration and evaluation, and what it must reach."""

    calib: str
    test: str
    # Samples that a file without a split of its own gives to calibration: every other one.
    split: bool = False
    # The most accuracy that may be lost, in points; the least SQNR; the least cosine.
    drop: float | None = None
    sqnr: float | None = None
    cosine: float | None = None
    limit: int = 512
    # Options of quantize-int8 that this model is known to need.
    options: str = ""


CASES = {
    "fmnist_mobilenet_bn": Case("fmnist_calib", "fmnist_test", drop=0.2),
    "fmnist_resnet_bn": Case("fmnist_calib", "fmnist_test", drop=0.2),
    "fmnist_mlp": Case("fmnist_calib", "fmnist_test", drop=0.2),
    "langid_transformer": Case("langid_calib", "langid_test", drop=0.2),
    "langid_bilstm": Case("langid_calib", "langid_test", drop=0.2),
    "magika_v3_3": Case("magika_calib", "magika_test", drop=0.2),
    "efficientnet_lite0_bn": Case("natural_photos_calib", "imagenet20", sqnr=22.0, drop=0.2),
    "ppocrv4_rec": Case("ocr_lines", "ocr_lines", split=True, sqnr=20.0, options="min-sqnr-db=20"),
    "ppocr_mobile_cls": Case("ocr_turned", "ocr_turned", split=True, sqnr=25.0, options="min-sqnr-db=25"),
    "all_minilm_l6_fp32": Case("minilm_sentences", "minilm_sentences", split=True, cosine=0.995),
}


def session(path, optimize=True):
    options = ort.SessionOptions()
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def arrays(folder: pathlib.Path, name: str) -> dict:
    """The arrays of a data set; `ocr_turned` is made of `ocr_lines`: half the lines upside down."""
    if name != "ocr_turned":
        return dict(np.load(folder / f"{name}.npz"))
    x = np.load(folder / "ocr_lines.npz")["x"][:, :, :, :192]
    turned = np.ascontiguousarray(x[:, :, ::-1, ::-1])
    x = np.stack([x, turned], 1).reshape(-1, *x.shape[1:])
    return {"x": np.ascontiguousarray(x), "label": np.tile(np.array([0, 1]), len(x) // 2)}


def samples(folder: pathlib.Path, case: Case) -> tuple[dict, dict]:
    calib, test = arrays(folder, case.calib), arrays(folder, case.test)
    if case.split:
        # Pairs stay together, so that both halves hold both classes.
        part = lambda a, k: np.concatenate([a[2 * k + j :: 4] for j in (0, 1)])
        calib = {k: part(v, 0) for k, v in calib.items()}
        test = {k: part(v, 1) for k, v in test.items()}
    return {k: v[: case.limit] for k, v in calib.items()}, test


# Whether QuantizeLinear and DequantizeLinear are run as they stand, so that no sum saturates: what
# a machine with VNNI gives, on any machine.
EXACT = False


def outputs(path, data: dict) -> list[np.ndarray]:
    """Every output over all samples, which are run one by one."""
    s = session(path, optimize=not EXACT)
    names = [i.name for i in s.get_inputs()]
    count = len(data[names[0]])
    runs = [s.run(None, {n: data[n][i : i + 1] for n in names}) for i in range(count)]
    return [np.concatenate([np.atleast_1d(r[k]) for r in runs]) for k in range(len(runs[0]))]


def counted(output: np.ndarray, data: dict) -> np.ndarray:
    """An output without the positions that the mask of a padded sequence leaves out."""
    mask = data.get("attention_mask")
    return output if mask is None or output.shape[:2] != mask.shape else output[mask == 1]


def score(reference: list, found: list, data: dict) -> dict:
    reference, found = ([counted(o, data) for o in all] for all in (reference, found))
    noise = sum(float(np.sum((a.astype(np.float64) - b) ** 2)) for a, b in zip(reference, found))
    signal = sum(float(np.sum(a.astype(np.float64) ** 2)) for a in reference)
    out = {"sqnr": 10 * np.log10(signal / noise) if noise else 300.0}
    a, b = reference[0], found[0]
    if "label" in data and a.ndim == 2:
        label = data["label"]
        out["accuracy"] = float(np.mean(b.argmax(-1) == label))
        out["accuracy_f32"] = float(np.mean(a.argmax(-1) == label))
    out["agreement"] = float(np.mean(a.argmax(-1) == b.argmax(-1)))
    if "attention_mask" in data:
        lengths = data["attention_mask"].sum(1)
        ends = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        p, q = (np.add.reduceat(v.astype(np.float64), ends) / lengths[:, None] for v in (a, b))
        cosine = (p * q).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(q, axis=1)
        out["cosine"] = float(cosine.mean())
    return out


def latency(paths: list, data: dict, seconds: float) -> list[float]:
    """CPU seconds of one run of each model, one thread, one sample; the median of interleaved runs."""
    sessions = [session(p) for p in paths]
    feed = {i.name: data[i.name][:1] for i in sessions[0].get_inputs()}
    for s in sessions:
        for _ in range(3):
            s.run(None, feed)
    began = time.thread_time()
    sessions[0].run(None, feed)
    repeat = max(1, int(0.002 / max(time.thread_time() - began, 1e-6)))
    times = [[] for _ in sessions]
    end = time.monotonic() + seconds * len(sessions)
    while time.monotonic() < end or len(times[0]) < 20:
        for s, t in zip(sessions, times):
            began = time.thread_time()
            for _ in range(repeat):
                s.run(None, feed)
            t.append((time.thread_time() - began) / repeat)
    return [float(np.median(t)) for t in times]


def run_measured(command: list[str]) -> tuple[subprocess.CompletedProcess, float, float]:
    """Runs a program; its CPU seconds and its largest memory in MB."""
    wrapper = (
        "import resource, subprocess, sys, json\n"
        "run = subprocess.run(sys.argv[1:], capture_output=True, text=True)\n"
        "u = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(json.dumps([run.returncode, run.stdout, run.stderr, u.ru_utime + u.ru_stime, u.ru_maxrss / 1024]))\n"
    )
    run = subprocess.run([sys.executable, "-c", wrapper, *command], capture_output=True, text=True)
    code, out, err, cpu, memory = json.loads(run.stdout)
    return subprocess.CompletedProcess(command, code, out, err), cpu, memory


class Reader:
    def __init__(self, data: dict, names: list[str]):
        self.rows = iter([{n: data[n][i : i + 1] for n in names} for i in range(len(data[names[0]]))])

    def get_next(self):
        return next(self.rows, None)


def ort_worker(model: str, calib: str, out: str, method: str, per_channel: str, ops: str) -> None:
    """Quantizes one model in a process of its own, so that its CPU time and memory are known."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    m = onnx.load(model)
    if next(o.version for o in m.opset_import if o.domain in ("", "ai.onnx")) < 13:
        m = onnx.version_converter.convert_version(m, 13)
    with tempfile.TemporaryDirectory() as folder:
        plain, prepared = f"{folder}/plain.onnx", f"{folder}/prepared.onnx"
        onnx.save(m, plain)
        try:
            quant_pre_process(plain, prepared)
        except Exception:
            quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        data = dict(np.load(calib))
        names = [i.name for i in session(prepared).get_inputs()]
        quantize_static(
            prepared,
            out,
            Reader(data, names),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=per_channel == "channel",
            calibrate_method=CalibrationMethod[method],
            op_types_to_quantize=["Conv", "MatMul", "Gemm"] if ops == "linear" else None,
        )


ORT_METHODS = ("MinMax", "Percentile", "Entropy")


def ort_results(model: pathlib.Path, name: str, case: Case, calib: dict, test: dict, folder: pathlib.Path, methods) -> list[dict]:
    """What ONNX Runtime's quantizer makes of a model, in each of its configurations."""
    path = folder / f"{name}.calib.npz"
    np.savez(path, **{k: v for k, v in calib.items() if k != "label"})
    reference, results = outputs(model, test), []
    for method in methods:
        for per_channel in ("channel", "tensor"):
            for ops in ("default", "linear"):
                out = folder / f"{name}.ort-{method}-{per_channel}-{ops}.onnx"
                command = [sys.executable, __file__, "--ort-worker", str(model), str(path), str(out), method, per_channel, ops]
                run, cpu, memory = run_measured(command)
                row = {"method": method, "weights": per_channel, "ops": ops, "cpu": cpu, "memory": memory}
                try:
                    if run.returncode:
                        raise RuntimeError(run.stderr.strip()[-200:])
                    row |= score(reference, outputs(out, test), test)
                    row["bytes"] = out.stat().st_size / model.stat().st_size
                    row["path"] = str(out)
                except Exception as e:  # what fails here is a fact about the peer
                    row["failed"] = str(e)[-200:]
                results.append(row)
                print(f"    ort {describe(row)}", flush=True)
    return results


def describe(row: dict) -> str:
    label = " ".join(str(row[k]) for k in ("method", "weights", "ops") if k in row)
    if "failed" in row:
        return f"{label}: failed: {row['failed']}"
    parts = [f"{label}: {row['sqnr']:6.2f} dB"]
    if "accuracy" in row:
        parts.append(f"accuracy {row['accuracy']:.4f} of {row['accuracy_f32']:.4f}")
    for key in ("agreement", "cosine", "ratio", "bytes"):
        if key in row:
            parts.append(f"{key} {row[key]:.4f}")
    return ", ".join(parts) + f", {row['cpu']:.1f} CPU s, {row['memory']:.0f} MB"


def paring_result(args, model: pathlib.Path, name: str, case: Case, calib: dict, test: dict, folder: pathlib.Path) -> dict:
    path = folder / f"{name}.calib.npz"
    np.savez(path, **calib)
    out = folder / f"{name}.paring.onnx"
    options = ",".join(o for o in (case.options, args.options) if o)
    step = "quantize-int8" + (f":{options}" if options else "")
    command = [args.paring, "optimize", str(model), "-o", str(out), "--pass", step, "--data", str(path)]
    command += ["--no-time", "--no-validate", *args.arg]
    run, cpu, memory = run_measured(command)
    if run.returncode:
        return {"failed": run.stderr.strip()[-400:], "cpu": cpu, "memory": memory}
    row = {"cpu": cpu, "memory": memory, "path": str(out)}
    row["said"] = run.stdout
    try:
        onnx.checker.check_model(str(out), full_check=True)
        row |= score(outputs(model, test), outputs(out, test), test)
    except Exception as e:
        row["failed"] = str(e)[-400:]
    row["bytes"] = out.stat().st_size / model.stat().st_size
    return row


def misses(case: Case, mine: dict, best: dict | None) -> list[str]:
    """What the figures fall short of."""
    if "failed" in mine:
        return [mine["failed"]]
    out = []
    if case.drop is not None and 100 * (mine["accuracy_f32"] - mine["accuracy"]) > case.drop + 1e-9:
        out.append(f"accuracy fell by {100 * (mine['accuracy_f32'] - mine['accuracy']):.2f} points")
    if case.sqnr is not None and mine["sqnr"] < case.sqnr:
        out.append(f"SQNR below {case.sqnr} dB")
    if case.cosine is not None and mine["cosine"] < case.cosine:
        out.append(f"cosine below {case.cosine}")
    if mine["bytes"] > 1:
        out.append("larger than the input")
    if best is not None:
        if mine["sqnr"] < best["sqnr"] + MIN_GAIN_DB:
            out.append(f"{mine['sqnr'] - best['sqnr']:+.2f} dB over the best of ONNX Runtime")
        if "ratio" in mine and mine["ratio"] > MAX_LATENCY * best["ratio"]:
            out.append(f"{mine['ratio'] / best['ratio']:.3f} times its latency")
    return out


def main() -> None:
    if sys.argv[1:2] == ["--ort-worker"]:
        return ort_worker(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paring", help="the program; without it only ONNX Runtime's quantizer is judged")
    parser.add_argument("--models", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--cache", type=pathlib.Path, help="a JSON file that keeps ONNX Runtime's results")
    parser.add_argument("--keep", type=pathlib.Path, help="keep the models in this folder")
    parser.add_argument("--methods", default=",".join(ORT_METHODS))
    parser.add_argument("--options", default="", help="options of quantize-int8, key=value,...")
    parser.add_argument("--arg", action="append", default=[], help="one more argument for paring optimize")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each model is timed; 0 leaves it out")
    parser.add_argument("--no-ort", action="store_true", help="leave ONNX Runtime's quantizer out")
    parser.add_argument("--exact", action="store_true", help="run without fusing, so that nothing saturates, as with VNNI")
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    global EXACT
    EXACT = args.exact
    cache = json.loads(args.cache.read_text()) if args.cache and args.cache.exists() else {}
    failures = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or pathlib.Path(temporary)
        for name in args.names or CASES:
            case, model = CASES[name], args.models / f"{name}.onnx"
            calib, test = samples(args.data, case)
            print(name, flush=True)
            if not args.no_ort and name not in cache:
                cache[name] = ort_results(model, name, case, calib, test, folder, args.methods.split(","))
                if args.cache:
                    args.cache.write_text(json.dumps(cache, indent=1))
            good = [r for r in cache.get(name, []) if "failed" not in r]
            best = max(good, key=lambda r: r["sqnr"], default=None)
            if args.paring is None:
                continue
            mine = paring_result(args, model, name, case, calib, test, folder)
            paths = [model] + [r["path"] for r in (mine, best) if r and pathlib.Path(r.get("path", "?")).exists()]
            if args.seconds > 0 and len(paths) > 1 and "failed" not in mine:
                times = latency(paths, test, args.seconds)
                for row, t in zip([mine, best], times[1:]):
                    row["ratio"] = t / times[0]
            if best is not None:
                print(f"    best {describe(best)}")
            print(f"    paring{describe(mine)}", flush=True)
            short = misses(case, mine, best if best and "ratio" in best else None)
            failures += bool(short)
            print(f"    {'ok' if not short else 'FAIL ' + '; '.join(short)}", flush=True)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
