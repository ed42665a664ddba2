"""Removes transposes around the packed operators, which read and write channels last."""

from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript import ir

TO_NHWC = (0, 2, 3, 1)
TO_NCHW = (0, 3, 1, 2)


def _source(value: ir.Value | None, permutation: tuple[int, ...]) -> ir.Value | None:
    """The value of which this value is the transpose by this permutation, or None."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != 'Transpose' or tuple(node.attributes['perm'].as_ints()) != permutation:
        return None
    return node.inputs[0]


def _channels_last(node: ir.Node) -> list[ir.Node] | None:
    """Nodes that compute the same on channels-last maps, followed by a transpose; None if a node has no such form."""
    sources = [_source(value, TO_NCHW) for value in node.inputs]
    if node.op_type in ('Add', 'Relu') and None not in sources:
        return [ir.node(node.op_type, sources)]
    is_nearest = node.op_type == 'Resize' and node.attributes.get_string('mode', 'nearest') == 'nearest'
    if is_nearest and sources[0] is not None and node.inputs[2] is None and 'axes' not in node.attributes:
        order = ir.node('Constant', [], dict(value_ints=TO_NHWC))
        sizes = ir.node('Gather', [node.inputs[3], order.outputs[0]], dict(axis=0))
        resized = ir.node('Resize', [sources[0], None, None, sizes.outputs[0]], dict(node.attributes))
        return [order, sizes, resized]
    return None


def remove_transposes(model: ir.Model) -> None:
    """Moves transposes behind sums, ReLUs and nearest-neighbour resizing, and removes pairs that cancel.

    Args:
        model: The graph, changed in place.
    """
    graph = model.graph
    for node in graph:  # In the order of computation, including inserted nodes.
        output = node.outputs[0]
        if output.is_graph_output():
            continue
        if node.op_type == 'Transpose':
            source = _source(node.inputs[0], TO_NCHW) if _source(output, TO_NHWC) is not None else None
            if source is not None:
                output.replace_all_uses_with(source)
            continue
        nodes = _channels_last(node)
        if nodes is not None:
            back = ir.node('Transpose', [nodes[-1].outputs[0]], dict(perm=TO_NCHW))
            graph.insert_before(node, [*nodes, back])
            output.replace_all_uses_with(back.outputs[0])
    RemoveUnusedNodesPass()(model)
