"""Checks `paring diff` on copies of models in which it is known what changed.

    python planted.py --paring target/release/paring MODEL.onnx...

For each model: copies with every name another and everything in another order, which must show no
change; and copies with one planted edit (a node removed, an attribute changed, a weight perturbed,
two inputs swapped, a Q/DQ pair inserted, 3 channels dropped), each with the old names and with
every name another, which must show that edit and nothing else. An edit that a model has no place
for is left out and said. Exits 1 when anything is missed or reported beyond it.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

UNARY = {
    "Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Erf", "Clip", "Softmax",
    "Elu", "Selu", "Gelu", "Sqrt", "Exp", "Neg", "Abs", "Identity", "Dropout", "Softplus",
}
# Attributes that can be changed without another shape following from it.
NEUTRAL = [
    ("BatchNormalization", "epsilon"), ("LayerNormalization", "epsilon"), ("LeakyRelu", "alpha"),
    ("HardSigmoid", "alpha"), ("Elu", "alpha"), ("Clip", "min"), ("Gemm", "alpha"),
    ("Softmax", "axis"), ("LSTM", "clip"), ("Conv", "pads"), ("AveragePool", "count_include_pad"),
]


# --- Graphs as they stand in a file ------------------------------------------------------------


def subgraphs(node):
    for a in node.attribute:
        if a.type == onnx.AttributeProto.GRAPH:
            yield a.g
        yield from a.graphs


def taken(node):
    """The names that a node takes, those that graphs inside it capture too."""
    yield from (n for n in node.input if n)
    for g in subgraphs(node):
        own = {i.name for i in g.input} | {i.name for i in g.initializer}
        own |= {o for n in g.node for o in n.output}
        names = [t for n in g.node for t in taken(n)] + [o.name for o in g.output]
        yield from (n for n in names if n not in own)


def shuffle(graph, rng):
    """Another order of nodes, initializers, value infos and attributes, as good as the first."""
    made = {o: i for i, n in enumerate(graph.node) for o in n.output if o}
    waits = [{made[t] for t in taken(n) if t in made} for n in graph.node]
    order, ready, done = [], [i for i, w in enumerate(waits) if not w], set()
    users = {}
    for i, w in enumerate(waits):
        for m in w:
            users.setdefault(m, []).append(i)
    left = [len(w) for w in waits]
    while ready:
        i = ready.pop(rng.randrange(len(ready)))
        order.append(i)
        done.add(i)
        for u in users.get(i, []):
            left[u] -= 1
            if left[u] == 0:
                ready.append(u)
    nodes = [graph.node[i] for i in order]
    for n in nodes:
        for g in subgraphs(n):
            shuffle(g, rng)
        attributes = list(n.attribute)
        rng.shuffle(attributes)
        del n.attribute[:]
        n.attribute.extend(attributes)
    del graph.node[:]
    graph.node.extend(nodes)
    for field in (graph.initializer, graph.value_info):
        entries = list(field)
        rng.shuffle(entries)
        del field[:]
        field.extend(entries)


def rename(graph, scope, counter, ports, main=True):
    """Gives every value and node a new name; inputs and outputs of the model where `ports`."""
    scope = dict(scope)

    def new(name):
        counter[0] += 1
        scope[name] = f"v{(counter[0] * 7919) % 1000003}_{counter[0]}"

    keep = set() if ports or not main else {v.name for v in [*graph.input, *graph.output]}
    names = [v.name for v in graph.input] + [t.name for t in graph.initializer]
    names += [s.values.name for s in graph.sparse_initializer]
    names += [o for n in graph.node for o in n.output if o]
    for name in dict.fromkeys(names):
        if name in keep:
            scope[name] = name
        else:
            new(name)
    for v in [*graph.input, *graph.output, *graph.value_info]:
        v.name = scope.get(v.name, v.name)
    for t in graph.initializer:
        t.name = scope[t.name]
    for s in graph.sparse_initializer:
        s.values.name = scope[s.values.name]
    for q in graph.quantization_annotation:
        q.tensor_name = scope.get(q.tensor_name, q.tensor_name)
    for i, n in enumerate(graph.node):
        counter[0] += 1
        n.name = f"n{(counter[0] * 104729) % 1000003}_{counter[0]}"
        n.input[:] = [scope.get(x, x) for x in n.input]
        n.output[:] = [scope.get(x, x) for x in n.output]
        for g in subgraphs(n):
            rename(g, scope, counter, ports, main=False)


def copied(model):
    out = onnx.ModelProto()
    out.CopyFrom(model)
    return out


def disguised(model, seed, ports=False):
    out = copied(model)
    rename(out.graph, {}, [seed * 1000], ports)
    rng = random.Random(seed)
    shuffle(out.graph, rng)
    if ports:
        out.graph.name = "another"
        for field in (out.graph.input, out.graph.output):
            entries = list(field)
            rng.shuffle(entries)
            del field[:]
            field.extend(entries)
    return out


# --- Edits ----------------------------------------------------------------------------------------


def largest(model):
    """The graph with the most nodes, which may stand inside a node."""

    def all_graphs(graph):
        yield graph
        for n in graph.node:
            for g in subgraphs(n):
                yield from all_graphs(g)

    return max(all_graphs(model.graph), key=lambda g: len(g.node))


class Index:
    """Who makes and who takes what in a graph."""

    def __init__(self, graph):
        self.graph = graph
        self.made = {o: n for n in graph.node for o in n.output if o}
        self.users = {}
        for n in graph.node:
            for t in taken(n):
                self.users.setdefault(t, []).append(n)
        self.outputs = {o.name for o in graph.output}
        self.constants = {t.name: t for t in graph.initializer}
        for n in graph.node:
            if n.op_type == "Constant" and n.attribute and n.attribute[0].name == "value":
                self.constants[n.output[0]] = n.attribute[0].t

    def array(self, name):
        t = self.constants.get(name)
        return None if t is None else numpy_helper.to_array(t)

    def put(self, name, array):
        t = self.constants[name]
        t.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), t.name))

    def floats(self):
        return [n for n, t in self.constants.items() if t.data_type == TensorProto.FLOAT]


def label(node):
    return node.name or node.output[0]


def remove_node(model, rng):
    graph = largest(model)
    ix = Index(graph)
    nodes = [
        n for n in graph.node
        if n.op_type in UNARY and n.input[0] not in ix.constants and len(n.output) == 1
        and n.output[0] not in ix.outputs
        and all(n.output[0] in u.input for u in ix.users.get(n.output[0], [None]) if u)
        and ix.users.get(n.output[0])
    ]
    if not nodes:
        return None
    node = rng.choice(nodes)
    for u in ix.users[node.output[0]]:
        u.input[:] = [node.input[0] if x == node.output[0] else x for x in u.input]
    expected = {"removed": [node.op_type]}
    graph.node.remove(node)
    return expected


def change_attribute(model, rng):
    graph = largest(model)
    nodes = [
        (n, a) for n in graph.node for a in n.attribute
        if (n.op_type, a.name) in NEUTRAL and (a.name != "pads" or len(set(a.ints)) > 1 or len(a.ints) >= 4)
    ]
    if not nodes:
        return None
    node, a = rng.choice(nodes)
    if a.type == onnx.AttributeProto.FLOAT:
        a.f = a.f * 2 + 0.5
    elif a.type == onnx.AttributeProto.INT:
        a.i = 1 - a.i if a.name == "count_include_pad" else (1 if a.i != 1 else 0)
    else:
        # The same sum of pads at both ends: the shape stays.
        half = len(a.ints) // 2
        if a.ints[0] > 0:
            a.ints[0] -= 1
            a.ints[half] += 1
        elif a.ints[half] > 0:
            a.ints[half] -= 1
            a.ints[0] += 1
        else:
            return change_attribute(model, rng) if rng.random() < 0.9 else None
    return {"changed": {label(node): [f"attribute {a.name}"]}}


def perturb_weight(model, rng):
    graph = largest(model)
    ix = Index(graph)
    names = [n for n in ix.floats() if ix.array(n).size >= 16 and ix.users.get(n)]
    if not names:
        return None
    name = rng.choice(names)
    array = ix.array(name).copy()
    at = rng.randrange(array.size)
    array.flat[at] += np.float32(0.25)
    ix.put(name, array)
    return {"tensors": 1, "max_abs": 0.25}


def swap_inputs(model, rng):
    graph = largest(model)
    ix = Index(graph)
    nodes = [
        n for n in graph.node
        if n.op_type in {"Add", "Mul", "Sub", "Div", "MatMul", "Concat"} and len(n.input) >= 2
        and n.input[0] != n.input[1]
        and n.input[0] not in ix.constants and n.input[1] not in ix.constants
    ]
    # Two that are computed in the same way may be swapped without any difference.
    kind = lambda name: (ix.made[name].op_type, list(ix.made[name].input)) if name in ix.made else name
    nodes = [n for n in nodes if kind(n.input[0]) != kind(n.input[1])]
    if not nodes:
        return None
    node = rng.choice(nodes)
    node.input[0], node.input[1] = node.input[1], node.input[0]
    return {"changed": {label(node): ["input 0", "input 1"]}, "types": True}


def insert_qdq(model, rng):
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    graph = largest(model)
    ix = Index(graph)
    nodes = [
        n for n in graph.node
        if n.op_type in {"Conv", "Relu", "MatMul", "Add", "Gemm", "Clip", "Sigmoid"}
        and n.output[0] not in ix.outputs and ix.users.get(n.output[0])
        and all(n.output[0] in u.input for u in ix.users[n.output[0]])
        and not any(i in ix.constants and ix.constants[i].data_type != TensorProto.FLOAT for i in n.input)
    ]
    if not nodes or opset < 10:
        return None
    node = rng.choice(nodes)
    value = node.output[0]
    graph.initializer.extend([
        numpy_helper.from_array(np.float32(0.037), "planted_scale"),
        numpy_helper.from_array(np.uint8(12), "planted_zero"),
    ])
    for u in ix.users[value]:
        u.input[:] = ["planted_dq" if x == value else x for x in u.input]
    q = helper.make_node("QuantizeLinear", [value, "planted_scale", "planted_zero"], ["planted_q"], "planted_q")
    dq = helper.make_node("DequantizeLinear", ["planted_q", "planted_scale", "planted_zero"], ["planted_dq"], "planted_dq")
    at = list(graph.node).index(node)
    nodes = list(graph.node)
    nodes[at + 1:at + 1] = [q, dq]
    del graph.node[:]
    graph.node.extend(nodes)
    return {"added": ["DequantizeLinear", "QuantizeLinear"], "new": 2}


def follow(ix, node):
    """The constants to cut, by axis, from a linear node on to the next one; None if unknown."""
    cuts = []
    if node.op_type == "Conv":
        group = next((a.i for a in node.attribute if a.name == "group"), 1)
        w = ix.array(node.input[1])
        if group != 1 or w is None:
            return None
        channels, layout = w.shape[0], "conv"
        cuts.append((node.input[1], 0))
        if len(node.input) > 2 and node.input[2]:
            cuts.append((node.input[2], 0))
    elif node.op_type == "MatMul":
        w = ix.array(node.input[1])
        if w is None or w.ndim != 2:
            return None
        channels, layout = w.shape[1], "last"
        cuts.append((node.input[1], 1))
    else:
        return None
    value = node.output[0]
    for _ in range(8):
        users = ix.users.get(value, [])
        if len(users) != 1 or value in ix.outputs:
            return None
        user = users[0]
        if user.op_type in UNARY and user.op_type != "Softmax" and user.input[0] == value:
            pass
        elif user.op_type == "BatchNormalization" and layout == "conv":
            cuts += [(x, 0) for x in user.input[1:5]]
        elif user.op_type in {"Add", "Mul", "Div"} and layout == "last":
            other = [x for x in user.input if x != value]
            bias = ix.array(other[0]) if len(other) == 1 else None
            if bias is None:
                return None
            if bias.size == channels and bias.ndim == 1:
                cuts.append((other[0], 0))
            elif bias.size != 1:
                return None
        elif user.op_type == "Conv" and layout == "conv" and user.input[0] == value:
            group = next((a.i for a in user.attribute if a.name == "group"), 1)
            if group != 1 or user.input[1] not in ix.constants:
                return None
            cuts.append((user.input[1], 1))
            break
        elif user.op_type == "MatMul" and layout == "last" and user.input[0] == value:
            if user.input[1] not in ix.constants:
                return None
            cuts.append((user.input[1], 0))
            break
        else:
            return None
        value = user.output[0]
    else:
        return None
    # A shared constant would be cut for others as well.
    if any(len(ix.users.get(name, [])) != 1 for name, _ in cuts) or channels < 5:
        return None
    if any(name not in ix.constants for name, _ in cuts):
        return None
    return channels, cuts


def drop_channels(model, rng):
    graph = largest(model)
    ix = Index(graph)
    found = [f for n in graph.node if (f := follow(ix, n))]
    if not found:
        return None
    channels, cuts = rng.choice(found)
    gone = set(rng.sample(range(channels), 3))
    kept = [i for i in range(channels) if i not in gone]
    for name, axis in cuts:
        ix.put(name, np.take(ix.array(name), kept, axis=axis))
    # The declared sizes of values in between have aged.
    del graph.value_info[:]
    return {"tensors": len(cuts), "kept": kept, "types": True}


EDITS = [remove_node, change_attribute, perturb_weight, swap_inputs, insert_qdq, drop_channels]


# --- Judging ----------------------------------------------------------------------------------------


def indices(text):
    out = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        out += range(int(first), int(last or first) + 1)
    return out


def judge(found, expected, renamed):
    """What of a diff is not as expected."""
    ops, tensors = found["operators"], found["initializers"]
    wrong = []

    def same(what, a, b):
        if a != b:
            wrong.append(f"{what}: {a} instead of {b}")

    same("interface", found["interface"], [])
    same("removed", sorted(o["op_type"] for o in ops["removed"]), sorted(expected.get("removed", [])))
    same("added", sorted(o["op_type"] for o in ops["added"]), sorted(expected.get("added", [])))
    changed = expected.get("changed", {})
    same(
        "changed",
        sorted([c["what"] for c in o["changes"]] for o in ops["changed"]),
        sorted(changed.values()),
    )
    if not renamed:
        same("changed", sorted(o["name"] for o in ops["changed"]), sorted(changed))
    same("tensors removed", tensors["removed"], [])
    same("tensors added", len(tensors["added"]), expected.get("new", 0))
    same("tensors changed", len(tensors["changed"]), expected.get("tensors", 0))
    if not expected.get("types"):
        same("types", found["types"], [])
    if "max_abs" in expected:
        for t in tensors["changed"]:
            if abs(t["max_abs"] - expected["max_abs"]) > 1e-3:
                wrong.append(f"max_abs {t['max_abs']}")
    for t in tensors["changed"] if "kept" in expected else []:
        same(f"kept of {t['name']}", [indices(k["indices"]) for k in t.get("kept", [])], [expected["kept"]])
    return wrong


def compare(paring, a, b):
    run = subprocess.run([paring, "diff", "--json", a, b], capture_output=True, text=True)
    if run.returncode not in (0, 1):
        sys.exit(f"{a} {b}: {run.stderr}")
    return run.returncode, json.loads(run.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--paring", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", help="keep the copies in this folder")
    args = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = args.keep or folder
        Path(folder).mkdir(exist_ok=True, parents=True)
        for path in args.models:
            model = onnx.load(path)
            stem = Path(path).stem
            jobs = []
            for ports in (False, True):
                name = "renamed" + ("-with-ports" if ports else "")
                jobs.append((name, disguised(model, args.seed, ports), {}, True))
            for edit in EDITS:
                edited = copied(model)
                expected = edit(edited, random.Random(args.seed))
                if expected is None:
                    print(f"{stem:26} {edit.__name__:28} no place for it")
                    continue
                jobs.append((edit.__name__, edited, expected, False))
                jobs.append((f"{edit.__name__} renamed", disguised(edited, args.seed + 1), expected, True))
            for name, copy, expected, renamed in jobs:
                other = f"{folder}/{stem}-{name.replace(' ', '-')}.onnx"
                onnx.save(copy, other)
                code, found = compare(args.paring, path, other)
                wrong = judge(found, expected, renamed)
                if code != (1 if expected else 0):
                    wrong.append(f"exit code {code}")
                failures += bool(wrong)
                print(f"{stem:26} {name:28} {'ok' if not wrong else 'WRONG'}")
                for w in wrong:
                    print(f"    {w[:300]}")
                if not args.keep:
                    Path(other).unlink()
    if failures:
        sys.exit(f"{failures} wrong")


if __name__ == "__main__":
    main()
