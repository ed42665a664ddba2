"""Lean and plain training of the demo's detector give the same losses."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, DefaultScope

from mmgroupnet.datasets import generate_digits

ROOT = Path(__file__).parents[2]
ITERATIONS = 50


def losses(config: Config, batches: list, is_lean: bool) -> list[float]:
    """Trains in double precision with the optimizer of the config, one iteration per batch; returns the losses."""
    config = config.copy()
    for part in ('backbone', 'neck', 'bbox_head'):
        binary_cfg = config.model[part].get('binary_cfg') or {}
        config.model[part].binary_cfg = dict(binary_cfg, memory_efficient=is_lean)
    torch.manual_seed(0)
    detector = MODELS.build(config.model)
    detector.init_weights()
    detector = detector.double().train()
    wrapper = config.optim_wrapper
    options = {name: value for name, value in wrapper.optimizer.items() if name != 'type'}
    optimizer = getattr(torch.optim, wrapper.optimizer.type)(detector.parameters(), **options)
    found = []
    for batch in batches:
        data = detector.data_preprocessor(batch, True)
        loss, _ = detector.parse_losses(detector.loss(data['inputs'].double(), data['data_samples']))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), **wrapper.clip_grad)
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.slow
def test_losses_on_the_digits_coincide(tmp_path):
    """The first fifty iterations are compared, in double precision."""
    root = generate_digits(tmp_path / 'digits', num_train=4 * ITERATIONS, num_val=1)
    config = Config.fromfile(ROOT / 'configs/demo/fcos_groupnet_digits.py')
    dataset = config.train_dataloader.dataset
    dataset.data_root = f'{root}/'
    with DefaultScope.overwrite_default_scope('mmdet'):
        samples = DATASETS.build(dataset)
        torch.manual_seed(0)
        batches = [pseudo_collate([samples[4 * i + j] for j in range(4)]) for i in range(ITERATIONS)]
        lean, plain = (losses(config, batches, is_lean) for is_lean in (True, False))
    assert len(lean) == ITERATIONS
    assert lean == pytest.approx(plain, rel=1e-6)
    assert lean[-1] < lean[0]
    print(f'largest relative difference {max(abs(a - b) / b for a, b in zip(lean, plain, strict=True)):.1e}')
