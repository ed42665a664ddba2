"""The classification configs on toy data in the layouts of CIFAR-10 and ImageNet: train, evaluate, resume, transfer."""

import pickle
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, MODELS, DefaultScope
from numpy.testing import assert_allclose
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torchvision.models import resnet18

from mmgroupnet.analysis.training_curves import read_history
from mmgroupnet.datasets import DigitCrops, generate_digits
from mmgroupnet.engine.arguments import check_arguments
from mmgroupnet.engine.configs import load_config
from mmgroupnet.engine.testing import run_test
from mmgroupnet.engine.training import run_training
from mmgroupnet.errors import UserError
from tests.liveness import estimate_statistics

CONFIGS = Path(__file__).parents[1] / 'configs' / 'classification'
NUM_BASES = 2
SIZES = dict(RandomResizedCrop=dict(scale=32), ResizeEdge=dict(scale=40), CenterCrop=dict(crop_size=32))


# Options with which training changes only the running statistics of norms.
FROZEN = {'optim_wrapper.optimizer.lr': 0.0, 'param_scheduler': []}


def write_cifar10(folder: Path) -> Path:
    """Writes six batches of eight images, whose brightness depends on the label."""
    (folder / 'cifar-10-batches-py').mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [*(f'data_batch_{number}' for number in range(1, 6)), 'test_batch']:
        labels = rng.permutation(np.arange(8)).tolist()
        images = rng.integers(0, 40, (8, 3, 32, 32)) + 25 * np.array(labels).reshape(-1, 1, 1, 1)
        content = {'data': images.astype(np.uint8).reshape(8, -1), 'labels': labels}
        (folder / 'cifar-10-batches-py' / name).write_bytes(pickle.dumps(content))
    return folder


def write_imagenet(folder: Path) -> Path:
    """Writes ``{train,val}/<class>/*.JPEG`` and lists of files in ``meta``."""
    rng = np.random.default_rng(0)
    (folder / 'meta').mkdir(parents=True)
    for split, number in (('train', 4), ('val', 2)):
        lines = []
        for label, name in enumerate(('n01440764', 'n01443537')):
            (folder / split / name).mkdir(parents=True)
            for index in range(number):
                image = rng.integers(0, 120, (40, 52, 3)) + 120 * label
                cv2.imwrite(str(folder / split / name / f'{index}.JPEG'), image.astype(np.uint8))
                lines.append(f'{name}/{index}.JPEG {label}')
        (folder / 'meta' / f'{split}.txt').write_text('\n'.join(lines))
    return folder


def load(name: str, folder: Path, work: str, **options: object):
    """A config on toy data, small enough to train in seconds; ``options`` are those of ``--cfg-options``."""
    cfg = load_config(str(CONFIGS / f'{name}.py'))
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=4, num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(folder / 'data')
        for transform in loader.dataset.pipeline:
            if transform.type in SIZES:
                transform.update(SIZES[transform.type])
    cfg.merge_from_dict(
        {
            'work_dir': str(folder / work),
            'launcher': 'none',
            'experiment_name': f'{folder.name}_{work}',
            'model.backbone.num_bases': NUM_BASES,
            'model.backbone.base_channels': 16 if 'cifar' in name else 8,
            'train_cfg.max_epochs': 1,
            'default_hooks.logger.interval': 1,
            'load_from': None,
            **options,
        }
    )
    if 'cifar' in name:
        cfg.model.backbone.stage_blocks = (1, 1, 1)
        cfg.train_dataloader.dataset.indices = 8  # two iterations
    else:
        cfg.model.head.in_channels = 64 * (4 if cfg.model.backbone.depth == 50 else 1)
    check_arguments(cfg)
    return cfg


def losses(work_dir: Path) -> dict[int, float]:
    return read_history(work_dir).losses


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, map_location='cpu', weights_only=True)['state_dict']


TREES = [
    pytest.param('groupnet_r20_k3_{}_cifar10', write_cifar10, 2, id='cifar10'),
    pytest.param('groupnet_r18_k5_{}_8xb32-40e_in1k', write_imagenet, 2, id='imagenet', marks=pytest.mark.slow),
]


@pytest.mark.parametrize(('pattern', 'write', 'iterations'), TREES)
def test_two_stages_train_evaluate_and_resume(pattern, write, iterations, tmp_path):
    write(tmp_path / 'data')
    stage_a, stage_b = pattern.format('stage-a'), pattern.format('stage-b')
    run_training(load(stage_a, tmp_path, 'a'))
    assert set(losses(tmp_path / 'a')) == set(range(1, iterations + 1))

    # The second stage starts from all parameters of the first, including gates and norms, under the same names.
    first = tmp_path / 'a' / 'epoch_1.pth'
    model = run_training(load(stage_b, tmp_path, 'frozen', load_from=str(first), **FROZEN))
    learned = {name: value for name, value in weights(first).items() if 'running' not in name and 'num_b' not in name}
    assert any(name.endswith('connection.theta') for name in learned)
    for name, value in learned.items():
        assert torch.equal(dict(model.named_parameters())[name], value), name

    # Resuming for the second epoch gives the same losses as two epochs without interruption.
    options = {'load_from': str(first), 'train_cfg.max_epochs': 2}
    run_training(load(stage_b, tmp_path, 'whole', **options))
    half = str(tmp_path / 'whole' / 'epoch_1.pth')
    run_training(load(stage_b, tmp_path, 'resumed', **options), resume=half)
    whole, second = losses(tmp_path / 'whole'), losses(tmp_path / 'resumed')
    assert list(whole) == list(range(1, 2 * iterations + 1)) and list(second) == list(whole)[iterations:]
    assert all(whole[step] == loss for step, loss in second.items())

    metrics = run_test(load(stage_b, tmp_path, 'test'), str(tmp_path / 'whole' / 'epoch_2.pth'))
    assert 0 <= metrics['accuracy/top1'] <= 100
    assert ('accuracy/top5' in metrics) == (write is write_imagenet)


def test_the_second_stage_of_another_network_starts_from_what_fits(tmp_path):
    write_cifar10(tmp_path / 'data')
    run_training(load('groupnet_r20_k3_stage-a_cifar10', tmp_path, 'a'))
    options = {'load_from': str(tmp_path / 'a' / 'epoch_1.pth'), 'model.backbone.decomposition': 'gbd_v1'}
    run_training(load('groupnet_r20_k3_stage-b_cifar10', tmp_path, 'b', **options))
    (log,) = (tmp_path / 'b').glob('*/*.log')
    text = log.read_text()
    assert re.search(r'^\| backbone \| \d+ \| 2 \| 0 \|$', text, flags=re.M)  # The two gates are dropped.
    assert re.search(r'^not in the model: .*connection\.theta', text, flags=re.M)


def test_the_second_stage_without_the_first_is_refused(tmp_path):
    write_cifar10(tmp_path / 'data')
    with pytest.raises(UserError, match='checkpoint nowhere.pth does not exist'):
        run_training(load('groupnet_r20_k3_stage-b_cifar10', tmp_path, 'b', load_from='nowhere.pth'))


def test_the_modern_recipe_starts_from_a_float_resnet_and_has_a_float_teacher(tmp_path):
    write_imagenet(tmp_path / 'data')
    # The student predicts class 7 for every image, with a logit of 5 and zeros for the other classes. The teacher
    # predicts class 7 with certainty.
    float_resnet = resnet18(weights=None)
    torch.save(float_resnet.state_dict(), tmp_path / 'float.pth')
    head = {'head.fc.weight': torch.full((1000, 512), 0.01), 'head.fc.bias': 5.0 * (torch.arange(1000) == 7)}
    torch.save(head, tmp_path / 'head.pth')
    name = 'groupnet_r18_k5_modern_8xb32-100e_in1k'
    teacher_cfg = load_config(str(CONFIGS / f'{name}.py')).custom_hooks[-1].teacher
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        teacher = MODELS.build(teacher_cfg)
    with torch.no_grad():
        teacher.head.fc.weight.zero_()
        teacher.head.fc.bias.zero_()[7] = 100
    torch.save(teacher.state_dict(), tmp_path / 'teacher.pth')
    cfg = load(name, tmp_path, 'work', **{'model.backbone.base_channels': 64}, **FROZEN)
    cfg.model.head.in_channels = 512
    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / 'float.pth')
    cfg.model.head.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'head.pth'), prefix='head.')
    cfg.custom_hooks[-1].checkpoint = str(tmp_path / 'teacher.pth')
    model = run_training(cfg)
    assert torch.equal(model.backbone.stem[0].weight, float_resnet.conv1.weight)
    assert not [key for key in weights(tmp_path / 'work' / 'epoch_1.pth') if 'teacher' in key]
    # The target of class 7: 0.9 from the teacher and none from the data, which has no class 7; then smoothed by 0.1.
    target = 0.9 * 0.9 + 0.1 / 1000
    partition = np.log(np.exp(5) + 999)
    assert_allclose(list(losses(tmp_path / 'work').values()), partition - 5 * target, rtol=1e-5)


def test_soft_labels_from_the_rehearsal_to_whole_images(tmp_path):
    """The loss takes soft labels only, so the rehearsal needs those of the teacher, too."""
    write_cifar10(tmp_path / 'data')
    checkpoint = str(tmp_path / 'float.pth')
    cfg = load('groupnet_r20_k3_distilled_cifar10', tmp_path, 'work', **{'train_cfg.max_epochs': 2})
    _, distillation, switch = cfg.custom_hooks
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        torch.save(MODELS.build(distillation.teacher).state_dict(), checkpoint)
    cfg.model.backbone.stage_blocks = (3, 3, 3)
    cfg.model.backbone.init_cfg.checkpoint = distillation.checkpoint = checkpoint
    switch.schedule[0].action_epoch = 2
    run_training(cfg, rehearse=True)
    (log,) = (tmp_path / 'work').glob('*/*.log')
    assert 'Rehearsal before the first step: a batch of training' in log.read_text()
    assert list(losses(tmp_path / 'work')) == [1, 2, 3, 4]


def test_a_picture_is_read_as_the_data_set_is(tmp_path):
    """tools/predict.py reads files, but the batches of CIFAR-10 contain pixels: both must give the same input."""
    from mmpretrain import ImageClassificationInferencer

    write_cifar10(tmp_path / 'data')
    cfg = load('groupnet_r20_k3_scratch_cifar10', tmp_path, 'work')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
    inferencer = ImageClassificationInferencer(cfg, pretrained=False, device='cpu')
    picture = str(tmp_path / 'picture.png')
    cv2.imwrite(picture, dataset.get_data_info(3)['img'])
    (data,) = inferencer.preprocess([picture])
    assert torch.equal(data['inputs'][0], dataset[3]['inputs'])
    # The preprocessor gives the network RGB.
    with open(tmp_path / 'data/cifar-10-batches-py/test_batch', 'rb') as file:
        red, green, blue = pickle.load(file)['data'][3].reshape(3, 32, 32).astype(np.float32)
    preprocessor = inferencer.model.data_preprocessor
    images = preprocessor(data)['inputs'][0] * preprocessor.std + preprocessor.mean
    assert_allclose(images.numpy(), [red, green, blue], atol=1e-3)


def fit(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, steps: int) -> list[float]:
    """Trains on all images in one batch and returns the loss of each step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scheduler = OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps, pct_start=0.2)
    losses = []
    model.train()
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


def test_two_stages_learn_a_handful_of_digits_by_heart(tmp_path):
    samples = list(DigitCrops('train', generate_digits(tmp_path / 'digits', num_train=5, num_val=1)))
    images = torch.stack([torch.from_numpy(sample['img']).permute(2, 0, 1) for sample in samples])
    images, labels = (images - 90) / 60, torch.tensor([sample['gt_label'] for sample in samples])

    def build(real_valued: bool) -> nn.Module:
        cfg = load_config(str(CONFIGS / f'groupnet_r8_k3_{"stage-a" if real_valued else "stage-b"}_digits.py'))
        cfg.model.backbone.update(num_bases=NUM_BASES, base_channels=8)
        cfg.model.head.in_channels = 32
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build(cfg.model)
        assert cfg.model.backbone.get('real_valued', False) == real_valued
        model.init_weights()
        return model

    torch.manual_seed(0)
    first, second, scratch = build(True), build(False), build(False)
    fit(first, images, labels, steps=25)
    second.load_state_dict(first.state_dict())
    losses, losses_from_scratch = fit(second, images, labels, steps=25), fit(scratch, images, labels, steps=25)
    assert losses[-1] < 0.3 < losses_from_scratch[-1]
    # The running statistics lag behind the weights, which changed with every step, so they are computed again.
    estimate_statistics(second, lambda: second(images))
    assert (second(images).argmax(1) == labels).double().mean() > 0.9


@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
def test_a_classifier_starts_detectors_and_segmenters(library, tmp_path):
    """Also at output stride 8 with BPAC, since dilation adds no parameters."""
    backbone = dict(type='mmgroupnet.GroupNetResNet', depth=18, num_bases=2, base_channels=8, stage_blocks=(1, 1, 1, 1))
    classifier = dict(
        type='ImageClassifier',
        backbone=dict(backbone, out_indices=(3,)),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=64),
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        trained = MODELS.build(classifier)
    path = tmp_path / 'classifier.pth'
    torch.save(dict(state_dict=trained.state_dict()), path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    bpac = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 'bpac', 'bpac'), out_indices=(2, 3))
    with DefaultScope.overwrite_default_scope(library):
        dense = MODELS.build(dict(backbone, **bpac, init_cfg=init_cfg))
        dense.init_weights()
    expected = trained.backbone.state_dict()
    given = dense.state_dict()
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[name], value) for name, value in expected.items())
