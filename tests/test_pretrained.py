import pytest
import torch

from mmgroupnet.pretrained import PretrainedError, fetch_checkpoint


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
    with pytest.raises(PretrainedError, match='host/a.pth cannot be fetched: no route to host'):
        fetch_checkpoint('https://host/a.pth')


@pytest.mark.parametrize('source', ['torchvision://resnet', 'open-mmlab://resnet18', 'http://host/a.pth'])
def test_other_addresses_are_refused(source):
    with pytest.raises(PretrainedError, match=f'checkpoint {source}: give a file, an https:// address or torchvision://'):
        fetch_checkpoint(source)


@pytest.mark.parametrize('content', [b'', b'no checkpoint'])
def test_files_that_are_no_checkpoints_are_refused(content, tmp_path):
    path = tmp_path / 'some.pth'
    path.write_bytes(content)
    with pytest.raises(PretrainedError, match='some.pth cannot be read'):
        fetch_checkpoint(str(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PretrainedError, match=r'nothing\.pth does not exist$'):
        fetch_checkpoint(str(tmp_path / 'nothing.pth'))


def test_what_is_no_dict_is_refused(tmp_path):
    torch.save(torch.ones(2), tmp_path / 'some.pth')
    with pytest.raises(PretrainedError, match='holds a Tensor, not a dict'):
        fetch_checkpoint(str(tmp_path / 'some.pth'))
