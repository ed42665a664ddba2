"""Files of packed models: their content, all ways to load them, and errors."""

import io
import pickle
import random
import re
import shutil
import zipfile
from unittest import mock

import mmengine.device.utils
import pytest
import torch
from mmdet.apis import DetInferencer
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

from mmgroupnet.checkpoints.packed import adopt_packed, read_packed, save_packed
from mmgroupnet.checkpoints.read import is_packed, read_checkpoint
from mmgroupnet.deploy import pack, pack_and_report
from mmgroupnet.engine.arguments import check_arguments
from mmgroupnet.engine.packing import pack_checkpoint
from mmgroupnet.engine.prediction import draw_on_pictures
from mmgroupnet.engine.testing import run_test
from mmgroupnet.engine.training import run_training
from mmgroupnet.errors import UserError
from mmgroupnet.layers import BinaryConv2d
from mmgroupnet.layers.packed import PackedUnit
from mmgroupnet.model_configs import with_data_preprocessor
from tests.test_engine.test_libraries import BACKBONE, CLASSIFIER, SEGMENTOR
from tests.tiny_run import load_tiny_run

DATASET_META = dict(classes=('red', 'blue'), palette=[(200, 10, 10), (10, 10, 200)])
# Keeps all candidates, so that the metrics of untrained weights are not zero.
OPTIONS = dict(model__test_cfg__max_per_img=100)
BINARY_HEAD = dict(model__bbox_head__type='mmgroupnet.BinaryFCOSHead', model__bbox_head__num_bases=2)
REAL_WEIGHTS = dict(weight=dict(type='mmgroupnet.RealWeight'))


def build(model, scope):
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(model)


def write_float(cfg, path, dataset_meta=DATASET_META):
    """Writes a checkpoint of untrained weights, whose norms have random statistics and weights; returns the model."""
    torch.manual_seed(2)
    model = build(with_data_preprocessor(cfg.model, cfg.get('data_preprocessor')), cfg.default_scope)
    model.init_weights()
    for norm in (module for module in model.modules() if isinstance(module, _BatchNorm)):
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 1.5)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
    if hasattr(model, 'bbox_head'):
        nn.init.normal_(model.bbox_head.conv_cls.weight, std=0.5)
        nn.init.constant_(model.bbox_head.conv_reg.bias, 2.1)  # gives boxes of the size of the squares
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dataset_meta)), path)
    return model.eval()


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    """The folder of the tiny detector with a binary head; it contains float.pth and packed.pth."""
    folder = tmp_path_factory.mktemp('packed')
    cfg = load_tiny_run(folder, **OPTIONS, **BINARY_HEAD)
    write_float(cfg, folder / 'float.pth')
    pack_checkpoint(cfg, folder / 'float.pth', folder / 'packed.pth')
    return folder


def tiny_config(folder, **overrides):
    return load_tiny_run(folder, **OPTIONS, **BINARY_HEAD, **overrides)


def packed_config(folder):
    cfg = tiny_config(folder)
    cfg.model = dict(type='mmgroupnet.Packed', model=cfg.model)
    return cfg


class TestFormat:
    def test_the_file_opens_in_safe_mode_without_mmgroupnet(self, tiny):
        content = torch.load(tiny / 'packed.pth', weights_only=True)
        assert set(content) == {'meta', 'state_dict'}
        assert set(content['meta']) == {'cfg', 'dataset_meta', 'packed'}
        assert content['meta']['dataset_meta'] == DATASET_META
        assert content['meta']['packed']['version'] == 1
        assert re.fullmatch('[0-9a-f]{64}', content['meta']['packed']['sha256'])

    def test_one_bit_per_binary_weight(self, tiny):
        float_model = build(tiny_config(tiny).model, 'mmdet')
        weights = [module.weight for module in float_model.modules() if isinstance(module, BinaryConv2d)]
        expected = sum(len(weight) * -(-weight[0].numel() // 8) for weight in weights)
        state_dict = read_packed(tiny / 'packed.pth')['state_dict']
        bits = [tensor for name, tensor in state_dict.items() if name.endswith('bits')]
        assert {tensor.dtype for tensor in bits} == {torch.uint8}
        # The levels of a tower share their weights, so these are counted once.
        assert sum({tensor.data_ptr(): tensor.numel() for tensor in bits}.values()) == expected

    def test_every_tensor_is_stored_once_and_without_slack(self, tiny):
        with zipfile.ZipFile(tiny / 'packed.pth') as archive:
            stored = sum(entry.file_size for entry in archive.infolist() if '/data/' in entry.filename)
        state_dict = read_packed(tiny / 'packed.pth')['state_dict']
        sizes = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in state_dict.values()}
        assert stored == sum(sizes.values())
        first, second = (state_dict[f'bbox_head.cls_convs.0.levels.{level}.units.0.bits'] for level in (0, 1))
        assert first.data_ptr() == second.data_ptr()

    def test_its_config_is_the_whole_one_with_the_model_packed(self, tiny):
        cfg = tiny_config(tiny)
        found = Config.fromstring(read_packed(tiny / 'packed.pth')['meta']['cfg'], '.py')
        assert found.model.type == 'mmgroupnet.Packed'
        assert found.model.model.to_dict() == cfg.model.to_dict()
        assert found.test_dataloader.to_dict() == cfg.test_dataloader.to_dict()

    def test_the_same_model_gives_the_same_bytes(self, tiny, tmp_path):
        pack_checkpoint(packed_config(tiny), tiny / 'float.pth', tmp_path / 'folder/again.pth')
        assert (tmp_path / 'folder/again.pth').read_bytes() == (tiny / 'packed.pth').read_bytes()
        assert [path.name for path in (tmp_path / 'folder').iterdir()] == ['again.pth']


@pytest.mark.parametrize('library', [CLASSIFIER, SEGMENTOR], ids=['mmpretrain', 'mmseg'])
def test_round_trip_in_other_libraries(tmp_path, library):
    cfg = Config.fromstring(f'data_root = ""\n{BACKBONE}{library}', '.py')
    model = write_float(cfg, tmp_path / 'float.pth')
    layers = pack_checkpoint(cfg, tmp_path / 'float.pth', tmp_path / 'packed.pth', strict=True)
    assert len(layers) == sum(isinstance(module, BinaryConv2d) for module in model.modules())
    found = Config.fromstring(read_packed(tmp_path / 'packed.pth')['meta']['cfg'], '.py')
    packed = build(dict(found.model, data_preprocessor=found.get('data_preprocessor')), cfg.default_scope)
    load_checkpoint(packed, str(tmp_path / 'packed.pth'))
    assert type(packed) is type(model)
    assert_close(packed.data_preprocessor.mean, model.data_preprocessor.mean)
    pictures = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_close(packed(pictures), model(pictures), atol=1e-4, rtol=1e-4)


class TestPackedInConfigs:
    def test_the_inner_data_preprocessor_comes_first(self, tiny):
        cfg = packed_config(tiny)
        outer = dict(cfg.model.model.data_preprocessor, mean=[1.0] * 3)
        assert build(dict(cfg.model, data_preprocessor=outer), 'mmdet').data_preprocessor.mean.flatten()[0] == 127.5
        del cfg.model.model.data_preprocessor
        assert build(dict(cfg.model, data_preprocessor=outer), 'mmdet').data_preprocessor.mean.flatten()[0] == 1
        assert 'data_preprocessor' not in cfg.model.model

    def test_arguments_of_the_inner_model_are_checked(self, tiny):
        cfg = packed_config(tiny)
        check_arguments(cfg)
        cfg.model.model.backbone.num_base = 2
        with pytest.raises(UserError, match=r"model\.model\.backbone: GroupNetResNet takes no argument 'num_base'"):
            check_arguments(cfg)
        cfg = packed_config(tiny)
        cfg.model.modle = {}
        with pytest.raises(UserError, match="model: build_packed takes no argument 'modle'"):
            check_arguments(cfg)

    @pytest.mark.parametrize('kind', ['Packed', 'Binarized'])
    def test_options_of_the_backbone_beside_the_model_are_refused(self, tiny, kind):
        """They would have no effect there."""
        model = dict(type=f'mmgroupnet.{kind}', backbone=dict(depth=34), model=tiny_config(tiny).model)
        if kind == 'Binarized':
            model['policy'] = []
        with pytest.raises(UserError, match=r"^backbone={'depth': 34}: .* belong into model.backbone, inside"):
            build(model, 'mmdet')

    def test_the_file_has_a_data_preprocessor_beside_the_model_inside(self, tiny, tmp_path):
        cfg = tiny_config(tiny)
        cfg.data_preprocessor = expected = cfg.model.pop('data_preprocessor')
        pack_checkpoint(cfg, tiny / 'float.pth', tmp_path / 'packed.pth')
        found = Config.fromstring(read_packed(tmp_path / 'packed.pth')['meta']['cfg'], '.py')
        assert found.model.model.data_preprocessor == expected

    def test_it_needs_binary_layers(self):
        with pytest.raises(ValueError, match='no binary layers'):
            MODELS.build(dict(type='mmgroupnet.Packed', model=dict(type='mmdet.ResNet', depth=18)))


class TestTools:
    @pytest.mark.parametrize('tta', [False, True])
    def test_the_same_metrics_and_predictions(self, tiny, tmp_path, tta):
        metrics, predictions = [], []
        for name in ('float', 'packed'):
            out = str(tmp_path / f'{name}.pkl')
            metrics.append(run_test(tiny_config(tiny), str(tiny / f'{name}.pth'), out=out, tta=tta))
            with open(out, 'rb') as file:
                predictions.append([picture['pred_instances'] for picture in pickle.load(file)])
        assert metrics[0]['coco/bbox_mAP_50'] > 0.01
        assert metrics[1] == pytest.approx(metrics[0], abs=0.002)
        assert len(predictions[0]) == 4
        for simulated, packed in zip(*predictions, strict=True):
            assert_close(packed['scores'], simulated['scores'], atol=1e-5, rtol=1e-4)
            assert_close(packed['bboxes'], simulated['bboxes'], atol=1e-2, rtol=1e-4)

    def test_a_config_that_is_packed_itself(self, tiny):
        assert run_test(packed_config(tiny), str(tiny / 'packed.pth'))['coco/bbox_mAP_50'] > 0.01

    def test_half_precision_gets_a_remark(self, tiny):
        cfg = tiny_config(tiny, test_cfg__fp16=True)
        with mock.patch('mmgroupnet.checkpoints.packed.print_log') as print_log:
            adopt_packed(cfg, tiny / 'packed.pth')
            adopt_packed(tiny_config(tiny), tiny / 'packed.pth')
        ((message,), _) = print_log.call_args
        assert re.search(r'test_cfg.fp16=True: the packed layers of \S+packed.pth compute in float32', message)
        assert print_log.call_count == 1

    def test_predictions_on_pictures(self, tiny, tmp_path):
        picture = str(tiny / 'data/images/8.png')
        cfg = tiny_config(tiny)
        drawn = {
            name: (draw_on_pictures(cfg, tiny / f'{name}.pth', [picture], tmp_path / name, 0.0, device) / '8.png')
            for name, device in (('float', 'cpu'), ('packed', None))
        }
        assert drawn['packed'].read_bytes() == drawn['float'].read_bytes()
        assert cfg.model.type == 'FCOS'

    def test_another_device_than_the_cpu(self, tiny, tmp_path):
        with pytest.raises(UserError, match=r'--device cuda:0: packed checkpoint .*packed\.pth runs only on the CPU'):
            draw_on_pictures(tiny_config(tiny), tiny / 'packed.pth', [], tmp_path, device='cuda:0')

    def test_the_cpu_is_taken_on_a_host_with_a_gpu(self, tiny, monkeypatch):
        expected = run_test(tiny_config(tiny), str(tiny / 'packed.pth'))
        monkeypatch.setattr(mmengine.device.utils, 'DEVICE', 'cuda')
        assert run_test(tiny_config(tiny), str(tiny / 'packed.pth')) == expected
        assert get_device() == 'cuda'
        message = r'--launcher pytorch: packed checkpoint .*packed\.pth runs only on the CPU, leave the launcher out'
        with pytest.raises(UserError, match=message):
            run_test(tiny_config(tiny, launcher='pytorch'), str(tiny / 'packed.pth'))
        assert get_device() == 'cuda'

    def test_another_architecture(self, tiny):
        with pytest.raises(UserError, match=r'another architecture than the config \(.* of another shape: '):
            run_test(tiny_config(tiny, model__backbone__num_bases=3), str(tiny / 'packed.pth'))

    def test_training_is_refused(self, tiny, tmp_path):
        shutil.copy(tiny / 'packed.pth', tmp_path / 'epoch_1.pth')
        message = r'\.pth is packed and cannot be trained: give the one that it was packed from'
        with pytest.raises(UserError, match=message):
            run_training(tiny_config(tiny, load_from=str(tiny / 'packed.pth')))
        with pytest.raises(UserError, match=message):
            run_training(tiny_config(tiny), resume=str(tiny / 'packed.pth'))
        with pytest.raises(UserError, match=message):
            run_training(tiny_config(tiny, work_dir=str(tmp_path)), resume='auto')
        with pytest.raises(UserError, match=message):
            run_training(tiny_config(tiny, backbone_checkpoint=str(tiny / 'packed.pth')))
        with pytest.raises(UserError, match=r"model=dict\(type='mmgroupnet.Packed'.* cannot be trained"):
            run_training(packed_config(tiny))

    def test_a_float_checkpoint_for_a_packed_config(self, tiny):
        with pytest.raises(UserError, match=r'float\.pth is not packed: mmgroupnet pack packs it'):
            run_test(packed_config(tiny), str(tiny / 'float.pth'))


class TestStockInferencers:
    @pytest.fixture
    def expected(self, tiny):
        return self.predict(DetInferencer(tiny_config(tiny), str(tiny / 'float.pth'), 'cpu'), tiny)

    @staticmethod
    def predict(inferencer, folder):
        prediction = inferencer(str(folder / 'data/images/8.png'), no_save_vis=True)['predictions'][0]
        return torch.tensor(prediction['scores']), torch.tensor(prediction['bboxes'])

    def test_the_file_alone(self, tiny, expected):
        inferencer = DetInferencer(weights=str(tiny / 'packed.pth'), device='cpu')
        assert any(isinstance(module, PackedUnit) for module in inferencer.model.modules())
        assert inferencer.model.dataset_meta['classes'] == DATASET_META['classes']
        assert_close(self.predict(inferencer, tiny), expected, atol=1e-2, rtol=1e-4)

    def test_a_packed_config_and_the_file(self, tiny, expected, tmp_path):
        packed_config(tiny).dump(tmp_path / 'packed.py')
        inferencer = DetInferencer(str(tmp_path / 'packed.py'), str(tiny / 'packed.pth'), 'cpu')
        assert_close(self.predict(inferencer, tiny), expected, atol=1e-2, rtol=1e-4)

    def test_a_float_config_is_refused(self, tiny):
        with pytest.raises(
            ValueError, match=r"backbone\S+ is packed: build the model as dict\(type='mmgroupnet.Packed'"
        ):
            DetInferencer(tiny_config(tiny), str(tiny / 'packed.pth'), 'cpu')

    def test_a_float_checkpoint_is_refused(self, tiny):
        with pytest.raises(
            ValueError, match=r'backbone\S+bits is missing: a packed model takes only the weights of a packed'
        ):
            DetInferencer(packed_config(tiny), str(tiny / 'float.pth'), 'cpu')

    def test_another_architecture_is_refused(self, tiny):
        cfg = packed_config(tiny)
        cfg.model.model.backbone.num_bases = 3
        with pytest.raises(ValueError, match=r'bits is \(16, 9\) instead of \(24, 9\): .* of another architecture'):
            DetInferencer(cfg, str(tiny / 'packed.pth'), 'cpu')


def test_no_part_of_a_float_model_takes_packed_weights(tiny):
    """Packing renames the keys of units, conv modules, skips, towers and shortcuts; the float model refuses all."""
    model = build(tiny_config(tiny).model, 'mmdet')
    state_dict = read_packed(tiny / 'packed.pth')['state_dict']
    convs = {name: module for name, module in model.named_modules() if isinstance(module, BinaryConv2d)}
    assert any(name.startswith('bbox_head') for name in convs) and any(name.startswith('neck') for name in convs)
    for name, conv in convs.items():
        metadata = state_dict._metadata[name]
        with pytest.raises(ValueError, match=re.escape(f'{name} is packed: build the model as')):
            conv._load_from_state_dict({}, f'{name}.', metadata, False, [], [], [])
    with pytest.raises(ValueError, match='is packed: build the model as'):
        model.load_state_dict(state_dict, strict=False)


def test_a_float_backbone_is_not_initialised_from_packed_weights(tiny):
    cfg = tiny_config(tiny)
    cfg.model.backbone.init_cfg = dict(
        type='Pretrained', checkpoint=str(tiny / 'packed.pth'), prefix='backbone.', map_location='cpu'
    )
    model = build(with_data_preprocessor(cfg.model, None), cfg.default_scope)
    with pytest.raises(ValueError, match='is packed'):
        model.init_weights()


def test_a_float_conv_refuses_bits_without_metadata():
    conv = BinaryConv2d(8, 4, 3)
    with pytest.raises(ValueError, match='the conv is packed: build the model as'):
        conv.load_state_dict(dict(pack(conv).state_dict()), strict=False)
    conv.load_state_dict(dict(conv.state_dict()))


class TestPackCheckpoint:
    def pack(self, folder, tmp_path, float_name='float.pth', strict=False, **overrides):
        cfg = tiny_config(folder, **overrides)
        path = folder / float_name
        if overrides:
            path = tmp_path / float_name
            write_float(cfg, path)
        out = tmp_path / 'packed.pth'
        try:
            return pack_checkpoint(cfg, path, out, strict)
        except UserError:
            assert not out.exists() and not list(tmp_path.glob('*.partial'))
            raise

    def test_what_stays_float(self, tiny, tmp_path):
        overrides = dict(model__neck__binary_cfg=REAL_WEIGHTS)
        layers = self.pack(tiny, tmp_path, **overrides)
        assert {layer.name.split('.')[0]: layer.problem is None for layer in layers} == dict(
            backbone=True, neck=False, bbox_head=True
        )
        cfg = tiny_config(tiny, **overrides)
        simulated, packed = (
            run_test(cfg.copy(), str(tmp_path / f'{name}.pth'))['coco/bbox_mAP'] for name in ('float', 'packed')
        )
        assert packed == pytest.approx(simulated, abs=0.002)
        message = r'--strict: (\d+) of \d+ binary layers stay float \(neck\S+: RealWeight has no signs.* and \d+ more\)'
        (tmp_path / 'packed.pth').unlink()
        with pytest.raises(UserError, match=message):
            self.pack(tiny, tmp_path, strict=True, **overrides)

    def test_a_real_valued_model(self, tiny, tmp_path):
        cfg = Config.fromstring(f'data_root = ""\n{BACKBONE}{CLASSIFIER}', '.py')
        cfg.model.backbone.real_valued = True
        write_float(cfg, tmp_path / 'float.pth')
        with pytest.raises(UserError, match=r'none of the \d+ binary layers can be packed \(backbone\S+: RealWeight'):
            pack_checkpoint(cfg, tmp_path / 'float.pth', tmp_path / 'packed.pth')
        assert not (tmp_path / 'packed.pth').exists()

    def test_a_model_without_binary_layers(self, tmp_path):
        cfg = Config(dict(default_scope='mmdet', model=dict(type='ResNet', depth=18)))
        write_float(cfg, tmp_path / 'float.pth')
        with pytest.raises(UserError, match='no binary layers of mmgroupnet to pack'):
            pack_checkpoint(cfg, tmp_path / 'float.pth', tmp_path / 'packed.pth')

    def test_checkpoints_that_do_not_fit(self, tiny, tmp_path):
        cfg = tiny_config(tiny)
        with pytest.raises(UserError, match='of another architecture than the config'):
            pack_checkpoint(tiny_config(tiny, model__backbone__num_bases=3), tiny / 'float.pth', tmp_path / 'a.pth')
        with pytest.raises(UserError, match=r'packed\.pth is packed already'):
            pack_checkpoint(cfg, tiny / 'packed.pth', tmp_path / 'a.pth')
        with pytest.raises(UserError, match=r'nowhere\.pth does not exist'):
            pack_checkpoint(cfg, tiny / 'nowhere.pth', tmp_path / 'a.pth')
        content = torch.load(tiny / 'float.pth', weights_only=True)
        content['state_dict']['neck.lateral_convs.0.conv.weight'][0, 0, 0, 0] = float('nan')
        torch.save(content, tmp_path / 'nan.pth')
        with pytest.raises(UserError, match=r'nan\.pth: neck\.lateral_convs\.0\.conv\.weight is not finite'):
            pack_checkpoint(cfg, tmp_path / 'nan.pth', tmp_path / 'a.pth')
        assert not (tmp_path / 'a.pth').exists()

    def test_where_it_cannot_be_written(self, tiny, tmp_path):
        shutil.copy(tiny / 'float.pth', tmp_path)
        with pytest.raises(UserError, match=r'--out .*float\.pth is the checkpoint itself'):
            pack_checkpoint(tiny_config(tiny), tmp_path / 'float.pth', tmp_path / 'x/../float.pth')
        with pytest.raises(UserError, match=r'float\.pth/packed\.pth cannot be written: '):
            pack_checkpoint(tiny_config(tiny), tmp_path / 'float.pth', tmp_path / 'float.pth/packed.pth')
        assert (tmp_path / 'float.pth').read_bytes() == (tiny / 'float.pth').read_bytes()

    def test_a_layer_of_zeros(self, tiny, tmp_path):
        """Its scale is zero, but the scale of the new model that loads the file is not."""
        content = torch.load(tiny / 'float.pth', weights_only=True)
        units = [name for name in content['state_dict'] if name.endswith('units.0.conv.weight')]
        content['state_dict'][units[0]].zero_()
        torch.save(content, tmp_path / 'zeros.pth')
        pack_checkpoint(tiny_config(tiny), tmp_path / 'zeros.pth', tmp_path / 'packed.pth')
        run_test(tiny_config(tiny), str(tmp_path / 'packed.pth'))


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    """The path of a packed checkpoint of one layer, and its content."""
    layer = dict(type='mmgroupnet.LayerwiseBinaryConv2d', in_channels=9, out_channels=5, kernel_size=3)
    cfg = Config(dict(default_scope='mmgroupnet', model=layer))
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('small') / 'packed.pth'
    packed, layers = pack_and_report(MODELS.build(cfg.model))
    save_packed(packed, [layer.name for layer in layers], cfg, path, dict(classes=('one', 'two')))
    return path, read_packed(path)


class TestDamage:
    @staticmethod
    def is_same(found, expected):
        weights, others = found['state_dict'], expected['state_dict']
        return (
            repr(found['meta']) == repr(expected['meta'])
            and list(weights) == list(others)
            and all(weights[key].dtype == others[key].dtype and weights[key].equal(others[key]) for key in others)
            and weights._metadata == others._metadata
        )

    def test_no_damage_is_read(self, small, tmp_path):
        path, expected = small
        content = path.read_bytes()
        random_numbers = random.Random(0)
        cases = []
        for _ in range(90):
            flipped = bytearray(content)
            for _ in range(random_numbers.choice([1, 1, 3])):
                flipped[random_numbers.randrange(len(content))] ^= 1 << random_numbers.randrange(8)
            cases.append(bytes(flipped))
        for _ in range(20):
            start = random_numbers.randrange(len(content))
            cases.append(content[:start] + bytes(min(64, len(content) - start)) + content[start + 64 :])
            cases.append(content[:start])
            cases.append(content[start:])
        cases += [b'', content + content, content + b'\0' * 100, b'\0' * 100 + content, content[:-22]]
        outcomes = []
        damaged = tmp_path / 'damaged.pth'
        for number, case in enumerate(cases):
            damaged.write_bytes(case)
            try:
                found = read_packed(damaged)
            except UserError as error:
                assert 'damaged.pth' in str(error) and '\n' not in str(error)
                outcomes.append('refused')
            else:
                assert self.is_same(found, expected), f'case {number}'
                outcomes.append('whole')
        # Some damage is harmless, since there is padding between the records.
        assert outcomes.count('refused') > 90 and outcomes.count('whole') > 5

    @pytest.mark.parametrize(
        'change',
        [
            lambda content: content['state_dict']['bits'].view(-1)[:1].add_(1),
            lambda content: content['state_dict'].update(scale=content['state_dict']['scale'].double()),
            lambda content: content['state_dict'].update(bits=content['state_dict']['bits'].view(-1)),
            lambda content: content['state_dict'].update(other=torch.ones(1)),
            lambda content: content['state_dict'].pop('scale'),
            lambda content: content['state_dict'].update(scale='text'),
            lambda content: content['state_dict']._metadata[''].clear(),
            lambda content: content.update(state_dict=dict(content['state_dict'])),
            lambda content: content.update(optimizer={}),
            lambda content: content['meta'].update(cfg=content['meta']['cfg'].replace('Layerwise', '')),
            lambda content: content['meta']['dataset_meta'].update(classes=('one', 'three')),
            lambda content: content['meta'].pop('cfg'),
            lambda content: content['meta'].update(epoch=3),
            lambda content: content['meta'].update(packed=True),
            lambda content: content['meta']['packed'].update(version='1'),
            lambda content: content['meta']['packed'].update(sha256='0' * 64),
        ],
    )
    def test_the_checksum_covers_all_of_it(self, small, tmp_path, change):
        path, _ = small
        content = torch.load(path, weights_only=True)
        torch.save(content, tmp_path / 'same.pth')
        read_packed(tmp_path / 'same.pth')
        change(content)
        torch.save(content, tmp_path / 'changed.pth')
        with pytest.raises(UserError, match=r'packed checkpoint .*changed\.pth is damaged: copy it again'):
            read_packed(tmp_path / 'changed.pth')

    def test_another_version(self, small, tmp_path):
        content = torch.load(small[0], weights_only=True)
        content['meta']['packed'] = dict(version=2, blake3='unknown here')
        torch.save(content, tmp_path / 'new.pth')
        with pytest.raises(UserError, match=r'new\.pth has version=2, this mmgroupnet reads version 1'):
            read_packed(tmp_path / 'new.pth')

    def test_foreign_files(self, tiny, tmp_path):
        for name, content in (('tensor', torch.ones(2)), ('dict', dict(meta=[])), ('model', nn.Linear(1, 1))):
            torch.save(content, tmp_path / f'{name}.pth')
        torch.save(dict(a=1), tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
        (tmp_path / 'text.pth').write_text('hello')
        with zipfile.ZipFile(tmp_path / 'zip.pth', 'w') as archive:
            archive.writestr('hello.txt', 'hello')
        for path, message in [
            (tiny / 'float.pth', 'float.pth is not packed'),
            (tmp_path / 'tensor.pth', 'tensor.pth holds a Tensor'),
            (tmp_path / 'dict.pth', 'dict.pth is not packed'),
            (tmp_path / 'model.pth', 'model.pth carries code'),
            (tmp_path / 'old.pth', 'old.pth is not packed'),
            (tmp_path / 'text.pth', 'text.pth is truncated or no checkpoint of torch'),
            (tmp_path / 'zip.pth', 'zip.pth is truncated or no checkpoint of torch'),
            (tmp_path / 'nowhere.pth', 'nowhere.pth does not exist'),
            (tmp_path, 'does not exist'),
        ]:
            with pytest.raises(UserError, match=re.escape(message)):
                read_packed(path)

    def test_the_tools_check_the_file(self, tiny, tmp_path):
        content = bytearray((tiny / 'packed.pth').read_bytes())
        stored = io.BytesIO(content)
        with zipfile.ZipFile(stored) as archive:
            record = max(archive.infolist(), key=lambda entry: entry.file_size * ('/data/' in entry.filename))
        content[record.header_offset + 200] ^= 1  # in the data behind the record's header and padding
        damaged = tmp_path / 'damaged.pth'
        damaged.write_bytes(content)
        assert is_packed(read_checkpoint(damaged))
        with pytest.raises(UserError, match=r'damaged\.pth is damaged'):
            run_test(tiny_config(tiny), str(damaged))
        with pytest.raises(UserError, match=r'damaged\.pth is damaged'):
            draw_on_pictures(tiny_config(tiny), damaged, [], tmp_path)
