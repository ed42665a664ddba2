"""Training and testing in this process: resuming gives the same losses, and errors are reported early."""

import json
import math
import shutil
from unittest import mock

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmgroupnet.engine import training
from mmgroupnet.engine.hooks import InvalidLossHook
from mmgroupnet.engine.testing import augment_test, run_test
from mmgroupnet.engine.training import run_training
from mmgroupnet.errors import UserError
from mmgroupnet.layers import BinaryConv2d
from mmgroupnet.ops import kernels
from tests.tiny_run import load_tiny_run


def losses(work_dir):
    """The loss of every iteration in the log of the last run in a folder."""
    log = max(work_dir.glob('*/vis_data/scalars.json'), key=lambda path: path.stat().st_mtime)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return {row['step']: row['loss'] for row in rows if 'loss' in row}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The folder of a run with three epochs of four iterations."""
    folder = tmp_path_factory.mktemp('trained')
    run_training(load_tiny_run(folder))
    return folder


@pytest.fixture
def without_kernels(monkeypatch, tmp_path):
    """Hides the compiled kernels."""
    caches = (kernels.library, kernels.selected_kernels)
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setattr(kernels, '__file__', str(tmp_path / 'kernels.py'))
    yield
    for cache in caches:
        cache.cache_clear()


def test_missing_kernels_are_reported_in_spite_of_the_rehearsal(tmp_path, without_kernels):
    run_training(load_tiny_run(tmp_path, train_cfg__max_epochs=1))
    (log,) = tmp_path.glob('work/*/*.log')
    assert log.read_text().count('The packed kernels were not compiled') == 1


def test_triton_is_tried_before_the_rehearsal(monkeypatch):
    asked = []
    monkeypatch.setattr(training, 'wants_triton', lambda device, dtype: asked.append((device.type, dtype)))
    training.load_kernels(BinaryConv2d(4, 4, 1))
    assert asked == [('cpu', torch.float32)]
    with torch.device('meta'):
        training.load_kernels(BinaryConv2d(4, 4, 1))
    assert asked[1:] == [('meta', torch.float32)]


class TestResume:
    @pytest.mark.parametrize('workers', [0, 2])
    def test_losses_are_those_of_a_run_that_never_stopped(self, tmp_path, trained, workers):
        loader = dict(train_dataloader__num_workers=workers, train_dataloader__persistent_workers=workers > 0)
        whole = trained
        if workers:
            whole = tmp_path
            run_training(load_tiny_run(whole, **loader))
        resumed = tmp_path / 'resumed'
        resumed.mkdir()
        shutil.copy(whole / 'work/epoch_1.pth', resumed)
        run_training(load_tiny_run(whole, work_dir=str(resumed), **loader), resume='auto')
        expected = losses(whole / 'work')
        assert sorted(expected) == list(range(1, 13))
        assert losses(resumed) == {step: loss for step, loss in expected.items() if step > 4}

    def test_epochs_draw_different_numbers(self, trained):
        """With the same seed in every epoch, the same images would be flipped."""
        values = list(losses(trained / 'work').values())
        assert len(set(values)) == len(values)

    def test_nothing_to_resume_starts_anew(self, tmp_path):
        run_training(load_tiny_run(tmp_path, train_cfg__max_epochs=1), resume='auto')
        assert sorted(losses(tmp_path / 'work')) == [1, 2, 3, 4]

    @pytest.mark.parametrize('named', [False, True])
    def test_a_config_that_resumes(self, trained, tmp_path, named):
        """``resume = True`` has the same meaning as in mmengine: the run resumes from ``load_from`` if it is set, else
        from the work directory."""
        shutil.copy(trained / 'work/epoch_1.pth', tmp_path)
        load_from = str(trained / 'work/epoch_2.pth') if named else None
        cfg = load_tiny_run(trained, work_dir=str(tmp_path), train_cfg__max_epochs=3, resume=True, load_from=load_from)
        run_training(cfg)
        expected = losses(trained / 'work')
        assert losses(tmp_path) == {step: expected[step] for step in range(9 if named else 5, 13)}

    def test_a_truncated_newest_checkpoint(self, trained, tmp_path):
        for epoch in (1, 2):
            shutil.copy(trained / f'work/epoch_{epoch}.pth', tmp_path)
        newest = tmp_path / 'epoch_2.pth'
        newest.write_bytes(newest.read_bytes()[:1000])
        (tmp_path / 'last_checkpoint').write_text(str(newest))
        run_training(load_tiny_run(trained, work_dir=str(tmp_path), train_cfg__max_epochs=2), resume='auto')
        assert sorted(losses(tmp_path)) == [5, 6, 7, 8]


def test_a_data_preprocessor_beside_the_model_is_in_its_config(tmp_path):
    """Inferencers read only the preprocessor inside the model's config; without it they would predict without one."""
    cfg = load_tiny_run(tmp_path, train_cfg__max_epochs=1)
    expected = cfg.model.pop('data_preprocessor')
    cfg.data_preprocessor = expected
    run_training(cfg)
    stored = torch.load(tmp_path / 'work/epoch_1.pth', weights_only=True)['meta']['cfg']
    for found in (Config.fromstring(stored, '.py'), Config.fromfile(tmp_path / 'work/tiny.py')):
        assert found.model.data_preprocessor == expected


class TestRefused:
    def test_loss_that_is_no_number(self, tmp_path):
        jump = dict(type='MultiStepLR', milestones=[1], gamma=1e30)
        cfg = load_tiny_run(tmp_path, param_scheduler=[jump])
        with pytest.raises(UserError) as caught:
            run_training(cfg)
        assert 'training stopped at iteration 6 (epoch 2, batch 2): ' in str(caught.value)
        assert 'loss=nan' in str(caught.value)
        assert f'the last good checkpoint is {tmp_path}/work/epoch_1.pth' in str(caught.value)
        assert not (tmp_path / 'work/epoch_2.pth').exists()

    @pytest.mark.parametrize('by_epoch', [True, False])
    def test_loss_that_is_no_number_where_a_checkpoint_is_due(self, tmp_path, by_epoch):
        """The loss is invalid in the last iteration of the second epoch; these weights must not be saved."""
        jump = dict(type='MultiStepLR', milestones=[6], gamma=1e30, by_epoch=False)
        saving = dict(type='CheckpointHook', by_epoch=by_epoch, interval=1 if by_epoch else 4)
        cfg = load_tiny_run(tmp_path, param_scheduler=[jump], default_hooks__checkpoint=saving)
        with pytest.raises(UserError, match=r'stopped at iteration 8 \(epoch 2, batch 4\): .*loss=nan') as caught:
            run_training(cfg)
        good = 'epoch_1.pth' if by_epoch else 'iter_4.pth'
        assert f'the last good checkpoint is {tmp_path}/work/{good}' in str(caught.value)
        assert [path.name for path in (tmp_path / 'work').glob('*.pth')] == [good]

    @pytest.mark.parametrize(
        ('newest', 'said'),
        [
            (None, 'this run has saved no good checkpoint'),
            ('s3://a/epoch_2.pth', 'the last checkpoint is s3://a/epoch_2.pth, whose weights were not checked'),
        ],
    )
    def test_loss_that_is_no_number_without_a_checkpoint_on_the_disk(self, newest, said):
        runner = mock.Mock(iter=5, epoch=1)
        runner.message_hub.get_info.return_value = newest
        with pytest.raises(UserError, match=rf'iteration 6 \(epoch 2, batch 2\): loss=inf; {said}\. Lower the'):
            InvalidLossHook().after_train_iter(runner, 1, outputs=dict(loss=torch.tensor(math.inf)))

    def test_weights_of_another_architecture(self, trained, tmp_path):
        checkpoint = str(trained / 'work/epoch_1.pth')
        cfg = load_tiny_run(trained, work_dir=str(tmp_path), model__backbone__stage_blocks=(1, 2, 2))
        with pytest.raises(UserError, match=r'epoch_1\.pth is of another architecture .*\d+ missing: backbone'):
            run_training(cfg, resume=checkpoint)
        assert not list(tmp_path.glob('*.pth'))

    def test_weights_of_another_architecture_in_a_test(self, trained, tmp_path):
        cfg = load_tiny_run(trained, work_dir=str(tmp_path), model__neck__num_bases=1)
        with pytest.raises(UserError, match='is of another architecture .* of another shape: neck'):
            run_test(cfg, str(trained / 'work/epoch_1.pth'))

    def test_a_truncated_checkpoint(self, trained, tmp_path):
        broken = tmp_path / 'broken.pth'
        broken.write_bytes((trained / 'work/epoch_1.pth').read_bytes()[:5000])
        cfg = load_tiny_run(trained, work_dir=str(tmp_path / 'work'))
        with pytest.raises(UserError, match=r'broken\.pth is truncated'):
            run_test(cfg, str(broken))
        with pytest.raises(UserError, match=r'broken\.pth is truncated'):
            run_training(cfg, resume=str(broken))
        cfg.load_from = str(broken)
        with pytest.raises(UserError, match=r'broken\.pth is truncated'):
            run_training(cfg)

    def test_an_argument_that_a_part_refuses(self, tmp_path):
        cfg = load_tiny_run(tmp_path, model__backbone__depth=19)
        with pytest.raises(UserError, match='^depth=19: GroupNetResNet has the depths 18, 20, 32, 34, 44, 50, 56, 101'):
            run_training(cfg)

    def test_missing_data(self, tmp_path):
        cfg = load_tiny_run(tmp_path)
        shutil.rmtree(tmp_path / 'data')
        with pytest.raises(UserError, match='Link your copy'):
            run_training(cfg)

    def test_auto_scale_lr_without_a_base(self, tmp_path):
        cfg = load_tiny_run(tmp_path)
        del cfg.auto_scale_lr['base_batch_size']
        with pytest.raises(UserError, match='--auto-scale-lr needs auto_scale_lr'):
            run_training(cfg, auto_scale_lr=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason='has a GPU')
def test_amp_on_the_cpu_is_bfloat16(tmp_path, monkeypatch):
    seen = set()
    convolve = nn.Conv2d.forward

    def noted(conv, x):
        out = convolve(conv, x)
        if conv.training:
            seen.add(out.dtype)
        return out

    monkeypatch.setattr(nn.Conv2d, 'forward', noted)
    model = run_training(load_tiny_run(tmp_path, train_cfg__max_epochs=1, train_cfg__val_interval=2), amp=True)
    assert seen == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    found = losses(tmp_path / 'work')
    assert sorted(found) == [1, 2, 3, 4] and all(map(math.isfinite, found.values()))


def test_a_backbone_alone_can_be_loaded(trained, tmp_path):
    checkpoint = trained / 'work/epoch_1.pth'
    init_cfg = dict(type='Pretrained', checkpoint=str(checkpoint), prefix='backbone')
    cfg = load_tiny_run(
        trained,
        work_dir=str(tmp_path),
        model__backbone__init_cfg=init_cfg,
        model__neck__out_channels=4,
        model__bbox_head__in_channels=4,
        train_cfg__max_epochs=1,
        optim_wrapper__optimizer__lr=0.0,
    )
    weights = torch.load(checkpoint)['state_dict']
    model = run_training(cfg)
    loaded = {name: value for name, value in model.named_parameters() if name.startswith('backbone.')}
    assert len(loaded) > 30
    for name, value in loaded.items():
        assert torch.equal(value, weights[name])


def test_a_training_starts_from_a_checkpoint_with_another_head(trained, tmp_path):
    """The usual fine-tuning, here with a learning rate of zero, so that the loaded weights do not change."""
    checkpoint = torch.load(trained / 'work/epoch_1.pth')
    weights = checkpoint['state_dict']
    weights['bbox_head.conv_cls.weight'], weights['bbox_head.conv_cls.bias'] = torch.ones(5, 8, 3, 3), torch.ones(5)
    torch.save(checkpoint, tmp_path / 'five_classes.pth')
    cfg = load_tiny_run(
        trained,
        work_dir=str(tmp_path / 'work'),
        load_from=str(tmp_path / 'five_classes.pth'),
        train_cfg__max_epochs=1,
        train_cfg__val_interval=2,
        optim_wrapper__optimizer__lr=0.0,
    )
    own = dict(run_training(cfg).named_parameters())
    other = [name for name, value in own.items() if value.shape != weights[name].shape]
    assert other == ['bbox_head.conv_cls.weight', 'bbox_head.conv_cls.bias']
    assert all(torch.equal(value, weights[name]) for name, value in own.items() if name not in other)
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert '| bbox_head | ' in log and 'of another shape: bbox_head.conv_cls.weight (5, 8, 3, 3) instead of (2, ' in log


def test_the_learning_rate_scales(tmp_path):
    """The base batch size is 2 and the batch size 4, so the learning rate doubles."""
    cfg = load_tiny_run(
        tmp_path,
        train_dataloader__batch_size=4,
        train_cfg__max_epochs=1,
        param_scheduler=None,
        optim_wrapper__optimizer__lr=0.001,
    )
    run_training(cfg, auto_scale_lr=True)
    weights = torch.load(tmp_path / 'work/epoch_1.pth')
    assert weights['optimizer']['param_groups'][0]['lr'] == 0.002


class TestTest:
    def test_metrics_are_those_of_training(self, trained, tmp_path):
        metrics = run_test(load_tiny_run(trained, work_dir=str(tmp_path)), str(trained / 'work/epoch_3.pth'))
        logs = max((trained / 'work').glob('*/vis_data/scalars.json'))
        last = json.loads(logs.read_text().splitlines()[-1])
        assert metrics['coco/bbox_mAP'] == last['coco/bbox_mAP']
        assert not math.isnan(metrics['coco/bbox_mAP'])

    @pytest.mark.parametrize('tta', [False, True])
    def test_predictions_are_drawn_and_written(self, trained, tmp_path, tta):
        cfg = load_tiny_run(trained, work_dir=str(tmp_path))
        out = tmp_path / 'predictions.pkl'
        run_test(cfg, str(trained / 'work/epoch_3.pth'), out=str(out), show_dir=str(tmp_path / 'drawn'), tta=tta)
        assert out.stat().st_size > 0
        assert sorted(path.name for path in tmp_path.glob('drawn/*')) == ['10.png', '11.png', '8.png', '9.png']

    def test_augmentation_reaches_all_of_a_wrapped_test_set(self, trained, tmp_path):
        cfg = load_tiny_run(trained, work_dir=str(tmp_path))
        plain = cfg.test_dataloader.dataset
        cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[plain, plain])
        augment_test(cfg)
        for dataset in cfg.test_dataloader.dataset.datasets:
            assert [step.type for step in dataset.pipeline] == [
                'LoadImageFromFile',
                'Resize',
                'LoadAnnotations',
                'TestTimeAug',
            ]

    def test_a_config_keeps_what_it_has_of_augmentation(self, trained, tmp_path):
        own = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='soft_nms'), max_per_img=7))
        cfg = load_tiny_run(trained, work_dir=str(tmp_path), tta_model=own)
        augment_test(cfg)
        assert cfg.model.tta_cfg.max_per_img == 7 and cfg.model.module.type == 'FCOS'
        assert cfg.test_dataloader.dataset.pipeline[-1].type == 'TestTimeAug'
        steps = [dict(type='LoadImageFromFile')]
        cfg = load_tiny_run(trained, work_dir=str(tmp_path), tta_pipeline=steps)
        augment_test(cfg)
        assert cfg.model.type == 'mmgroupnet.AugmentedDetector' and cfg.test_dataloader.dataset.pipeline == steps

    def test_misuse(self, trained, tmp_path):
        cfg = load_tiny_run(trained, work_dir=str(tmp_path))
        checkpoint = str(trained / 'work/epoch_3.pth')
        with pytest.raises(UserError, match='--out result.json: predictions are written as a pickle'):
            run_test(cfg, checkpoint, out='result.json')
        cfg = load_tiny_run(trained, work_dir=str(tmp_path), default_scope='mmengine')
        with pytest.raises(UserError, match='--tta needs a config whose default_scope is one of mmdet, mmseg, mmpretr'):
            run_test(cfg, checkpoint, tta=True)
