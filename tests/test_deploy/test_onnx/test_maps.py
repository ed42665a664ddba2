"""``raw=True``: exports the output maps of a model in place of its predictions."""

import numpy as np
import torch

from mmgroupnet.deploy.onnx import export
from mmgroupnet.deploy.onnx.graph import Graph
from tests.onnx_files import FCOS, detector, pictures, run


def test_the_maps_of_a_head_in_its_order(tmp_path):
    model = detector(FCOS)
    exported = export(model, tmp_path / 'maps.onnx', raw=True)
    assert exported.metadata['task'] == 'maps'
    images = pictures(1, 47, 75)
    data = model.data_preprocessor(dict(inputs=[torch.from_numpy(images[0]).permute(2, 0, 1)], data_samples=None))
    with torch.no_grad():
        expected = [each for kind in model.bbox_head(model.extract_feat(data['inputs'])) for each in kind]
    found = run(tmp_path / 'maps.onnx', image=images)
    assert list(found) == [f'map_{i}' for i in range(6)]
    for value, each in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(value, each.numpy(), atol=1e-4)


def test_without_a_head_that_is_covered_the_maps_in_front_of_it():
    model = detector(FCOS)
    expected = model.extract_feat
    model.bbox_head = torch.nn.Identity()
    graph = Graph(model, raw=True)
    images = torch.from_numpy(pictures())
    with torch.no_grad():
        for found, each in zip(graph(images), expected(graph.preprocessing(images)), strict=True):
            assert torch.equal(found, each)
