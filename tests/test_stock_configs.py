"""All configs installed by mmdet, mmseg and mmpretrain pass our checks: ``make test ARGS='-m slow -s -k stock'``.

The test takes a quarter of an hour.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest

from mmgroupnet.engine import configs
from mmgroupnet.engine.arguments import check_arguments
from mmgroupnet.engine.configs import load_config
from mmgroupnet.engine.guards import GUARDS, add_guards

# Installed configs that mmengine itself cannot load, and parts of its error messages.
BROKEN = {
    'mmdet': {
        # They inherit from missing files.
        'bytetrack/bytetrack_yolox_x_8xb4-amp-80e_crowdhuman-mot17halftrain_test-mot17test.py': 'No such file',
        'sort/faster-rcnn_r50_fpn_8xb2-4e_mot17train_test-mot17train.py': 'does not exist',
        'sort/faster-rcnn_r50_fpn_8xb2-8e_mot20halftrain_test-mot20halfval.py': 'does not exist',
        'sort/faster-rcnn_r50_fpn_8xb2-8e_mot20train_test-mot20train.py': 'does not exist',
    },
    'mmseg': {},
    'mmpretrain': {
        # Because of an import in a base, mmengine treats this base as a pure Python config.
        'replknet/deploy/replknet-31B-deploy_32xb64_in1k-384px.py': 'configuration file type in the inheritance chain',
        'replknet/deploy/replknet-31B-deploy_32xb64_in1k.py': 'configuration file type in the inheritance chain',
        'replknet/replknet-31B_32xb64_in1k-384px.py': 'configuration file type in the inheritance chain',
        'replknet/replknet-31B_32xb64_in1k.py': 'configuration file type in the inheritance chain',
        # The base with the data set defines no test_pipeline.
        'swin_transformer_v2/swinv2-base-w12_8xb128_in21k-192px.py': 'test_pipeline',
        'swin_transformer_v2/swinv2-large-w12_8xb128_in21k-192px.py': 'test_pipeline',
    },
}


@pytest.mark.slow
@pytest.mark.parametrize('library', BROKEN)
def test_all_load_and_pass_without_a_warning(library, monkeypatch):
    said, failed, broken = [], {}, {}
    monkeypatch.setattr(configs, 'print_log', lambda text, logger, level: said.append(text))
    root = Path(find_spec(library).origin).parent / '.mim' / 'configs'
    names = sorted(
        str(path.relative_to(root)) for path in root.rglob('*.py') if '_base_' not in path.relative_to(root).parts
    )
    for name in names:
        said.clear()
        try:
            cfg = load_config(str(root / name))
        except Exception as error:  # mmengine raises many kinds of errors
            broken[name] = str(error)
            continue
        try:
            check_arguments(cfg)
            add_guards(cfg)
            assert set(GUARDS) <= set(cfg.default_hooks)
        except Exception as error:
            failed[name] = repr(error)
        if said:
            failed[name] = list(said)
    print(f'{library}: {len(names) - len(broken) - len(failed)} of {len(names)} pass, {len(broken)} cannot be loaded')
    assert failed == {}
    assert {name: reason for name, reason in BROKEN[library].items() if reason in broken.get(name, '')} == (
        BROKEN[library]
    )
    assert set(broken) == set(BROKEN[library])
