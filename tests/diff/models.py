"""Checks that `paring diff` explains what `paring optimize` did, on real models.

    python models.py --paring target/release/paring [--data FOLDER] MODEL.onnx...

Each model is rewritten by every pass of `paring passes` and every recipe of `paring recipes`, one
at a time. Then the diff of the result against its original must agree with the report of the run:

- totals: operators, parameters, bytes of weights and MACs before and after are those of the report,
  and so is the number of operators of each type;
- bookkeeping: same, changed and removed operators make the first model, same, changed and added
  ones the second;
- explanation: each operator that was removed or added is in exactly one pattern, each changed one
  in a pattern or marked with a pass; each changed weight is marked with a pass that ran;
- counts: what a pass reports to have done so many times is found so many times (see COUNTS);
- names: each operator that a pass reports to have changed is among what the diff tells of;
- a model that was not changed has no difference.

Data for `quantize-int8` comes from the arrays in FOLDER that fit the inputs, else it is random.
Exits 1 when anything disagrees.
"""

import argparse
import collections
import json
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx

# Passes that want samples, and how many are made where there are none.
SAMPLES = 4
WITH_DATA = {"quantize-int8", "recipe cluster-int8", "recipe factorize-int8", "recipe channels-factorize-int8"}
# What these passes remark upon is not an operator or not a change of one by itself.
UNNAMED = {
    # A Constant that was merged or folded away is told with the operators that took it.
    ("lift-constants", "lifted"), ("merge-duplicates", "merged"),
    ("merge-duplicates", "merged-initializer"),
    # The target of a Reshape became a constant: its operators are told as folded.
    ("simplify-shapes", "constant-shape"), ("simplify-shapes", "equal-sizes"),
    # The operator takes its input without the Expand, which is told as bypassed.
    ("eliminate-expands", "unexpanded"),
    # Only the opset is another: what the operator says means the same in both.
    ("upgrade-opset", "adapted"), ("quantize-weights", "adapted"), ("quantize-int8", "adapted"),
    ("quantize-dynamic", "adapted"),
    ("eliminate-dead-code", "unused-initializer"), ("eliminate-dead-code", "unused-output"),
}


def by(entry, name):
    return name in entry.get("by", [])


def weights(d, name):
    return [t for t in d["initializers"]["changed"] if by(t, name)]


def added(d, name, kinds=None):
    ops = [o for o in d["operators"]["added"] if by(o, name)]
    return [o for o in ops if kinds is None or o["op_type"] in kinds]


def removed(d, kind):
    return [o for o in d["operators"]["removed"] if o["op_type"] == kind]


# How often a diff shows what a pass reports to have done.
COUNTS = {
    ("fold-batch-norm", "folded"): lambda d: len(removed(d, "BatchNormalization")),
    # Clustering moves small weights to the code of zero as well, and which of both made a zero is
    # recorded nowhere: that each pruned weight is told of must do there.
    ("prune-weights", "pruned"): lambda d: None if weights(d, "cluster-weights") else sum(
        t["sparsity_after"] > t["sparsity_before"] for t in weights(d, "prune-weights")),
    # The codes of a long weight are expanded in pieces; the table that unpacks them is not one.
    ("cluster-weights", "clustered"): lambda d: len(
        {re.sub(r"_index(_\d+)?$", "", o["name"]) for o in added(d, "cluster-weights", {"Cast"})
         if re.search(r"(?<!^table)_index(_\d+)?$", o["name"])}),
    ("quantize-weights", "quantized"): lambda d: len(weights(d, "quantize-weights")),
    ("factorize-low-rank", "factorized"): lambda d: sum(
        o["name"].endswith("_lowrank") for side in ("added", "changed") for o in d["operators"][side]),
    ("quantize-dynamic", "quantized"): lambda d: len(
        added(d, "quantize-dynamic", {"MatMulInteger", "ConvInteger"})),
}


class Check:
    """What of one diff disagrees with the report of the run."""

    def __init__(self, report, diff):
        self.report, self.diff, self.wrong = report, diff, []
        self.ops = diff["operators"]

    def same(self, what, a, b):
        if a != b:
            self.wrong.append(f"{what}: {a} in the diff, {b} in the report")

    def totals(self):
        keys = {"nodes": "nodes", "parameters": "parameters", "bytes": "weight_bytes", "macs": "macs"}
        for side in ("before", "after"):
            for ours, theirs in keys.items():
                self.same(f"{side} {ours}", self.diff[side][ours], self.report[side][theirs])
        change = collections.Counter()
        for sign, side in ((1, "added"), (-1, "removed")):
            for o in self.ops[side]:
                change[o["op_type"]] += sign
        for o in self.ops["changed"]:
            for c in o["changes"]:
                if c["what"] == "operator type":
                    change[c["before"]] -= 1
                    change[c["after"]] += 1
        counts = collections.Counter(self.report["after"]["operators"])
        counts.subtract(self.report["before"]["operators"])
        # What stands inside operators that went or came is counted, not listed.
        if any("inside" in o for o in self.ops["added"] + self.ops["removed"]):
            return
        for kind in {*change, *counts} - {"Constant"}:
            self.same(f"number of {kind}", change[kind], counts[kind])

    def books(self):
        both = self.ops["same"] + len(self.ops["changed"])
        for side, lone in (("before", "removed"), ("after", "added")):
            inside = sum(o.get("inside", 0) for o in self.ops[lone])
            self.same(f"operators {side}", both + len(self.ops[lone]) + inside, self.report[side]["nodes"])

    def explained(self):
        passes = {p["name"] for p in self.report["passes"] if p["changed"]}
        told = {"before": collections.Counter(), "after": collections.Counter()}
        key = lambda o: (o.get("graph", ""), o["name"], o["op_type"])
        for p in self.diff["patterns"]:
            self.same(f"places of {p['before']} -> {p['after']}", len(p["places"]), p["count"])
            for place in p["places"]:
                for side in told:
                    told[side].update(key(o) for o in place[side])
            if not set(p.get("by", [])) <= passes:
                self.wrong.append(f"{p['by']} did not change anything")
        for side, list_ in (("before", "removed"), ("after", "added")):
            for o in self.ops[list_]:
                if told[side][key(o)] != 1:
                    self.wrong.append(f"{list_} {o['op_type']} {o['name']} is in {told[side][key(o)]} patterns")
        # An edit of an operator in place leaves no mark; a pass that says so did it.
        remarked = {r["op"] for p in self.report["passes"] for r in p["remarks"]["kept"]}
        for o in self.ops["changed"]:
            told_by = by_any(o, passes) or o["name"] in remarked or self.follows(o)
            if o.get("pattern") is None and not told_by:
                self.wrong.append(f"changed {o['op_type']} {o['name']}: {o['changes']}")
        for t in self.diff["initializers"]["changed"]:
            if not by_any(t, passes):
                self.wrong.append(f"weight {t['name']} is marked {t.get('by')}")

    @staticmethod
    def follows(op):
        """Whether only outputs that nothing took are gone, or a computed input became a constant."""
        return all(
            c["what"] == "outputs" and int(c["after"]) < int(c["before"])
            or c["what"].startswith("input") and (c["after"] or "").startswith("[")
            for c in op["changes"])

    def counts(self):
        # A pass may run more than once.
        told = collections.Counter()
        for p in self.report["passes"]:
            for code, count in p["remarks"]["applied"].items():
                told[p["name"], code] += count
        for (name, code), count in told.items():
            find = COUNTS.get((name, code))
            found = find(self.diff) if find else None
            if found is not None:
                self.same(f"{name} {code}", found, count)

    def names(self):
        known = set()
        for o in self.ops["removed"] + self.ops["added"] + self.ops["changed"]:
            known |= {o["name"], o.get("name_before"), *o.get("from", [])}
        for t in self.diff["initializers"]["changed"]:
            known |= {t["name"], t.get("name_before"), *t["used_by"]}
        for p in self.diff["patterns"]:
            for place in p["places"]:
                known |= {o["name"] for o in place["before"] + place["after"]}
        for p in self.report["passes"]:
            for r in p["remarks"]["kept"]:
                if r["kind"] == "applied" and (p["name"], r["code"]) not in UNNAMED and r["op"] not in known:
                    self.wrong.append(f"{p['name']} {r['code']} {r['op_type']} {r['op']} is nowhere in the diff")


def by_any(entry, passes):
    return bool(set(entry.get("by", [])) & passes)


def judge(report, diff, code):
    check = Check(report, diff)
    if report["changed"]:
        for part in (check.totals, check.books, check.explained, check.counts, check.names):
            part()
    elif code != 0:
        check.wrong.append("there is a difference, and no pass changed anything")
    return check.wrong


def run(command):
    """Runs a command; gives its result, and the seconds of processor time that it took."""
    usage = lambda: resource.getrusage(resource.RUSAGE_CHILDREN)
    before = usage()
    done = subprocess.run(command, capture_output=True, text=True)
    after = usage()
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def data_for(paring, model, folder, target):
    """Samples for a model: arrays of the folder that fit, else random ones."""
    graph = onnx.load(model, load_external_data=False).graph
    constants = {t.name for t in graph.initializer}
    inputs = [v for v in graph.input if v.name not in constants]
    shape = lambda v: [d.dim_value for d in v.type.tensor_type.shape.dim]
    for path in sorted(Path(folder).glob("*.npz")) if folder else []:
        arrays = np.load(path)
        fits = lambda v: (
            v.name in arrays and arrays[v.name].ndim == len(shape(v))
            and all(n in (0, m) for n, m in zip(shape(v)[1:], arrays[v.name].shape[1:])))
        if "label" not in arrays and all(map(fits, inputs)):
            return path
    inspected = json.loads(run([paring, "inspect", "--json", model])[0].stdout)
    rng = np.random.default_rng(1)
    arrays = {}
    for v in inputs:
        dims = inspected.get("macs_shapes", {}).get(v.name) or shape(v)
        dims = [d or 1 for d in dims]
        # Samples are slices of the first axis; an array of one rank less has one element for each.
        dims = [SAMPLES, *dims[1:]] if dims and dims[0] == 1 else [SAMPLES, *dims]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)
        whole = np.issubdtype(dtype, np.integer)
        arrays[v.name] = (rng.integers(0, 2, dims) if whole else rng.standard_normal(dims)).astype(dtype)
    np.savez(target, **arrays)
    return target


def jobs(paring):
    listed = run([paring, "passes"])[0].stdout.splitlines()[1:]
    names = [w[0] for line in listed if len(w := line.split()) > 1 and w[1] in ("exact", "lossy")]
    for name in names:
        yield name, ["--pass", name]
    for line in run([paring, "recipes"])[0].stdout.splitlines():
        yield f"recipe {line.split()[0]}", ["--recipe", line.split()[0]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--paring", required=True)
    parser.add_argument("--data", help="a folder of .npz files")
    parser.add_argument("--only", nargs="*", help="these passes and recipes only")
    args = parser.parse_args()
    failures, total, changed, slowest = 0, 0, 0, (0.0, "")
    explained = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        for model in args.models:
            stem = Path(model).stem
            samples = data_for(args.paring, model, args.data, f"{folder}/{stem}.npz")
            for name, what in jobs(args.paring):
                if args.only and name not in args.only:
                    continue
                out, report = f"{folder}/out.onnx", f"{folder}/report.json"
                command = [args.paring, "optimize", model, "-o", out, *what, "--report", report, "-q",
                           "--no-time", "--no-validate", "--allow-unvalidated"]
                if name in WITH_DATA:
                    command += ["--data", str(samples)]
                done, _ = run(command)
                total += 1
                if done.returncode:
                    # What a pass can't do with a model is its own matter, and said.
                    print(f"{stem:26} {name:26} NOT RUN: {done.stderr.strip()[:160]}", flush=True)
                    failures += done.returncode not in (4, 5, 6)
                    continue
                done, seconds = run([args.paring, "diff", "--json", model, out])
                if done.returncode not in (0, 1):
                    sys.exit(f"{stem} {name}: {done.stderr}")
                slowest = max(slowest, (seconds, f"{stem} {name}"))
                report = json.loads(Path(report).read_text())
                wrong = judge(report, json.loads(done.stdout), done.returncode)
                failures += bool(wrong)
                changed += report["changed"]
                explained[stem] += not wrong
                if wrong or report["changed"]:
                    verdict = "ok" if not wrong else "WRONG"
                    print(f"{stem:26} {name:26} {seconds:5.2f} s  {verdict}", flush=True)
                for w in wrong[:8]:
                    print(f"    {w[:300]}")
    print(f"{total} runs on {len(args.models)} models, {changed} changed a model, {failures} wrong; "
          f"slowest diff {slowest[0]:.2f} s of CPU ({slowest[1]})")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
