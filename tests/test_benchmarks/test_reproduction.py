"""Steps, operations and memory of the paper's trainings."""

import pytest

from benchmarks.reproduction import COCO, IMAGENET, ROWS, VOC, Row, count, results_table

ROOT_18 = 'classification/groupnet_r18_k5_stage-b_8xb32-40e_in1k.py'


def test_every_training_is_listed_once():
    configs = [row.config for row in ROWS]
    assert len(set(configs)) == len(configs)
    assert {row.gpus for row in ROWS if row.dataset in (IMAGENET, COCO)} == {8}
    assert {row.gpus for row in ROWS if row.dataset == VOC} == {1}


def test_steps_and_products_of_resnet_18():
    found = count(Row(ROOT_18, IMAGENET, 8))
    assert (found['batch'], found['epochs'], found['steps']) == (32, 40, 40 * 5005)
    # A ResNet-18 needs 1.8e9 multiply-adds per image, of which the stem needs 0.12e9. K = 5; training takes three times
    # the operations of a forward pass.
    assert found['products'] == pytest.approx(3 * 40 * 1_281_167 * (5 * 1.69e9 + 0.12e9), rel=0.02)
    # Weights, gradients, and Adam's two moments.
    assert found['weight_bytes'] == pytest.approx(4 * 4 * 55.66e6, rel=0.001)


def test_table():
    row = dict(
        config=ROOT_18, gpus=8, batch=32, epochs=40, steps=1000, products=1.25e18, hours=1.84, kept_bytes=2**30,
        weight_bytes=2**29,
    )  # fmt: skip
    cells = results_table([row]).splitlines()[-1].split(' | ')
    assert cells[0] == f'| [groupnet_r18_k5_stage-b_8xb32-40e_in1k](../configs/{ROOT_18})'
    assert cells[1:] == ['8 x 32', '40', '1,000', '1.5', '1.2e+18', '1.8 |']
