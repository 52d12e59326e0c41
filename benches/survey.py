#!/usr/bin/env python3
"""The effective multiply-accumulates of pruned MobileNets, beside published figures.

    cargo build --release --bin paring --example generate
    python3 benches/survey.py [--paring target/release/paring] [--generate target/release/examples/generate]

A survey of sparsity (Hoefler et al., "Sparsity in Deep Learning", 2021) gives for MobileNet what a
sparse network costs in floating-point operations over the dense one. This builds MobileNet v1 and
v2 (width 1.0, images of 224), prunes them with `prune-weights`, and reads the effective
multiply-accumulates, those whose weight is not zero, from the report. How many zeros a layer gets
does not depend on the weights, so random ones do. What differs between papers is which layers are
left dense; the table has a line for each choice. docs/sparsity.md discusses the result.
"""

import argparse
import json
import pathlib
import subprocess

# By name: the options of prune-weights, and the published share.
ROWS = {
    "uniform 75 %": ("sparsity=0.75,distribution=uniform", 0.27),
    "uniform 90 %": ("sparsity=0.9,distribution=uniform", 0.12),
    "ERK 75 %": ("sparsity=0.75,distribution=erdos-renyi-kernel", 0.52),
    "ERK 90 %": ("sparsity=0.9,distribution=erdos-renyi-kernel", None),
    "blocks 85 %": ("sparsity=0.85,distribution=uniform,pattern=16x1", 0.11),
}

# By the layers that stay dense: the options for that. By default the first and the depthwise do.
CHOICES = {
    "first, depthwise": "",
    "none": "include-first=true,include-depthwise=true",
    "first, classifier": "include-depthwise=true,by-type.Gemm=skip",
    "depthwise": "include-first=true",
}

NETWORKS = ("mobilenet_v1", "mobilenet_v2")


def run(command):
    """Runs a command; says what it said when it fails."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr}")


def pruned(args, model, options):
    """The effective multiply-accumulates over all."""
    report = args.work / "report.json"
    fixed = "prune-weights:criterion=magnitude,min-elements=1,max-layer-sparsity=1"
    run(
        [args.paring, "optimize", model, "-o", args.work / "pruned.onnx"]
        + ["--pass", ",".join(filter(None, [fixed, options]))]
        + ["--no-time", "--no-validate", "--allow-unvalidated", "--report", report]
    )
    said = json.loads(report.read_text())
    return said["after"]["effective_macs"] / said["before"]["macs"]


def main():
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paring", default="target/release/paring")
    parser.add_argument("--generate", default="target/release/examples/generate")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("target/survey"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    published = [f"{p:.2f}" if p else "" for _, p in ROWS.values()]
    print("| network | dense layers | " + " | ".join(ROWS) + " |")
    print("|" + "---|" * (len(ROWS) + 2))
    print("| published | | " + " | ".join(published) + " |")
    for name in NETWORKS:
        model = args.work / f"{name}.onnx"
        run([args.generate, f"topology:{name}", 224, model])
        for dense, choice in CHOICES.items():
            cells = []
            for options, target in ROWS.values():
                share = pruned(args, model, ",".join(filter(None, [options, choice])))
                agrees = target is not None and abs(share - target) <= 0.005
                cells.append(f"**{share:.3f}**" if agrees else f"{share:.3f}")
            print(f"| {name} | {dense} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
