"""A model as two parts that are traced one by one and joined to one graph: the network, and what is around it.

In one piece torch would carry the size of the padded picture through all of the network and all that makes the answer,
as terms that grow: a detector took minutes. So each part starts with sizes of its own.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

import onnxscript.optimizer
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, DeduplicateInitializersPass
from onnxscript import ir
from torch import Tensor, nn

from mmgroupnet.deploy.onnx.errors import NotExportable
from mmgroupnet.deploy.onnx.layout import remove_transposes
from mmgroupnet.deploy.onnx.network import Network
from mmgroupnet.deploy.onnx.norms import rewrite_norms
from mmgroupnet.deploy.onnx.operators import OPSET, packed_translations
from mmgroupnet.deploy.onnx.preprocessing import read_preprocessor
from mmgroupnet.deploy.onnx.steps import step_translations

# Of each task: the module and the class that makes its answer.
_ANSWERS = dict(
    detection=('mmgroupnet.deploy.onnx.detection', 'Detections'),
    segmentation=('mmgroupnet.deploy.onnx.segmentation', 'ClassMap'),
    classification=('mmgroupnet.deploy.onnx.classification', 'Scores'),
)
# Height and width of the pictures with which parts are traced: no multiples of a stride, so that nothing that holds for
# such alone gets into the graph.
_TRACED_SIZE = (131, 163)
_NO_LIMIT = 1 << 62
_DYNAMIC = torch.export.Dim.DYNAMIC


class Graph(nn.Module):
    """A model from the picture to its answer.

    Args:
        model: A model of mmdet, mmseg or mmpretrain, packed or without binary layers. It is left as it is.
        raw: The network's maps in place of the answer. Default: False.
        scores: A segmentor gives its scores, too. Default: False.

    Attributes:
        task: As in docs/onnx_file.md.

    Shape: as described in docs/onnx_file.md.

    Raises:
        NotExportable: If the graph has no counterpart for a part of the model.
    """

    def __init__(self, model: nn.Module, raw: bool = False, scores: bool = False) -> None:
        super().__init__()
        task, self.preprocessing = read_preprocessor(model.data_preprocessor)
        if scores and (raw or task != 'segmentation'):
            raise NotExportable(f'scores=True (--scores) is for class maps, not for {"maps" if raw else task}')
        self.task = 'maps' if raw else task
        model = copy.deepcopy(model)
        rewrite_norms(model)
        module, name = _ANSWERS[task]
        module = import_module(module)
        options = dict(with_scores=True) if scores else {}
        self.answer = None if raw else getattr(module, name)(model, **options)
        self.network = Network(model, module.head_of(model))
        self.eval()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return ('image', 'size') if self.task == 'segmentation' else ('image',)

    @property
    def outputs(self) -> tuple[str, ...] | None:
        """Names of the outputs; None: the maps, however many."""
        return None if self.answer is None else self.answer.outputs

    def forward(self, image: Tensor, *size: Tensor) -> tuple[Tensor, ...]:
        x = self.preprocessing(image)
        maps = self.network(x)
        return maps if self.answer is None else self.answer(image, x, maps, *size)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's warnings that it does not know the types of our translations' arguments."""
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@torch.no_grad()
def _trace(
    part: nn.Module, arguments: Sequence, dynamic: Sequence, inputs: Sequence[str], outputs: Sequence[str] | None = None
) -> tuple[ir.Model, list[Tensor]]:
    """Traces a part.

    Args:
        part: The module.
        arguments: Examples of its arguments.
        dynamic: Their dynamic dimensions, as torch takes them.
        inputs: Names.
        outputs: Names. Default: ``map_0``, ``map_1``, ...

    Returns:
        The part in ONNX, and its outputs without data.

    Raises:
        NotExportable: If torch cannot trace or translate it.
    """
    try:
        program, model = _export(part, arguments, dynamic, inputs, outputs)
    except Exception as error:  # Torch has many, of its symbols, its tracer and its translations.
        reason = str(error).strip().partition('\n')[0]
        raise NotExportable(
            f'{type(part).__name__} of the model cannot be traced by torch.export ({type(error).__name__}: {reason})'
        ) from error
    (node,) = program.graph.find_nodes(op='output')
    return model, [output.meta['val'] for output in node.args[0]]


def _export(
    part: nn.Module, arguments: Sequence, dynamic: Sequence, inputs: Sequence[str], outputs: Sequence[str] | None
) -> tuple[torch.export.ExportedProgram, ir.Model]:
    """The part in torch's terms and in those of ONNX; the arguments are those of :func:`_trace`."""
    program = torch.export.export(
        part,
        tuple(arguments),
        dynamic_shapes=tuple(dynamic),
        strict=False,
        # What cannot be proven of sizes in general, such as that two ways around a block give maps of one size.
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    number = len(program.graph_signature.user_outputs)
    with _quietly():
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table={**packed_translations(), **step_translations()},
            input_names=inputs,
            output_names=outputs or [f'map_{i}' for i in range(number)],
            verbose=False,
        )
    return program, onnx_program.model


def _named_shape(value: ir.Value) -> ir.Shape:
    """Shape of an input or output, with names of its own for what is dynamic; only the batch size is that of all."""
    return ir.Shape(
        [
            size if isinstance(size, int) else 'batch' if axis == 0 else f'{value.name}_{axis}'
            for axis, size in enumerate(value.shape)
        ]
    )


def _join(network: ir.Model, surroundings: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    """Joins two parts to one graph: what one of them takes is what the other gives under that name, or an input.

    Args:
        network, surroundings: The parts; they are used up.
        inputs, outputs: Names of the inputs and outputs of the whole.
    """
    parts = [network.graph, surroundings.graph]
    given = {value.name: value for part in parts for value in part.outputs}
    given.update({name: next(value for value in parts[1].inputs if value.name == name) for name in inputs})
    ends = [given[name] for name in (*inputs, *outputs)]
    shapes = {value: _named_shape(value) for value in ends}
    whole = ir.Graph([], [], nodes=[], opset_imports={}, name='mmgroupnet')
    for prefix, part in zip(('network', 'around'), parts, strict=True):
        for value in part.inputs:
            if value is not given[value.name]:
                value.replace_all_uses_with(given[value.name])
        part.inputs.clear()
        part.outputs.clear()
        for name, value in list(part.initializers.items()):
            del part.initializers[name]
            value.name = f'{prefix}.{name}'
            whole.register_initializer(value)
        nodes = list(part)
        part.remove(nodes)
        whole.extend(nodes)
        whole.opset_imports.update(part.opset_imports)
        for value in (value for node in nodes for value in node.outputs):
            # Names of sizes have another meaning in each part; ONNX Runtime finds out shapes itself.
            value.shape = None
    for value, shape in shapes.items():
        value.shape = shape
    whole.inputs.extend(ends[: len(inputs)])
    whole.outputs.extend(ends[len(inputs) :])
    whole.sort()
    return ir.Model(whole, ir_version=network.ir_version, producer_name='mmgroupnet')


def _examples(maps: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[dict, ...]]:
    """Maps of the shapes that a network gives, and their dynamic dimensions.

    Only those that are always of one size are so here: by chance alike ones would be taken for such.
    """
    sizes = {str(each.shape[2:]): each.shape[2:] for each in maps}
    # All odd, no two alike.
    chosen = {name: [7 + 4 * i, 9 + 4 * i][: len(size)] for i, (name, size) in enumerate(sizes.items())}
    examples = tuple(torch.zeros(2, each.shape[1], *chosen[str(each.shape[2:])]) for each in maps)
    return examples, tuple({i: _DYNAMIC for i in range(each.dim()) if i != 1} for each in examples)


class _Surroundings(nn.Module):
    """All of a graph but the network, whose maps it takes as if it knew nothing of their sizes."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.preprocessing = graph.preprocessing
        self.answer = graph.answer

    def forward(self, image: Tensor, maps: tuple[Tensor, ...], *size: Tensor) -> tuple[Tensor, ...]:
        x = self.preprocessing(image)
        return (x,) if self.answer is None else (x, *self.answer(image, x, maps, *size))


def trace(graph: Graph) -> ir.Model:
    """Traces a model.

    Args:
        graph: The model.

    Returns:
        Its graph in ONNX, of dynamic batch size, height and width. Weights that layers share are stored once.
    """
    x = torch.zeros(2, 3, *_TRACED_SIZE)
    network, maps = _trace(graph.network, [x], [{0: _DYNAMIC, 2: _DYNAMIC, 3: _DYNAMIC}], ['x'])
    names = [value.name for value in network.graph.outputs]
    outputs = graph.outputs or names
    examples, dynamic = ((), ()) if graph.answer is None else _examples(maps)
    image = torch.zeros(2, *_TRACED_SIZE, 3, dtype=torch.uint8)
    size = [torch.tensor(_TRACED_SIZE)] if 'size' in graph.inputs else []
    surroundings, _ = _trace(
        _Surroundings(graph),
        [image, examples, *size],
        [{0: _DYNAMIC, 1: _DYNAMIC, 2: _DYNAMIC}, dynamic, *[None for _ in size]],
        ['image', *names[: len(examples)], *graph.inputs[1:]],
        ['x', *(graph.outputs or ())],
    )
    model = _join(network, surroundings, graph.inputs, outputs)
    onnxscript.optimizer.optimize(model)
    remove_transposes(model)
    DeduplicateInitializersPass(size_limit=_NO_LIMIT)(model)
    # Also names of this machine's files.
    ClearMetadataAndDocStringPass()(model)
    return model
