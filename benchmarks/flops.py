"""Floating-point operations of a traced function: its convolutions and matrix products."""

from __future__ import annotations

import math

LOOPS = {"While", "StatelessWhile", "PartitionedCall", "StatefulPartitionedCall"}


def count(function) -> int:
    """Operations (2 per multiply-add) of a `ConcreteFunction`, gradients included.

    Counted are products and convolutions that an output or a side effect needs; everything else a
    world model does is less than a hundredth of them.

    Raises:
        ValueError: a loop, a call or a shape that is only known when it runs; trace with
            `unroll: true` and static batches.
    """
    graph = function.graph
    wanted = [x.op for x in graph.outputs] + list(graph.control_outputs)
    seen = set()
    while wanted:
        op = wanted.pop()
        if op not in seen:
            seen.add(op)
            wanted += [x.op for x in op.inputs] + list(op.control_inputs)
    return sum(_operations(op) for op in seen)


def _operations(op) -> int:
    if op.type in LOOPS:
        raise ValueError(f"{op.name}: a {op.type} cannot be counted")
    if op.type in ("MatMul", "BatchMatMulV2"):
        transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
        inner = _shape(op, op.inputs[0])[-2 if transposed else -1]
        return 2 * inner * math.prod(_shape(op, op.outputs[0]))
    if op.type == "Conv2D":
        height, width, channels, _ = _shape(op, op.inputs[1])
        return 2 * height * width * channels * math.prod(_shape(op, op.outputs[0]))
    if op.type in ("Conv2DBackpropInput", "Conv2DBackpropFilter"):
        kernel = op.inputs[1] if op.type == "Conv2DBackpropInput" else op.outputs[0]
        height, width, channels, _ = _shape(op, kernel)
        return 2 * height * width * channels * math.prod(_shape(op, op.inputs[2]))
    return 0


def _shape(op, tensor) -> list[int]:
    shape = tensor.shape
    if not shape.is_fully_defined():
        raise ValueError(f"{op.name}: shape {shape} is only known when it runs")
    return shape.as_list()
