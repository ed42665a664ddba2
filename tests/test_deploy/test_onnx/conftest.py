"""A fixture that several tests of .onnx files share, since an export takes seconds."""

from unittest import mock

import numpy as np
import pytest

from mmgroupnet.deploy import pack
from mmgroupnet.deploy.onnx import export
from tests.onnx_files import CLASSES, RESIZE, binary_fcos
from tests.operators import build_operators


@pytest.fixture(scope='session')
def written(tmp_path_factory):
    """A packed detector, the result of its export, and its .onnx file."""
    model = pack(binary_fcos())
    path = tmp_path_factory.mktemp('written') / 'new' / 'model.onnx'
    with mock.patch('mmgroupnet_runtime.library_path', build_operators):
        exported = export(model, path, classes=('a', 'b', 'c'), palette=np.array([(1, 2, 3)] * CLASSES), resize=RESIZE)
    return model, exported, path
