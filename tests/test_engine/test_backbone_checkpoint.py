"""A detector's backbone starts from a classification checkpoint; a missing or unsuitable checkpoint is reported."""

import logging

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope

from mmgroupnet import convert_official
from mmgroupnet.deploy import pack
from mmgroupnet.engine import training
from mmgroupnet.engine.training import apply_backbone_checkpoint, run_training
from mmgroupnet.errors import UserError
from tests.official import FAMILIES, official_state_dict
from tests.tiny_run import load_tiny_run

BACKBONE = dict(type='mmgroupnet.GroupNetResNet', depth=18, num_bases=2, base_channels=8)


def config(checkpoint):
    return Config(dict(default_scope='mmdet', model=dict(backbone=dict(BACKBONE)), backbone_checkpoint=checkpoint))


@pytest.fixture
def classifier(tmp_path):
    """A checkpoint in mmpretrain's format, with backbone and head."""
    backbone = MODELS.build(BACKBONE)
    state_dict = {f'backbone.{name}': value for name, value in backbone.state_dict().items()}
    path = tmp_path / 'classifier.pth'
    torch.save(dict(state_dict=dict(state_dict, **{'head.fc.weight': torch.zeros(10, 64)})), path)
    return path, backbone


def test_weights_of_the_classifier_arrive_in_the_backbone(classifier):
    path, trained = classifier
    cfg = config(str(path))
    apply_backbone_checkpoint(cfg)
    backbone = MODELS.build(cfg.model.backbone)
    backbone.init_weights()
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(backbone.state_dict()[name], value, rtol=0, atol=0)


def test_no_checkpoint_is_said_aloud(monkeypatch):
    warnings = []
    monkeypatch.setattr(training, 'print_log', lambda message, logger, level: warnings.append((level, message)))
    cfg = config(None)
    apply_backbone_checkpoint(cfg)
    ((level, message),) = warnings
    assert level == logging.WARNING
    assert 'from scratch will not reach' in message
    assert 'init_cfg' not in cfg.model.backbone


def test_a_config_without_the_setting_is_left_alone():
    cfg = Config(dict(model=dict(backbone=dict(BACKBONE))))
    apply_backbone_checkpoint(cfg)
    assert cfg.model.backbone == BACKBONE


def test_another_backbone_is_refused(classifier):
    cfg = config(str(classifier[0]))
    cfg.model.backbone.depth = 34
    with pytest.raises(UserError, match=r'another architecture .*88 missing: stages\.0\.2\.'):
        apply_backbone_checkpoint(cfg)


NUM_BASES = 3
# Output stride 8, with a different dilation for every branch.
BPAC = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 'bpac', 'bpac'))


def backbone_cfg(**options):
    return dict(type='mmgroupnet.GroupNetResNet', depth=18, num_bases=NUM_BASES, base_channels=8) | options


def pretrained(path, prefix='backbone.', **options):
    return backbone_cfg(init_cfg=dict(type='Pretrained', checkpoint=str(path), prefix=prefix), **options)


def save_classifier(path, backbone):
    """Writes a checkpoint in the format of a Runner, with the classifier's head."""
    state_dict = {f'backbone.{name}': value for name, value in backbone.state_dict().items()}
    torch.save(dict(meta=dict(epoch=1), state_dict={**state_dict, 'head.fc.weight': torch.zeros(10, 64)}), path)


def detector(backbone):
    return dict(
        type='mmdet.FCOS',
        backbone=backbone,
        neck=dict(type='mmdet.FPN', in_channels=[8, 16, 32, 64], out_channels=8, num_outs=4),
        bbox_head=dict(
            type='mmdet.FCOSHead',
            num_classes=2,
            in_channels=8,
            feat_channels=8,
            stacked_convs=1,
            norm_cfg=dict(type='BN'),
        ),
    )


def segmentor(backbone):
    return dict(
        type='mmseg.EncoderDecoder',
        backbone=backbone,
        decode_head=dict(type='mmseg.FCNHead', in_channels=64, in_index=3, channels=8, num_convs=1, num_classes=4),
        test_cfg=dict(mode='whole'),
    )


def assert_equal_weights(backbone, expected):
    assert set(backbone.state_dict()) == set(expected)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize('geometry', [dict(), BPAC], ids=['stride-32', 'bpac'])
@pytest.mark.parametrize(('library', 'model'), [('mmdet', detector), ('mmseg', segmentor)], ids=['fcos', 'fcn'])
@pytest.mark.parametrize('family', ['r18-scales-gates', 'r18-gates', 'r18-scales'])
def test_a_converted_checkpoint_starts_a_detector_and_a_segmentor(tmp_path, family, library, model, geometry):
    pytest.importorskip(library)
    state_dict = official_state_dict(FAMILIES[family], NUM_BASES, channels=8, dtype=torch.float32)
    model_cfg, weights = convert_official(state_dict)
    torch.save(dict(state_dict=weights), tmp_path / 'classifier.pth')
    options = {name: value for name, value in model_cfg['backbone'].items() if name not in ('type', 'out_indices')}
    cfg = model(pretrained(tmp_path / 'classifier.pth', **options, **geometry))
    with DefaultScope.overwrite_default_scope(library):
        built = MODELS.build(ConfigDict(cfg))
        built.init_weights()
    expected = {
        name.removeprefix('backbone.'): value for name, value in weights.items() if name.startswith('backbone.')
    }
    assert_equal_weights(built.backbone, expected)


@pytest.mark.parametrize('geometry', [dict(), BPAC], ids=['stride-32', 'bpac'])
@pytest.mark.parametrize(
    'options',
    [
        dict(binary_downsample=False, avg_down=True),
        dict(avg_down=True),
        dict(depth=50),
        dict(depth=50, avg_down=True, binary_downsample=False),
        dict(gate_per_branch=True, learned_scales=True),
        dict(in_place_sum=True),
    ],
    ids=str,
)
def test_names_do_not_depend_on_the_output_stride(tmp_path, options, geometry):
    classifier = MODELS.build(backbone_cfg(out_indices=(3,), **options))
    save_classifier(tmp_path / 'classifier.pth', classifier)
    backbone = MODELS.build(pretrained(tmp_path / 'classifier.pth', **options, **geometry))
    backbone.init_weights()
    assert_equal_weights(backbone, classifier.state_dict())
    if not geometry:
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(backbone.eval()(x)[3], classifier.eval()(x)[0])


@pytest.mark.parametrize('decomposition', ['lbd', 'gbd_v1', 'gbd_v2', 'gbd_v3', 'soft_gate'])
@pytest.mark.parametrize('learned_scales', [False, True])
def test_scales_do_not_depend_on_out_indices_but_in_gbd_v3(tmp_path, decomposition, learned_scales):
    options = dict(decomposition=decomposition, learned_scales=learned_scales)
    classifier = MODELS.build(backbone_cfg(out_indices=(3,), **options))
    save_classifier(tmp_path / 'classifier.pth', classifier)
    backbone = MODELS.build(pretrained(tmp_path / 'classifier.pth', **options))
    if decomposition == 'gbd_v3' and learned_scales:
        message = r"3 missing: stages\.0\.1\.merge\.scales, .*'gbd_v3' has learned scales only for .*=\(0, 1, 2, 3\):"
        with pytest.raises(UserError, match=message):
            backbone.init_weights()
        return
    backbone.init_weights()
    assert_equal_weights(backbone, classifier.state_dict())


class TestMismatches:
    @pytest.fixture
    def path(self, tmp_path):
        save_classifier(tmp_path / 'classifier.pth', MODELS.build(backbone_cfg(out_indices=(3,))))
        return tmp_path / 'classifier.pth'

    @pytest.mark.parametrize(
        ('options', 'message'),
        [
            (dict(depth=34), r"does not hold exactly its weights under 'backbone\.' \(88 missing: stages\.0\.2\."),
            (dict(stage_blocks=(1, 2, 2, 2)), r'13 unexpected: stages\.0\.1\.'),
            (dict(base_channels=16), r'of another shape: stem\.0\.weight \(8, 3, 7, 7\) instead of \(16, 3, 7, 7\)'),
            (dict(learned_scales=True), r'8 missing: stages\.0\.0\.merge\.scales'),
            (dict(in_place_sum=True), r'8 missing: stages\.0\.0\.merge\.sums_in_place'),
            (dict(stem_bias=True), r'1 missing: stem\.0\.bias'),
            (dict(decomposition='gbd_v1'), r'7 unexpected: stages\.0\.1\.connection\.theta'),
            (dict(prefix=None), r"unexpected: backbone\.stem\..*It is that of a whole model: give prefix='backbone\.'"),
            (dict(prefix='neck'), r"under 'neck\.' \(\d+ missing"),
        ],
        ids=str,
    )
    def test_what_does_not_fit_is_an_error(self, path, options, message):
        backbone = MODELS.build(pretrained(path, **options))
        with pytest.raises(UserError, match=message):
            backbone.init_weights()

    def test_the_prefix_needs_no_dot_and_the_backbone_alone_no_prefix(self, tmp_path, path):
        trained = torch.load(path)['state_dict']
        trained = {name.removeprefix('backbone.'): value for name, value in trained.items() if 'backbone' in name}
        torch.save({f'module.{name}': value for name, value in trained.items()}, tmp_path / 'backbone.pth')
        for cfg in (pretrained(path, 'backbone'), pretrained(tmp_path / 'backbone.pth', None)):
            backbone = MODELS.build(cfg)
            backbone.init_weights()
            assert_equal_weights(backbone, trained)

    def test_other_initialisations_beside_it(self, path):
        cfgs = [dict(type='Kaiming', layer='Conv2d'), dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')]
        MODELS.build(backbone_cfg(init_cfg=cfgs)).init_weights()
        with pytest.raises(UserError, match='8 missing'):
            MODELS.build(backbone_cfg(init_cfg=cfgs, learned_scales=True)).init_weights()

    def test_no_file(self, tmp_path):
        with pytest.raises(UserError, match=r'nowhere\.pth does not exist'):
            MODELS.build(pretrained(tmp_path / 'nowhere.pth')).init_weights()

    def test_packed_weights(self, tmp_path):
        save_classifier(tmp_path / 'packed.pth', pack(MODELS.build(backbone_cfg(out_indices=(3,)))))
        with pytest.raises(UserError, match=r'packed\.pth is packed: give the one that it was packed from'):
            MODELS.build(pretrained(tmp_path / 'packed.pth')).init_weights()

    def test_training_says_it_in_one_line(self, tmp_path, path):
        cfg = load_tiny_run(tmp_path)
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
        with pytest.raises(UserError, match=r'init_cfg of GroupNetResNet: checkpoint .* does not hold exactly'):
            run_training(cfg)
