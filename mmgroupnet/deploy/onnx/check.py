"""Checks of a written file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch

from mmgroupnet.deploy.onnx.graph import Graph
from mmgroupnet.deploy.onnx.operators import DOMAIN, registered_schemas

if TYPE_CHECKING:  # onnxruntime may not be installed.
    from onnxruntime import InferenceSession


@dataclass(frozen=True)
class Comparison:
    """A comparison of the file in ONNX Runtime with the model in torch, on one random picture.

    Args:
        problem: Why there is no comparison; None if there is one.
        shapes: The shapes of each output in torch and in ONNX Runtime.
        differences: The largest difference of each output that has the same shape in both.
    """

    problem: str | None = None
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.problem is not None:
            return f'not compared with the model: {self.problem}'
        texts = []
        for name, (of_model, of_file) in self.shapes.items():
            shape = 'x'.join(map(str, of_file))
            if name in self.differences:
                texts.append(f'{name} ({shape}) {self.differences[name]:.1e}')
            else:
                texts.append(f'{name} are {shape} in place of {"x".join(map(str, of_model))}')
        return f'largest difference from the model on a random picture: {", ".join(texts)}'


def _session(path: Path) -> 'InferenceSession':
    """A session of ONNX Runtime, with the packed operators if the graph has them.

    Raises:
        ImportError: If a package is not installed.
        RuntimeError: If the operators or the file cannot be loaded.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if any(opset.domain == DOMAIN for opset in onnx.load(path, load_external_data=False).opset_import):
        import mmgroupnet_runtime

        options.register_custom_ops_library(str(mmgroupnet_runtime.library_path()))
    return onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])


def random_picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture of soft patches and noise, ``(1, height, width, 3)``; networks react to it more than to noise alone."""
    generator = np.random.default_rng(seed)
    patches = np.kron(generator.integers(0, 230, (-(-height // 16), -(-width // 16), 3)), np.ones((16, 16, 1), int))
    noise = generator.integers(0, 26, (height, width, 3))
    return (patches[:height, :width] + noise).astype(np.uint8)[np.newaxis]


def check(path: Path, graph: Graph, size: tuple[int, int]) -> Comparison:
    """Checks a file by onnx's own rules, and compares its outputs in ONNX Runtime with the model's.

    Args:
        path: The file.
        graph: The module that it was traced from.
        size: Height and width of the picture.

    Returns:
        The comparison.

    Raises:
        onnx.checker.ValidationError: If the file breaks the rules of ONNX.
    """
    with registered_schemas():
        onnx.checker.check_model(str(path))
    try:
        session = _session(path)
    except Exception as error:  # ONNX Runtime raises many types; the file may still be good.
        return Comparison(problem=f'{type(error).__name__}: {error}')
    given = dict(image=random_picture(*size), size=np.array(size))
    given = {name: given[name] for name in graph.inputs}
    with torch.no_grad():
        of_model = [output.numpy() for output in graph(*map(torch.from_numpy, given.values()))]
    of_file = session.run(None, given)
    names = [output.name for output in session.get_outputs()]
    pairs = dict(zip(names, zip(of_model, of_file, strict=True), strict=True))
    return Comparison(
        shapes={name: (a.shape, b.shape) for name, (a, b) in pairs.items()},
        differences={
            name: float(np.abs(a.astype(np.float64) - b).max(initial=0))
            for name, (a, b) in pairs.items()
            if a.shape == b.shape
        },
    )
