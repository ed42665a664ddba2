"""A model as three parts that are traced one by one and joined to one graph.

In one piece torch would carry the sizes of the padded picture through all of the network and through all that makes the
answer, as terms that grow: a detector took minutes. Each part starts with sizes of its own.
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
        inputs, outputs: Names. Default: outputs are named ``map_0``, ``map_1``, ...

    Returns:
        The part in ONNX, and its outputs without data.
    """
    program = torch.export.export(
        part,
        tuple(arguments),
        dynamic_shapes=tuple(dynamic),
        strict=False,
        # What cannot be proven of sizes in general, such as that two ways around a block give maps of one size.
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    (node,) = program.graph.find_nodes(op='output')
    found = [output.meta['val'] for output in node.args[0]]
    with _quietly():
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table={**packed_translations(), **step_translations()},
            input_names=inputs,
            output_names=outputs or [f'map_{i}' for i in range(len(found))],
            verbose=False,
        )
    return onnx_program.model, found


def _join(parts: Sequence[ir.Model], inputs: Sequence[str]) -> ir.Model:
    """Joins parts to one graph: what one of them takes is what one before it gives under that name.

    Args:
        parts: The parts, in the order in which they run.
        inputs: Names of the inputs of the whole.
    """
    given: dict[str, ir.Value] = {}
    whole = ir.Graph([], [], nodes=[], opset_imports=dict(parts[0].graph.opset_imports), name='mmgroupnet')
    for number, part in enumerate(parts):
        graph = part.graph
        for value in list(graph.inputs):
            if value.name not in given:
                given[value.name] = value
            else:
                ir.convenience.replace_all_uses_with(value, given[value.name])
        graph.inputs.clear()
        given.update({value.name: value for value in graph.outputs})
        outputs = list(graph.outputs)
        graph.outputs.clear()
        for value in list(graph.initializers.values()):
            del graph.initializers[value.name]
            value.name = f'{number}.{value.name}'
            whole.register_initializer(value)
        nodes = list(graph)
        graph.remove(nodes)
        for node in nodes:
            for value in node.outputs:
                # Names of sizes have another meaning in each part; ONNX Runtime finds out shapes itself.
                value.shape = None
        whole.extend(nodes)
        whole.opset_imports.update(graph.opset_imports)
    whole.inputs.extend(given[name] for name in inputs)
    whole.outputs.extend(outputs)
    return ir.Model(whole, ir_version=parts[0].ir_version, producer_name='mmgroupnet')


def _examples(maps: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[dict, ...]]:
    """Maps of the shapes that a network gives, and their dynamic dimensions.

    Only those that are always of one size are so here: by chance alike ones would be taken for such.
    """
    sizes = {str(each.shape[2:]): each.shape[2:] for each in maps}
    # All odd, no two alike.
    chosen = {name: [7 + 4 * i, 9 + 4 * i][: len(size)] for i, (name, size) in enumerate(sizes.items())}
    examples = tuple(torch.zeros(2, each.shape[1], *chosen[str(each.shape[2:])]) for each in maps)
    return examples, tuple({i: _DYNAMIC for i in range(each.dim()) if i != 1} for each in examples)


def trace(graph: Graph) -> ir.Model:
    """Traces a model.

    Args:
        graph: The model.

    Returns:
        Its graph in ONNX, of dynamic batch size, height and width. Weights that layers share are stored once.
    """
    image = torch.zeros(2, *_TRACED_SIZE, 3, dtype=torch.uint8)
    free = {0: _DYNAMIC, 1: _DYNAMIC, 2: _DYNAMIC}
    parts = [_trace(graph.preprocessing, [image], [free], ['image'], ['x'])[0]]
    x = torch.zeros(2, 3, *_TRACED_SIZE)
    network, maps = _trace(graph.network, [x], [{0: _DYNAMIC, 2: _DYNAMIC, 3: _DYNAMIC}], ['x'])
    parts.append(network)
    if graph.answer is not None:
        examples, dynamic = _examples(maps)
        names = [f'map_{i}' for i in range(len(maps))]
        sizes = [torch.tensor(_TRACED_SIZE)] if 'size' in graph.inputs else []
        parts.append(
            _trace(
                graph.answer,
                [image, x, examples, *sizes],
                [free, {0: _DYNAMIC, 2: _DYNAMIC, 3: _DYNAMIC}, dynamic, *[None for _ in sizes]],
                ['image', 'x', *names, *(['size'] if sizes else [])],
                graph.answer.outputs,
            )[0]
        )
    model = _join(parts, graph.inputs)
    onnxscript.optimizer.optimize(model)
    DeduplicateInitializersPass(size_limit=_NO_LIMIT)(model)
    # Also names of this machine's files.
    ClearMetadataAndDocStringPass()(model)
    return model
