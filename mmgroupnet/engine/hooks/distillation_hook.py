"""Trains a classifier on the soft labels of a float teacher."""

from collections.abc import Callable

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmgroupnet.checkpoints.match import check_state_dict
from mmgroupnet.checkpoints.pretrained import fetch_checkpoint
from mmgroupnet.converters.float_resnet import to_classifier_names
from mmgroupnet.errors import UserError
from mmgroupnet.registry import HOOKS, MODELS

Labels = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class TeacherLabels:
    """A batch augmentation in mmpretrain's sense: blends labels with the teacher's predictions.

    It is deliberately not a module, so the teacher does not become part of the model in training.

    Args:
        teacher: Classifier, logits from ``teacher(images, mode='tensor')``.
        weight: Share of the teacher in the labels.
        temperature: The teacher's logits are divided by it.
        before: Batch augmentation in front of it, or None.
    """

    def __init__(self, teacher: nn.Module, weight: float, temperature: float, before: Labels | None) -> None:
        self.teacher = teacher
        self.weight = weight
        self.temperature = temperature
        self.before = before

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Blends the labels ``(N, classes)`` of preprocessed images ``(N, 3, H, W)``; returns both."""
        if self.before is not None:
            images, labels = self.before(images, labels)
        soft = (self.teacher(images, mode='tensor') / self.temperature).softmax(dim=1)
        return images, self.weight * soft + (1 - self.weight) * labels


def _unwrapped(runner: Runner) -> nn.Module:
    model = runner.model
    while is_model_wrapper(model):
        model = model.module
    return model


@HOOKS.register_module()
class DistillationHook(Hook):
    """Gives mmpretrain's classifiers soft labels, ``weight * softmax(teacher / temperature) + (1 - weight) * label``.

    The head's loss must take soft labels: ``LabelSmoothLoss``, or ``CrossEntropyLoss`` with ``use_soft=True``. The
    teacher sees the images after the preprocessor of the model in training, so both need the same normalisation.
    Checkpoints do not contain the teacher.

    Args:
        teacher: Config of the teacher, an ``ImageClassifier``.
        checkpoint: Its weights: a file, ``https://`` address or ``torchvision://`` name, with mmpretrain's,
            torchvision's or the CIFAR ResNets' names, loaded in torch's safe mode.
        weight: Share of the teacher, between 0 and 1. Default: 0.9.
        temperature: Above 1, it flattens the teacher's predictions. Default: 1.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015; for binary networks the distributional
    loss of Liu et al., ReActNet, ECCV 2020 (``weight=1``).

    Raises:
        UserError: If weight or temperature is out of its range.
        UserError: If the checkpoint is not the teacher's, or the model lacks mmpretrain's preprocessor.
    """

    priority = 'LOW'  # After SwitchRecipeHook, which switches batch augmentations.

    def __init__(self, teacher: dict, checkpoint: str, weight: float = 0.9, temperature: float = 1.0) -> None:
        if not 0 < weight <= 1:
            raise UserError(f'weight={weight}: give a share between 0 (excluded) and 1')
        if temperature <= 0:
            raise UserError(f'temperature={temperature}: give a number above 0')
        self.teacher = teacher
        self.checkpoint = checkpoint
        self.weight = weight
        self.temperature = temperature

    def before_train(self, runner: Runner) -> None:
        """Builds the teacher and adds it, so that a rehearsal, which comes before the first epoch, has its labels."""
        preprocessor = _unwrapped(runner).data_preprocessor
        if not hasattr(preprocessor, 'batch_augments'):
            raise UserError(
                f'DistillationHook: {type(preprocessor).__name__} has no batch augmentations, use it with classifiers '
                'of mmpretrain'
            )
        teacher = MODELS.build(self.teacher)
        given = fetch_checkpoint(self.checkpoint)
        weights = to_classifier_names(given.get('state_dict', given))
        check_state_dict(teacher, weights, self.checkpoint)
        teacher.load_state_dict(weights, strict=False)  # Old files lack num_batches_tracked.
        self._teacher = teacher.to(next(runner.model.parameters()).device).requires_grad_(False).eval()
        print_log(f'labels are {self.weight:.0%} those of the teacher in {self.checkpoint}', logger='current')
        self.before_train_epoch(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        """Adds the teacher behind the model's preprocessor and batch augmentations, unless it is there already."""
        preprocessor = _unwrapped(runner).data_preprocessor
        if not isinstance(preprocessor.batch_augments, TeacherLabels):
            preprocessor.to_onehot = True
            preprocessor.batch_augments = TeacherLabels(
                self._teacher, self.weight, self.temperature, preprocessor.batch_augments
            )
