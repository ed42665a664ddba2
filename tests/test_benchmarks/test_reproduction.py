"""Steps, operations and memory of the paper's trainings."""

import pytest
import torch

from benchmarks.reproduction import (
    CITYSCAPES,
    COCO,
    GPUS,
    IMAGENET,
    ROOT,
    ROWS,
    VOC,
    Row,
    count,
    count_products,
    results_table,
)
from mmgroupnet.engine.configs import load_config
from mmgroupnet.layers import BinaryConv2d, LayerwiseBinaryConv2d

OF_VOC = 'segmentation/fcn-32s_groupnet_r18_50e_voc12aug-480x480.py'
ROOT_18 = 'classification/groupnet_r18_k5_stage-b_8xb32-40e_in1k.py'


def test_every_training_is_listed_once_with_the_batch_of_its_config_on_all_gpus():
    configs = [row.config for row in ROWS]
    assert len(set(configs)) == len(configs)
    assert {row.batch for row in ROWS if row.dataset in (IMAGENET, COCO)} == {None}
    for row in ROWS:
        if row.dataset in (VOC, CITYSCAPES):
            assert row.batch * GPUS == load_config(str(ROOT / 'configs' / row.config)).train_dataloader.batch_size


def test_steps_and_products_of_resnet_18():
    found = count(Row(ROOT_18, IMAGENET))
    assert (found['batch'], found['epochs'], found['steps']) == (32, 40, 40 * 5005)
    # A ResNet-18 needs 1.8e9 multiply-adds per image, of which the stem needs 0.12e9. K = 5; training takes three times
    # the operations of a forward pass.
    assert found['products'] == pytest.approx(3 * 40 * 1_281_167 * (5 * 1.69e9 + 0.12e9), rel=0.02)
    # Weights, gradients, and Adam's two moments.
    assert found['weight_bytes'] == pytest.approx(4 * 4 * 55.66e6, rel=0.001)


class TestProducts:
    """A model with a backbone and a layer-wise conv behind it, each with 4 * 4 * 9 products in 25 pixels and K = 3."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = torch.nn.Sequential(BinaryConv2d(4, 4, 3, padding='same', num_bases=3))
            self.neck = LayerwiseBinaryConv2d(4, 4, 3, padding=1, num_bases=3)

        def forward(self, x):
            return self.neck(self.backbone(x.repeat(1, 3, 1, 1)).chunk(3, 1)[0])

    @pytest.mark.parametrize(('with_cp', 'of_backbone'), [(False, 3), (True, 4)])
    def test_folded_and_merged_bases_and_what_runs_again(self, with_cp, of_backbone):
        model = torch.nn.ModuleDict(dict(model=self.Model())).eval()
        model.forward = model['model'].forward
        products = 4 * 4 * 9 * 25
        found = count_products(model, torch.randn(1, 4, 5, 5), with_cp)
        assert found == of_backbone * 3 * products + 3 * products


@pytest.mark.parametrize(('config', 'steps'), [(ROOT_18, 40 * 5005), (OF_VOC, 50 * 661)])
def test_a_last_batch_that_is_dropped_is_no_step(config, steps):
    (row,) = (row for row in ROWS if row.config == config)
    assert count(row)['steps'] == steps


def test_table():
    row = dict(
        config=ROOT_18, dataset='ImageNet', batch=32, epochs=40, steps=1000, products=1.25e18, hours=1.84,
        kept_bytes=2**30, weight_bytes=2**29,
    )  # fmt: skip
    *_, cells, total = (line.split(' | ') for line in results_table([row, row]).splitlines())
    assert total == ['| ImageNet, all 2', '', '', '', '', '2.5e+18', '3.7 |']
    assert cells[0] == f'| [groupnet_r18_k5_stage-b_8xb32-40e_in1k](../configs/{ROOT_18})'
    assert cells[1:] == ['8 x 32', '40', '1,000', '1.5', '1.2e+18', '1.8 |']
