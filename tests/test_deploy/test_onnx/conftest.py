"""What several tests of .onnx files share: an export takes seconds."""

import numpy as np
import pytest

from mmgroupnet.deploy import pack
from mmgroupnet.deploy.onnx import export
from tests.onnx_files import CLASSES, RESIZE, binary_fcos


@pytest.fixture(scope='session')
def written(tmp_path_factory):
    """A packed detector, what was exported, and its file."""
    model = pack(binary_fcos())
    path = tmp_path_factory.mktemp('written') / 'new' / 'model.onnx'
    exported = export(model, path, classes=('a', 'b', 'c'), palette=np.array([(1, 2, 3)] * CLASSES), resize=RESIZE)
    return model, exported, path
