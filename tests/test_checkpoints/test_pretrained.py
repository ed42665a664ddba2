from http.client import IncompleteRead
from urllib.error import URLError

import pytest
import torch
from mmengine.config import Config

from mmgroupnet.checkpoints.pretrained import fetch_checkpoint, fetch_pretrained, find_pretrained, leave_out_pretrained
from mmgroupnet.engine.configs import load_config
from mmgroupnet.errors import UserError
from mmgroupnet.models import GroupNetResNet


def config() -> Config:
    pretrained = dict(type='Pretrained', checkpoint='torchvision://resnet18')
    return Config(
        dict(
            model=dict(
                type='Some',
                pretrained='open-mmlab://resnet50_v1c',
                backbone=dict(init_cfg=pretrained),
                heads=[dict(init_cfg=[dict(type='Normal', std=0.01), dict(pretrained, checkpoint='local.pth')])],
                neck=dict(init_cfg=dict(type='Xavier', layer='Conv2d')),
            )
        )
    )


def test_every_way_to_name_weights():
    found = [(path, checkpoint) for _, _, path, checkpoint in find_pretrained(config().model)]
    assert found == [
        ('model.pretrained', 'open-mmlab://resnet50_v1c'),
        ('model.backbone.init_cfg', 'torchvision://resnet18'),
        ('model.heads.0.init_cfg', 'local.pth'),
    ]


def test_leaving_them_out():
    cfg = config()
    leave_out_pretrained(cfg)
    assert list(find_pretrained(cfg.model)) == []
    assert cfg.model.neck.init_cfg.type == 'Xavier'


@pytest.mark.parametrize('error', [URLError('Name or service not known'), IncompleteRead(b''), ConnectionError()])
def test_no_network_is_one_line_with_the_option(monkeypatch, error):
    def download(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', download)
    cfg = load_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    with pytest.raises(UserError) as caught:
        fetch_pretrained(cfg)
    message = str(caught.value)
    assert message.startswith('model.backbone.init_cfg: checkpoint torchvision://resnet18 cannot be fetched: ')
    assert message.endswith('--cfg-options model.backbone.init_cfg=None')
    assert '\n' not in message


class TestFetched:
    @pytest.fixture
    def addresses(self, monkeypatch):
        """File names that are requested for download; also checks the options for reading them."""
        for name in ('LOCAL_RANK', 'SLURM_LOCALID', 'OMPI_COMM_WORLD_LOCAL_RANK'):
            monkeypatch.delenv(name, raising=False)
        found = []

        def download(address, **options):
            found.append(address.rpartition('/')[2])
            assert options == dict(map_location='meta', weights_only=True)
            return {}

        monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', download)
        return found

    def test_names_of_mmengine_and_torchvision(self, addresses):
        fetch_pretrained(config())
        assert addresses[0].startswith('resnet50_v1c-') and addresses[1].startswith('resnet18-')
        assert len(addresses) == 2

    def test_what_torch_does_not_keep_is_left_to_mmengine(self, addresses):
        fetch_pretrained(Config(dict(model=dict(pretrained='s3://bucket/a.pth', a=dict(pretrained='http://b/c.pth')))))
        assert addresses == []

    @pytest.mark.parametrize('launcher', ['LOCAL_RANK', 'SLURM_LOCALID', 'OMPI_COMM_WORLD_LOCAL_RANK'])
    def test_once_for_each_machine(self, addresses, monkeypatch, launcher):
        monkeypatch.setenv(launcher, '1')
        fetch_pretrained(config())
        assert addresses == []
        monkeypatch.setenv(launcher, '0')
        fetch_pretrained(config())
        assert len(addresses) == 2

    def test_a_name_that_is_not_known(self, addresses):
        cfg = Config(dict(model=dict(pretrained='torchvision://resnet19')))
        with pytest.raises(UserError, match='model.pretrained: checkpoint torchvision://resnet19: give a file'):
            fetch_pretrained(cfg)


def test_a_checkpoint_is_fetched_with_its_data(tmp_path):
    torch.save(dict(state_dict=dict(weight=torch.arange(3))), tmp_path / 'some.pth')
    assert fetch_checkpoint(str(tmp_path / 'some.pth'))['state_dict']['weight'].tolist() == [0, 1, 2]


@pytest.mark.parametrize('source', ['https://host/r18.pth', 'torchvision://resnet18'])
def test_what_is_downloaded_is_read_in_safe_mode(source, monkeypatch):
    calls = []

    def download(address, map_location, weights_only):
        calls.append((address, map_location, weights_only))
        return dict(weight=torch.ones(1))

    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', download)
    assert fetch_checkpoint(source)['weight'] == 1
    ((address, map_location, weights_only),) = calls
    assert address.startswith('https://') and address.endswith('.pth')
    assert map_location == 'cpu' and weights_only is True


def test_a_download_that_fails_is_one_error(monkeypatch):
    def download(*args, **kwargs):
        raise OSError('no route to host')

    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', download)
    with pytest.raises(UserError, match='host/a.pth cannot be fetched: no route to host'):
        fetch_checkpoint('https://host/a.pth')


@pytest.mark.parametrize('source', ['torchvision://resnet', 'open-mmlab://resnet18', 'http://host/a.pth'])
def test_other_addresses_are_refused(source):
    with pytest.raises(UserError, match=f'checkpoint {source}: give a file, an https:// address or torchvision://'):
        fetch_checkpoint(source)


@pytest.mark.parametrize('content', [b'', b'no checkpoint'])
def test_files_that_are_no_checkpoints_are_refused(content, tmp_path):
    path = tmp_path / 'some.pth'
    path.write_bytes(content)
    with pytest.raises(UserError, match='some.pth is truncated or no checkpoint'):
        fetch_checkpoint(str(path))


def test_what_was_downloaded_and_is_no_checkpoint_is_refused(monkeypatch):
    def download(*args, **kwargs):
        raise KeyError(101)  # the error of torch for a page of text

    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', download)
    with pytest.raises(UserError, match="host/a.pth cannot be read in torch's safe mode: 101"):
        fetch_checkpoint('https://host/a.pth')


def test_a_damaged_file_of_a_backbone_is_named(tmp_path):
    (tmp_path / 'some.pth').write_bytes(b'hello')
    backbone = GroupNetResNet(
        depth=18, num_bases=1, base_channels=4, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'some.pth'))
    )
    with pytest.raises(UserError, match='init_cfg of GroupNetResNet: checkpoint .*some.pth is truncated or no'):
        backbone.init_weights()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r'nothing\.pth does not exist$'):
        fetch_checkpoint(str(tmp_path / 'nothing.pth'))


def test_what_is_no_dict_is_refused(tmp_path):
    torch.save(torch.ones(2), tmp_path / 'some.pth')
    with pytest.raises(UserError, match='holds a Tensor, not a dict'):
        fetch_checkpoint(str(tmp_path / 'some.pth'))
