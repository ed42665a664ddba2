"""The metafiles list all configs, with their measured figures."""

import json
from collections import Counter

import pytest
import yaml
from mmengine.config.utils import _get_cfg_metainfo

from benchmarks import metafiles

ROOT = metafiles.ROOT
MODELS = {
    model['Name']: model
    for folder in metafiles.FOLDERS
    for model in yaml.safe_load(metafiles.path_of(folder).read_text())['Models']
}


@pytest.mark.parametrize('folder', metafiles.FOLDERS)
def test_metafiles_are_what_the_script_writes(folder):
    assert metafiles.fill(folder) == metafiles.path_of(folder).read_text(), 'run `python benchmarks/metafiles.py`'


def test_every_config_is_listed_once():
    there = [str(path.relative_to(ROOT)) for path in (ROOT / 'configs').rglob('*.py')]
    listed = Counter(model['Config'] for model in MODELS.values())
    assert listed == Counter(path for path in there if not path.startswith('configs/_base_/'))


def test_models_have_the_measured_figures():
    """The test reads the results itself, without the script that writes the metafiles."""
    lines = (ROOT / 'benchmarks/results/bccd_detection.jsonl').read_text().splitlines()
    for line in map(json.loads, lines):
        (model,) = (model for model in MODELS.values() if model['Config'] == line['config'])
        assert model['Results'][0]['Metrics'] == {'box AP': line['AP'], 'box AP50': line['AP50']}
        assert model['Metadata'] == {
            'Training Data': 'BCCD',
            'Epochs': line['epochs'],
            'Parameters': line['parameters'],
            'Binary Parameters': line['binary_parameters'],
        }
    assert MODELS['fcn-32s_groupnet_r18_camvid-240x180']['Results'] == [
        {'Task': 'Semantic Segmentation', 'Dataset': 'CamVid', 'Metrics': {'mIoU': 39.0}}
    ]
    lines = (ROOT / 'benchmarks/results/digits_detection.jsonl').read_text().splitlines()
    (line,) = (line for line in map(json.loads, lines) if line['variant'] == 'binary')
    assert MODELS['fcos_groupnet_digits']['Results'][0]['Metrics'] == {'box AP': line['AP'], 'box AP50': line['AP50']}
    lines = (ROOT / 'benchmarks/results/zoo.jsonl').read_text().splitlines()
    (line,) = (line for line in map(json.loads, lines) if line['metric'] == 'accuracy/top1')
    assert MODELS[line['name']]['Results'] == [
        {
            'Task': 'Image Classification',
            'Dataset': 'CIFAR-10',
            'Metrics': {'Top 1 Accuracy': round(line['values']['float.pth'], 1)},
        }
    ]
    assert 'Results' not in MODELS['fcos_groupnet_r50_coco']


def test_the_index_names_all_metafiles():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    assert index['Import'] == [str(metafiles.path_of(folder).relative_to(ROOT)) for folder in metafiles.FOLDERS]


def test_mmengine_reads_them(tmp_path):
    (tmp_path / '.mim').symlink_to(ROOT)
    found = _get_cfg_metainfo(str(tmp_path), 'detection/fcos_groupnet_r18_bccd.py')
    assert found == MODELS['fcos_groupnet_r18_bccd']
