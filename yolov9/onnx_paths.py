"""Which nodes of an ONNX graph lie behind, and which before, its convolutions. Needs no package but the given nodes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import NodeProto


def reached(nodes: Sequence[NodeProto], kinds: Collection[str]) -> set[int]:
    """Positions of the nodes, in topological order, that a node of these operators leads to."""
    tensors: set[str] = set()
    found = set()
    for i, node in enumerate(nodes):
        if tensors.intersection(node.input):
            found.add(i)
        if i in found or node.op_type in kinds:
            tensors.update(node.output)
    return found


def leading(nodes: Sequence[NodeProto], kinds: Collection[str]) -> set[int]:
    """Positions of the nodes, in topological order, that lead to a node of these operators."""
    tensors: set[str] = set()
    found = set()
    for i in reversed(range(len(nodes))):
        if tensors.intersection(nodes[i].output):
            found.add(i)
        if i in found or nodes[i].op_type in kinds:
            tensors.update(nodes[i].input)
    return found
