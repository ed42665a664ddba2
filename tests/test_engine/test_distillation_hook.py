"""Soft labels of a float teacher."""

import re

import pytest
import torch
from mmengine.registry import HOOKS, MODELS, DefaultScope
from mmengine.runner import get_priority
from torch import nn
from torch.testing import assert_close

from mmgroupnet.engine.hooks import DistillationHook
from mmgroupnet.engine.hooks.distillation_hook import TeacherLabels
from mmgroupnet.errors import UserError


class Constant(nn.Module):
    """A teacher with the same predictions for every image."""

    def forward(self, images, mode):
        assert mode == 'tensor'
        return torch.tensor([[0.0, 3.0]]).log1p().repeat(len(images), 1)  # probabilities 0.2 and 0.8, a ratio of 1 : 4


def test_labels_are_blended():
    images, labels = torch.zeros(2, 3, 4, 4), torch.tensor([[1.0, 0], [0, 1]])
    blend = TeacherLabels(Constant(), weight=0.5, temperature=1.0, before=None)
    given, blended = blend(images, labels)
    assert given is images
    assert_close(blended, torch.tensor([[0.6, 0.4], [0.1, 0.9]]))
    _, flat = TeacherLabels(Constant(), weight=1.0, temperature=2.0, before=None)(images, labels)
    assert_close(flat, torch.tensor([[1 / 3, 2 / 3]] * 2))  # a ratio of 1 : sqrt(4)


def test_augmentations_of_the_config_come_first():
    def mixup(images, labels):
        return images + 1, labels.flip(0)

    images, labels = TeacherLabels(Constant(), 0.5, 1.0, before=mixup)(torch.zeros(2, 3, 4, 4), torch.eye(2))
    assert images.all()
    assert_close(labels, torch.tensor([[0.1, 0.9], [0.6, 0.4]]))


TEACHER = dict(
    type='ImageClassifier',
    backbone=dict(type='mmgroupnet.CIFARResNet', depth=20),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64),
)


class FakeRunner:
    def __init__(self, model):
        self.model = model


@pytest.fixture
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.fixture
def student(scope):
    model = dict(
        TEACHER,
        backbone=dict(
            type='mmgroupnet.GroupNetResNet', depth=20, num_bases=2, stem='cifar', base_channels=16, out_indices=(2,)
        ),
        head=dict(TEACHER['head'], loss=dict(type='CrossEntropyLoss', use_soft=True)),
        data_preprocessor=dict(num_classes=10, mean=[0.0] * 3, std=[1.0] * 3),
    )
    return MODELS.build(model)


def test_a_students_loss_is_the_cross_entropy_with_the_teacher(student, tmp_path):
    from mmpretrain.structures import DataSample

    torch.manual_seed(0)
    teacher = MODELS.build(TEACHER).eval()
    weights = {
        'module.' + name.replace('head.fc', 'linear').removeprefix('backbone.'): value
        for name, value in teacher.state_dict().items()
        if 'num_batches' not in name
    }
    torch.save(dict(state_dict=weights), tmp_path / 'teacher.th')
    names = set(student.state_dict())
    hook = HOOKS.build(
        dict(type='mmgroupnet.DistillationHook', teacher=TEACHER, checkpoint=str(tmp_path / 'teacher.th'), weight=0.75)
    )
    hook.before_train(FakeRunner(student))
    assert set(student.state_dict()) == names  # The teacher's weights are neither in checkpoints
    assert len(list(student.parameters())) == len(dict(student.named_parameters()))  # nor trained.

    images = [torch.randint(0, 255, (3, 32, 32), dtype=torch.uint8) for _ in range(2)]
    samples = [DataSample().set_gt_label(label) for label in (3, 5)]
    data = student.data_preprocessor(dict(inputs=images, data_samples=samples), training=True)
    with torch.no_grad():
        soft = teacher(torch.stack(images).float(), mode='tensor').softmax(1)
    target = 0.75 * soft + 0.25 * nn.functional.one_hot(torch.tensor([3, 5]), 10)
    assert_close(torch.stack([sample.gt_score for sample in data['data_samples']]), target)
    student.eval()
    loss = student(**data, mode='loss')['loss']
    logits = student(data['inputs'])
    assert_close(loss, -(target * logits.log_softmax(1)).sum(1).mean())

    # The hook does not change evaluation.
    samples = [DataSample().set_gt_label(label) for label in (3, 5)]
    data = student.data_preprocessor(dict(inputs=images, data_samples=samples), training=False)
    assert torch.equal(data['inputs'], torch.stack(images).float())
    for sample, label in zip(data['data_samples'], (3, 5), strict=True):
        assert sample.gt_label.tolist() == [label]
        assert sample.get('gt_score') is None or torch.equal(sample.gt_score, torch.eye(10)[label])


@pytest.mark.parametrize('augments', [None, dict(augments=dict(type='Mixup', alpha=0.8))])
def test_the_teacher_stays_where_batch_augmentations_are_switched(augments, student, tmp_path):
    from mmpretrain.engine import SwitchRecipeHook

    torch.save(MODELS.build(TEACHER).state_dict(), tmp_path / 'teacher.pth')
    hook = DistillationHook(TEACHER, str(tmp_path / 'teacher.pth'))
    runner = FakeRunner(student)
    hook.before_train(runner)
    for _ in range(2):  # In later epochs the hook must not add the teacher again.
        hook.before_train_epoch(runner)
        labels = student.data_preprocessor.batch_augments
        assert isinstance(labels, TeacherLabels) and labels.before is None
    switch = SwitchRecipeHook([dict(action_epoch=2, batch_augments=augments)])
    assert get_priority(switch.priority) < get_priority(hook.priority)
    switch._switch_batch_augments(runner, switch.schedule[2]['batch_augments'])
    hook.before_train_epoch(runner)
    labels = student.data_preprocessor.batch_augments
    assert isinstance(labels, TeacherLabels) and labels.teacher is hook._teacher
    assert labels.before is switch.schedule[2]['batch_augments']


def test_another_teachers_weights_are_refused(student, tmp_path):
    torch.save(dict(conv=torch.zeros(1)), tmp_path / 'teacher.pth')
    hook = DistillationHook(TEACHER, str(tmp_path / 'teacher.pth'))
    with pytest.raises(UserError, match='is of another architecture'):
        hook.before_train(FakeRunner(student))


def test_other_models_are_refused(tmp_path):
    model = nn.Module()
    model.data_preprocessor = nn.Identity()
    with pytest.raises(UserError, match='DistillationHook: Identity has no batch augmentations'):
        DistillationHook(TEACHER, 'teacher.pth').before_train(FakeRunner(model))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(weight=0), 'weight=0: give a share between 0 (excluded) and 1'),
        (dict(weight=1.1), 'weight=1.1: give a share'),
        (dict(temperature=0), 'temperature=0: give a number above 0'),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DistillationHook(TEACHER, 'teacher.pth', **options)
