"""Steps of postprocessing: known results, and equal results in ONNX Runtime and torch, also for equal scores."""

import numpy as np
import pytest
import torch
from torch import nn

from mmgroupnet.deploy.onnx.steps import NO_SCORE, best_entries, resize_to, step_translations, suppress
from tests.onnx_files import run


class Step(nn.Module):
    """A model of one step."""

    def __init__(self, step, *options):
        super().__init__()
        self.step = step
        self.options = options

    def forward(self, *inputs):
        return self.step(*inputs, *self.options)


@pytest.fixture(scope='module')
def onnx_step(tmp_path_factory):
    """A function that writes a step to a file and returns a function that runs the file."""

    def write(step, options, examples, **dynamic):
        path = tmp_path_factory.mktemp('step') / f'{step._name}.onnx'
        dynamic = {name: dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for name, axes in dynamic.items()}
        program = torch.onnx.export(
            Step(step, *options),
            examples,
            dynamo=True,
            opset_version=18,
            input_names=list(dynamic),
            dynamic_shapes=[tuple(dynamic.values())],
            custom_translation_table=step_translations(),
            verbose=False,
        )
        program.save(path)
        return lambda *inputs: list(
            run(path, **dict(zip(dynamic, (each.numpy() for each in inputs), strict=True))).values()
        )

    return write


def assert_equal(found, expected):
    for each, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(each, other.numpy())


def test_the_first_of_equal_entries_is_the_best(onnx_step):
    scores = torch.tensor([[0.5, 0.25, 0.75, 0.5, 0.25, 0.5], [0, 0, 0, 0, 0, 0]])
    assert [each.tolist() for each in best_entries(scores, 3)] == [
        [[0.75, 0.5, 0.5], [0, 0, 0]],
        [[2, 0, 3], [0, 1, 2]],
    ]
    in_onnx = onnx_step(best_entries, (40,), (scores,), scores=(0, 1))
    # Many scores are equal. At most 40 scores of a row are selected; rows have fewer scores than that, as many, or
    # more.
    for shape in ((1, 7), (3, 40), (2, 2000)):
        scores = torch.randint(0, 5, shape, generator=torch.Generator().manual_seed(0)) / 4
        assert_equal(in_onnx(scores), best_entries(scores, 40))


def test_suppression(onnx_step):
    box, near, far = [0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]
    boxes = torch.tensor([[box, near, far, far], [box, near, far, far]], dtype=torch.float32)
    scores = torch.tensor([[0.5, 0.75, 0.5, 0.5], [0.5, NO_SCORE, NO_SCORE, NO_SCORE]])
    assert suppress(boxes, scores, 0.5, 3).tolist() == [[1, 2], [0, -1]]
    assert suppress(boxes, scores, 0.95, 3).tolist() == [[1, 0, 2], [0, -1, -1]]
    nothing = torch.full_like(scores, NO_SCORE)
    assert suppress(boxes, nothing, 0.5, 3).shape == (2, 0)
    in_onnx = onnx_step(suppress, (0.5, 20), (boxes, scores), boxes=(0, 1), scores=(0, 1))
    for case in ((boxes, scores), (boxes, nothing), (boxes[:1], nothing[:1])):
        assert_equal(in_onnx(*case), [suppress(*case, 0.5, 20)])
    generator = torch.Generator().manual_seed(0)
    for seed_shape in ((1, 30), (3, 200), (2, 1000)):
        corners = torch.randint(0, 60, (*seed_shape, 2), generator=generator).float()
        sides = torch.randint(0, 20, (*seed_shape, 2), generator=generator)  # Some boxes are empty.
        scores = torch.randint(-4, 5, seed_shape, generator=generator) / 4
        scores = torch.where(scores < 0, NO_SCORE, scores)
        boxes = torch.cat([corners, corners + sides], -1)
        expected = suppress(boxes, scores, 0.5, 20)
        assert expected.shape[1] > 3
        assert_equal(in_onnx(boxes, scores), [expected])


@pytest.mark.parametrize('align_corners', [False, True])
def test_resizing_to_a_size_that_is_an_input(onnx_step, align_corners):
    x, size = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(0)), torch.tensor([5, 20])
    expected = nn.functional.interpolate(x, (5, 20), mode='bilinear', align_corners=align_corners)
    assert torch.equal(resize_to(x, size, align_corners), expected)
    in_onnx = onnx_step(resize_to, (align_corners,), (x, size), x=(0, 2, 3), size=())
    for height, width in ((5, 20), (7, 9), (1, 1), (31, 2)):
        size = torch.tensor([height, width])
        (found,) = in_onnx(x, size)
        np.testing.assert_allclose(found, resize_to(x, size, align_corners).numpy(), atol=1e-5)
