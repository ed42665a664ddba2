"""Batteries: abstract test classes with the same checks for every backbone, neck and head.

A new part is tested by a class with its config and the shapes of its inputs::

    class TestBinaryFPN(NeckBattery):
        config = dict(type='mmgroupnet.BinaryFPN', in_channels=[64, 128, 256], out_channels=32, num_outs=5, num_bases=2)
        input_shapes = [(64, 17, 23), (128, 9, 12), (256, 5, 6)]
"""

import copy
import io
from abc import ABC, abstractmethod
from collections.abc import Sequence

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

from tests.programs import Maps, export, trace

Shape = tuple[int, int, int]  # (C, H, W)


def statistics(part: nn.Module) -> dict[str, Tensor]:
    """Copies of all running statistics of a part, by name."""
    return {
        name: buffer.clone() for name, buffer in part.named_buffers() if name.endswith(('running_mean', 'running_var'))
    }


def project(outs: Sequence[Tensor]) -> Tensor:
    """A random projection of the outputs: its gradient reaches every entry of every output."""
    generator = torch.Generator().manual_seed(0)
    return sum((out * torch.randn(out.shape, generator=generator)).sum() for out in outs)


def assert_finite_gradients(part: nn.Module) -> None:
    """Checks that all parameters that require a gradient have a finite one."""
    for name, parameter in part.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f'{name} gets no gradient'
            assert parameter.grad.isfinite().all(), f'the gradient of {name} is not finite'


def assert_all_equal(outs: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(outs) == len(expected)
    for out, wanted in zip(outs, expected, strict=True):
        assert torch.equal(out, wanted)


def detection_samples(boxes: Sequence[Sequence[Sequence[float]]], shape: tuple[int, int]) -> list[DetDataSample]:
    """One data sample per image, whose list of ``boxes`` may be empty; the labels are 0, 1, 0, 1, ..."""
    samples = []
    for image_boxes in boxes:
        sample = DetDataSample(
            metainfo=dict(
                img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape, scale_factor=(1, 1)
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor(image_boxes, dtype=torch.float32).reshape(-1, 4),
            labels=torch.arange(len(image_boxes)) % 2,
        )
        samples.append(sample)
    return samples


class Battery(ABC):
    """Checks for every part.

    Attributes:
        config: Config of the part.
        input_shapes: Shapes of its inputs without the batch, see the subclasses.
        idle_parameters: Name suffixes of parameters that do not affect the output, so their gradient is zero.
    """

    config: dict
    input_shapes: Sequence[Shape]
    idle_parameters: tuple[str, ...] = ()

    def build(self, registry=MODELS, seed: int = 0, **overrides) -> nn.Module:
        """Builds and initialises the part."""
        torch.manual_seed(seed)
        part = registry.build(dict(copy.deepcopy(self.config), **overrides))
        part.init_weights()
        return part

    @abstractmethod
    def cases(self) -> list[list[Shape]]:
        """Input shapes of several calls; the first is the ordinary call."""

    @abstractmethod
    def run(self, part: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Calls the part and returns its outputs as a list."""

    @abstractmethod
    def expected_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """Output shapes for inputs of these shapes, both without the batch."""

    def inputs(self, shapes: Sequence[Shape] | None = None, batch: int = 2, seed: int = 0) -> list[Tensor]:
        """Random inputs; by default those of the ordinary call."""
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(batch, *shape, generator=generator) for shape in shapes or self.cases()[0]]

    @pytest.mark.parametrize('training', [True, False])
    def test_output_shapes(self, training):
        part = self.build()
        part.train(training)
        for shapes in self.cases():
            outs = self.run(part, self.inputs(shapes))
            assert [tuple(out.shape) for out in outs] == [(2, *shape) for shape in self.expected_shapes(shapes)]
            assert all(out.isfinite().all() for out in outs)

    def test_batch_of_one(self):
        part = self.build()
        outs = self.run(part, self.inputs(batch=1))
        project(outs).backward()
        assert [tuple(out.shape) for out in outs] == [(1, *shape) for shape in self.expected_shapes(self.cases()[0])]
        assert_finite_gradients(part)

    def test_every_parameter_gets_a_finite_nonzero_gradient(self):
        part = self.build()
        inputs = [x.requires_grad_() for x in self.inputs()]
        project(self.run(part, inputs)).backward()
        assert_finite_gradients(part)
        for name, parameter in part.named_parameters():
            is_idle = name.endswith(self.idle_parameters)
            assert parameter.grad.any() != is_idle, f'{name}: exactly idle parameters have a zero gradient'
        for x in inputs:
            assert x.grad is None or x.grad.isfinite().all()
        assert any(x.grad is not None and x.grad.any() for x in inputs)

    def test_train_and_eval_mode(self):
        part = self.build()
        before = statistics(part)
        part.eval()
        self.run(part, self.inputs())
        assert not any(module.training for module in part.modules())
        for name, buffer in statistics(part).items():
            assert torch.equal(buffer, before[name]), f'{name} changed in eval mode'
        part.train()
        self.run(part, self.inputs())
        assert all(module.training for module in part.modules())
        for name, buffer in statistics(part).items():
            assert not torch.equal(buffer, before[name]), f'{name} did not change in training mode'

    def test_images_of_a_batch_do_not_see_each_other_in_eval_mode(self):
        # In double precision: rounding depends on the batch size and would sometimes flip a sign in single precision.
        part = self.build().double()
        inputs = [x.double() for x in self.inputs()]
        self.run(part, inputs)  # gives the norms running statistics
        part.eval()
        outs = self.run(part, inputs)
        alone = self.run(part, [x[1:] for x in inputs])
        for out, one in zip(outs, alone, strict=True):
            assert_close(out[1:], one)

    def test_state_dict_round_trip(self):
        part, other = self.build(), self.build(seed=1)
        self.run(part, self.inputs())  # makes the running statistics differ
        part.eval()
        other.eval()
        outs = self.run(part, self.inputs())
        before = self.run(other, self.inputs())
        assert any(not torch.equal(out, wanted) for out, wanted in zip(before, outs, strict=True))
        file = io.BytesIO()
        torch.save(part.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True), strict=True)
        assert_all_equal(self.run(other, self.inputs()), outs)

    def test_same_seed_gives_the_same_part(self):
        first, second = self.build(), self.build()
        for name, parameter in first.named_parameters():
            assert torch.equal(parameter, second.get_parameter(name)), f'{name} differs'
        assert_all_equal(self.run(first, self.inputs()), self.run(second, self.inputs()))

    @pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
    def test_autocast(self, dtype):
        part = self.build()
        with torch.autocast('cpu', dtype=dtype):
            outs = self.run(part, self.inputs())
        assert all(out.isfinite().all() for out in outs)
        project(outs).backward()
        assert_finite_gradients(part)
        assert {parameter.dtype for parameter in part.parameters()} == {torch.float32}

    @pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning', 'ignore::FutureWarning')
    @pytest.mark.parametrize('way', [export, trace], ids=lambda way: way.__name__)
    def test_an_evaluated_part_is_exported_and_traced(self, way):
        """With gradients enabled, as after training; tests/test_export.py tests the other modes. The test uses double
        precision: with gradients the part runs lean and the program plain, so rounding would sometimes flip a sign."""
        part = self.build().double()
        part.eval()
        inputs = [x.double() for x in self.inputs(batch=1)]
        expected = self.run(part, inputs)
        program = way(Maps(part, self.run), *inputs)
        for out, wanted in zip(program(*inputs), expected, strict=True):
            assert_close(out, wanted)

    def test_unknown_argument_is_refused(self):
        with pytest.raises(TypeError, match='num_basis'):
            self.build(num_basis=2)

    def test_wrong_number_of_channels_is_refused(self):
        part = self.build()
        with pytest.raises((ValueError, RuntimeError)):
            self.run(part, [torch.cat([x, x[:, :1]], dim=1) for x in self.inputs()])


class BackboneBattery(Battery):
    """Checks for every backbone; each of ``input_shapes`` is an image.

    Attributes:
        out_channels: Channels of the output maps.
        out_strides: Strides of the output maps.
    """

    input_shapes: Sequence[Shape] = ((3, 64, 96), (3, 47, 33), (3, 1, 2))
    out_channels: Sequence[int]
    out_strides: Sequence[int] = (4, 8, 16, 32)

    def cases(self):
        return [[shape] for shape in self.input_shapes]

    def run(self, part, inputs):
        return list(part(*inputs))

    def expected_shapes(self, shapes):
        ((_, height, width),) = shapes
        return [
            (channels, -(-height // stride), -(-width // stride))
            for channels, stride in zip(self.out_channels, self.out_strides, strict=True)
        ]

    @pytest.mark.parametrize('library', ['mmdet', 'mmseg', 'mmpretrain'])
    def test_builds_from_the_registry_of(self, library):
        registry = pytest.importorskip(f'{library}.registry').MODELS
        backbone = self.build(registry)
        assert type(backbone) is type(self.build())
        assert_all_equal(self.run(backbone, self.inputs()), self.run(self.build(), self.inputs()))

    def test_out_indices(self):
        every, chosen = self.build(), self.build(out_indices=(1, 3))
        every.eval()
        chosen.eval()
        # out_indices decides which maps are merged, and parameters such as learned scales exist only for these.
        every.load_state_dict(chosen.state_dict(), strict=False)
        outs = self.run(every, self.inputs())
        assert_all_equal(self.run(chosen, self.inputs()), [outs[1], outs[3]])

    @pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 4])
    def test_frozen_stages(self, frozen_stages):
        backbone = self.build(frozen_stages=frozen_stages)
        backbone.eval()
        backbone.train()
        frozen = [] if frozen_stages < 0 else [backbone.stem, *backbone.stages[:frozen_stages]]
        parameters = {id(parameter) for module in frozen for parameter in module.parameters()}
        buffers = {id(buffer) for module in frozen for buffer in module.buffers()}
        before = statistics(backbone)
        outs = self.run(backbone, [x.requires_grad_() for x in self.inputs()])
        project(outs).backward()
        for name, parameter in backbone.named_parameters():
            assert (parameter.grad is None) == (id(parameter) in parameters), name
        for name, old in before.items():
            buffer = backbone.get_buffer(name)
            assert torch.equal(buffer, old) == (id(buffer) in buffers), name

    def test_norm_eval(self):
        backbone = self.build(norm_eval=True)
        backbone.eval()
        backbone.train()
        before = statistics(backbone)
        project(self.run(backbone, self.inputs())).backward()
        for name, buffer in statistics(backbone).items():
            assert torch.equal(buffer, before[name]), f'{name} changed'
        norms = [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
        assert norms and not any(norm.training for norm in norms)
        assert backbone.training
        assert_finite_gradients(backbone)

    def test_recomputing_blocks_gives_the_same_gradients(self):
        # In double precision, so rounding cannot flip a sign.
        plain, recomputing = self.build().double(), self.build(with_cp=True).double()
        for backbone in (plain, recomputing):
            project(self.run(backbone, [x.double() for x in self.inputs()])).backward()
        for name, parameter in plain.named_parameters():
            assert_close(recomputing.get_parameter(name).grad, parameter.grad)


class PyramidBattery(Battery):
    """Common base of necks and heads: ``input_shapes`` are the levels of one pyramid."""

    def cases(self):
        channels = [shape[0] for shape in self.input_shapes]
        # The coarsest level is a single pixel; the finest one is not square.
        tiny = [(c, -(-3 // 2**level), -(-5 // 2**level)) for level, c in enumerate(channels)]
        return [list(self.input_shapes), tiny]


class NeckBattery(PyramidBattery):
    """Checks for every neck that returns a feature pyramid."""

    def run(self, part, inputs):
        return list(part(tuple(inputs)))

    def expected_shapes(self, shapes):
        sizes = [shape[1:] for shape in shapes[self.config.get('start_level', 0) :]]
        while len(sizes) < self.config['num_outs']:
            height, width = sizes[-1]
            sizes.append((-(-height // 2), -(-width // 2)))
        return [(self.config['out_channels'], *size) for size in sizes]

    def test_wrong_number_of_levels_is_refused(self):
        part = self.build()
        with pytest.raises((AssertionError, ValueError, IndexError)):
            self.run(part, self.inputs([*self.input_shapes, self.input_shapes[-1]]))


class HeadBattery(PyramidBattery):
    """Checks for every dense head with the outputs of FCOS: classes, boxes and centre-ness of every level."""

    def image_shape(self) -> tuple[int, int]:
        stride = self.config['strides'][0]
        return self.input_shapes[0][1] * stride, self.input_shapes[0][2] * stride

    def run(self, part, inputs):
        return [out for outs in part(tuple(inputs)) for out in outs]

    def expected_shapes(self, shapes):
        return [(channels, *shape[1:]) for channels in (self.config['num_classes'], 4, 1) for shape in shapes]

    def loss(self, head: nn.Module, boxes: Sequence[Sequence[Sequence[float]]], **kwargs) -> dict[str, Tensor]:
        samples = detection_samples(boxes, self.image_shape())
        return head.loss(tuple(self.inputs(batch=len(boxes), **kwargs)), samples)

    @pytest.mark.parametrize(
        'boxes',
        [
            pytest.param([[[4, 5, 40, 60], [20, 8, 70, 30]], [[0, 0, 90, 60]]], id='boxes'),
            pytest.param([[[4, 5, 40, 60]], []], id='one image empty'),
            pytest.param([[], []], id='all empty'),
            pytest.param([[[4, 5, 40, 60]]], id='one image'),
            pytest.param([[[4, 5, 4.5, 5.5]]], id='box smaller than a cell'),
        ],
    )
    def test_loss_is_finite_and_reaches_every_predictor(self, boxes):
        head = self.build()
        losses = self.loss(head, boxes)
        assert all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
        for name, parameter in head.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert head.conv_cls.weight.grad.any()

    def test_empty_ground_truth_costs_only_class_loss(self):
        losses = self.loss(self.build(), [[], []])
        assert losses['loss_cls'] > 0
        head = self.build()
        with_boxes = self.loss(head, [[[4, 5, 40, 60]], [[0, 0, 90, 60]]])
        assert losses['loss_bbox'] == losses['loss_centerness'] == 0
        assert min(with_boxes['loss_bbox'], with_boxes['loss_centerness']) > 0

    @pytest.mark.parametrize('batch', [1, 2])
    def test_predict(self, batch):
        height, width = self.image_shape()
        test_cfg = ConfigDict(
            nms_pre=50, min_bbox_size=0, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=7
        )
        head = self.build(test_cfg=test_cfg).eval()
        samples = detection_samples([[]] * batch, (height, width))
        with torch.no_grad():
            results = head.predict(tuple(self.inputs(batch=batch)), samples, rescale=False)
        assert len(results) == batch
        for result in results:
            assert 0 < len(result) <= 7
            assert result.bboxes.shape == (len(result), 4)
            assert result.bboxes.min() >= 0
            assert (result.bboxes[:, 2] <= width).all() and (result.bboxes[:, 3] <= height).all()
            assert set(result.labels.tolist()) <= set(range(self.config['num_classes']))
            assert ((result.scores >= 0) & (result.scores <= 1)).all()


class DecodeHeadBattery(PyramidBattery):
    """Checks for every decode head of mmseg, which returns logits of the finest map that it reads.

    ``input_shapes`` are the outputs of a backbone, and ``in_index`` in ``config`` selects those that the head reads.
    ``config`` also needs ``dropout_ratio=0``, so that the outputs of two calls can be compared.
    """

    stride = 8  # of the finest map that is read

    @property
    def indices(self) -> list[int]:
        index = self.config['in_index']
        return [index] if isinstance(index, int) else list(index)

    def inputs(self, shapes=None, batch=2, seed=0):
        # Maps that the head does not read would get no gradient.
        every = super().inputs(shapes, batch, seed)
        return [every[index] for index in self.indices]

    def run(self, part, inputs):
        maps = [None] * len(self.input_shapes)
        for index, x in zip(self.indices, inputs, strict=True):
            maps[index] = x
        return [part(tuple(maps))]

    def expected_shapes(self, shapes):
        return [(self.config['num_classes'], *shapes[self.indices[0]][1:])]

    def samples(self, batch: int, masks: Tensor | None = None) -> list:
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        height, width = (self.stride * size - 3 for size in self.input_shapes[self.indices[0]][1:])
        samples = []
        for index in range(batch):
            sample = SegDataSample(metainfo=dict(img_shape=(height, width), ori_shape=(height, width)))
            mask = torch.full((1, height, width), index) if masks is None else masks[index]
            sample.gt_sem_seg = PixelData(data=mask)
            samples.append(sample)
        return samples

    def maps(self, batch: int = 2) -> tuple[Tensor, ...]:
        return tuple(PyramidBattery.inputs(self, batch=batch))

    def test_loss_is_that_of_the_upsampled_logits(self):
        head = self.build()
        samples = self.samples(2)
        samples[0].gt_sem_seg.data[:, :5] = 255
        losses = head.loss(self.maps(), samples, train_cfg=None)
        (logits,) = self.run(head, self.inputs())
        masks = torch.cat([sample.gt_sem_seg.data for sample in samples])
        upsampled = nn.functional.interpolate(logits, size=masks.shape[1:], mode='bilinear', align_corners=False)
        expected = nn.functional.cross_entropy(upsampled, masks, ignore_index=255, reduction='sum') / masks.numel()
        assert_close(losses['loss_ce'], expected)
        losses['loss_ce'].backward()
        assert_finite_gradients(head)

    def test_predictions_have_the_size_of_the_image(self):
        head = self.build().eval()
        samples = self.samples(2)
        with torch.no_grad():
            logits = head.predict(self.maps(), [sample.metainfo for sample in samples], test_cfg=None)
        assert logits.shape == (2, self.config['num_classes'], *samples[0].img_shape)

    def test_classifier_is_full_precision(self):
        assert type(self.build().conv_seg) is nn.Conv2d
