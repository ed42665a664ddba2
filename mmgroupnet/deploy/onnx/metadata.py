"""The metadata of an .onnx file, see docs/onnx_file.md."""

import hashlib
import json
from collections.abc import Sequence

from onnxscript import ir

from mmgroupnet.version import __version__

KEY = 'mmgroupnet'
FORMAT = 1


def hash_weights(model: ir.Model) -> str:
    """sha256 of all initializers: name, dtype, shape and bytes, in the order of their names."""
    digest = hashlib.sha256()
    initializers = model.graph.initializers
    for name in sorted(initializers):
        value = initializers[name].const_value.numpy()
        digest.update(repr((name, str(value.dtype), value.shape)).encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def write_metadata(
    model: ir.Model,
    task: str,
    classes: Sequence[str] | None,
    palette: Sequence[Sequence[int]] | None,
    resize: Sequence[dict] | None,
) -> dict:
    """Writes the metadata of a finished graph into it.

    Args:
        model: The graph, changed in place.
        task: ``detection``, ``segmentation``, ``classification`` or ``maps``.
        classes, palette: As in the checkpoint, or None.
        resize: Steps of the resize rule, or None if there is no rule.

    Returns:
        The metadata.
    """
    metadata = dict(
        format=FORMAT,
        version=__version__,
        task=task,
        classes=None if classes is None else [str(name) for name in classes],
        palette=None if palette is None else [[int(value) for value in colour] for colour in palette],
        resize=None if resize is None else list(resize),
        weights_sha256=hash_weights(model),
    )
    model.metadata_props[KEY] = json.dumps(metadata)
    return metadata
