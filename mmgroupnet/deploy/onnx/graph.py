"""A model as one graph of ONNX.

Its parts (preprocessing, network, and decoding, which is called ``answer``) are traced separately, each with its own
symbolic sizes, and joined afterwards. If they were traced as one chain, torch would carry the size of the padded
picture through the network and the decoding as ever longer terms: a detector took minutes.
"""

import copy
import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

import torch
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    DeduplicateInitializersPass,
    IdentityEliminationPass,
)
from onnxscript import ir
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mmgroupnet.deploy.onnx.layout import remove_transposes
from mmgroupnet.deploy.onnx.network import Network
from mmgroupnet.deploy.onnx.norms import rewrite_norms
from mmgroupnet.deploy.onnx.operators import OPSET, packed_translations
from mmgroupnet.deploy.onnx.preprocessing import read_preprocessor
from mmgroupnet.deploy.onnx.steps import step_translations
from mmgroupnet.errors import UserError, summary

# For each task, the module and the class that computes the predictions.
_ANSWERS = dict(
    detection=('mmgroupnet.deploy.onnx.detection', 'Detections'),
    segmentation=('mmgroupnet.deploy.onnx.segmentation', 'ClassMap'),
    classification=('mmgroupnet.deploy.onnx.classification', 'Scores'),
)
# Height and width of the pictures with which parts are traced. They are not multiples of a stride, so the graph
# contains nothing that holds only for such multiples.
TRACED_SIZE = (131, 163)
_NO_LIMIT = 1 << 62


class Graph(nn.Module):
    """A model from the picture to its predictions.

    Args:
        model: A model of mmdet, mmseg or mmpretrain, packed or without binary layers. It is not changed.
        raw: Returns the network's maps instead of predictions. Default: False.
        scores: A segmentor returns its scores, too. Default: False.

    Attributes:
        task: As in docs/onnx_file.md.

    Shape: as described in docs/onnx_file.md.

    Raises:
        UserError: If the graph does not support a part of the model.
    """

    def __init__(self, model: nn.Module, raw: bool = False, scores: bool = False) -> None:
        super().__init__()
        task, self.preprocessing = read_preprocessor(model.data_preprocessor)
        if scores and (raw or task != 'segmentation'):
            raise UserError(f'scores=True (--scores) is for class maps, not for {"maps" if raw else task}')
        self.task = 'maps' if raw else task
        model = copy.deepcopy(model).cpu().float()
        rewrite_norms(model)
        answers, name = _ANSWERS[task]
        module = import_module(answers)
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
        """Names of the outputs; None for any number of maps."""
        return None if self.answer is None else self.answer.outputs

    def forward(self, image: Tensor, *size: Tensor) -> tuple[Tensor, ...]:
        x = self.preprocessing(image)
        maps = self.network(x)
        return maps if self.answer is None else self.answer(image, x, maps, *size)


@contextmanager
def _quietly() -> Iterator[None]:
    """A context without torch's warnings that it does not know the types of our translations' arguments."""
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Parts(nn.Module):
    """The parts of a graph in parallel: no part reads the output of another."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.preprocessing = graph.preprocessing
        self.network = graph.network
        self.answer = graph.answer

    def forward(
        self, image: Tensor, x: Tensor, maps: tuple[Tensor, ...], size: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        prepared = self.preprocessing(image)
        answer = () if self.answer is None else self.answer(image, prepared, maps, *size)
        return prepared, *self.network(x), *answer


def _shapes_of_maps(network: nn.Module) -> list[tuple[int, ...]]:
    """Shapes of a network's maps for a large picture, so that different levels have different shapes.

    Raises:
        UserError: If the network does not take a picture of three channels.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            return [tuple(each.shape) for each in network(torch.zeros(2, 3, 1031, 1283))]
        except RuntimeError as error:
            if 'but got 3 channels' not in str(error):
                raise
            raise UserError(
                f'the exporter needs a model that takes pictures of three channels ({summary(error)})'
            ) from error


def _examples(shapes: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
    """Small maps for tracing the decoding; two have the same size only if they always do."""
    sizes = list(dict.fromkeys(shape[2:] for shape in shapes))
    chosen = {size: [7 + 4 * i, 9 + 4 * i][: len(size)] for i, size in enumerate(sizes)}  # No two numbers are equal.
    return tuple(torch.zeros(*shape[:2], *chosen[shape[2:]]) for shape in shapes)


def _dynamic(example: Tensor, fixed: int) -> dict:
    """The dynamic dimensions of an input: all but the axis ``fixed``."""
    return {axis: torch.export.Dim.DYNAMIC for axis in range(example.dim()) if axis != fixed}


@torch.no_grad()
def _export(graph: Graph) -> tuple[ir.Model, int]:
    """The parts in ONNX, and the number of the network's maps.

    Inputs are ``image``, ``network.x``, ``answer.map_0``, ... and ``size``, outputs ``x``, ``map_0``, ... and those of
    the answer.
    """
    image = torch.zeros(2, *TRACED_SIZE, 3, dtype=torch.uint8)
    x = torch.zeros(2, 3, *TRACED_SIZE)
    shapes = _shapes_of_maps(graph.network)
    maps = () if graph.answer is None else _examples(shapes)
    size = (torch.tensor(TRACED_SIZE),) if 'size' in graph.inputs else ()
    program = torch.export.export(
        _Parts(graph),
        (image, x, maps, size),
        dynamic_shapes=(
            _dynamic(image, fixed=3),
            _dynamic(x, fixed=1),
            tuple(_dynamic(each, fixed=1) for each in maps),
            tuple(None for _ in size),
        ),
        strict=False,
        # Facts that cannot be proven for all sizes, for example that both paths around a block give maps of one size.
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    names = [f'map_{i}' for i in range(len(shapes))]
    with _quietly():
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table={**packed_translations(), **step_translations()},
            input_names=['image', 'network.x', *[f'answer.{name}' for name in names[: len(maps)]], *graph.inputs[1:]],
            output_names=['x', *names, *(graph.outputs or ())],
            verbose=False,
        )
    assert onnx_program is not None  # the dynamo exporter returns one
    return onnx_program.model, len(shapes)


def _name_sizes(value: ir.Value) -> None:
    """Names the dynamic dimensions of an input or output; only the batch size has the same name everywhere."""
    value.shape = ir.Shape(
        [
            size if isinstance(size, int) else 'batch' if axis == 0 else f'{value.name}_{axis}'
            for axis, size in enumerate(value.shape)
        ]
    )


def _join(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Joins the parts of a graph: the input ``PART.NAME`` of a part becomes the output ``NAME`` of another.

    Args:
        model: The graph, changed in place.
        inputs, outputs: Names of the inputs and outputs of the whole graph.
    """
    graph = model.graph
    given = {value.name: value for value in graph.outputs}
    ends = {value.name: value for value in graph.inputs} | given
    taken = [value for value in graph.inputs if value.name not in inputs]
    graph.inputs.clear()
    graph.outputs.clear()
    for value in taken:
        value.replace_all_uses_with(given[value.name.partition('.')[2]])
    for node in graph:
        for value in node.outputs:
            # The names of sizes come from separate parts and do not match; ONNX Runtime infers the sizes itself.
            if value.name not in outputs:
                value.shape = None
    graph.inputs.extend(ends[name] for name in inputs)
    graph.outputs.extend(ends[name] for name in outputs)
    for value in (*graph.inputs, *graph.outputs):
        _name_sizes(value)
    graph.sort()


def _is_refusal(error: Exception) -> bool:
    """Whether an error comes from torch's exporter and not from a bug in this package."""
    source: BaseException = error
    while source.__cause__ is not None:
        source = source.__cause__
    *_, (frame, _) = traceback.walk_tb(source.__traceback__)
    return type(error).__module__.startswith('torch.') and not frame.f_globals['__name__'].startswith('mmgroupnet.')


def trace(graph: Graph) -> ir.Model:
    """Traces a model.

    Args:
        graph: The model.

    Returns:
        Its graph in ONNX, of dynamic batch size, height and width. Weights that layers share are stored once.

    Raises:
        UserError: If torch's exporter refuses it.
    """
    try:
        model, number = _export(graph)
    except Exception as error:  # Torch raises many types, from its symbols, its tracer and its translations.
        if not _is_refusal(error):
            raise
        reason = str(error).strip().partition('\n')[0]
        raise UserError(
            f"model={type(graph.network.model).__name__}: torch's exporter cannot trace it ({type(error).__name__}: "
            f'{reason})'
        ) from error
    _join(model, graph.inputs, graph.outputs or [f'map_{i}' for i in range(number)])
    IdentityEliminationPass()(model)
    remove_transposes(model)
    DeduplicateInitializersPass(size_limit=_NO_LIMIT)(model)
    # It also holds file names of this machine.
    ClearMetadataAndDocStringPass()(model)
    model.producer_name = 'mmgroupnet'
    return model
