"""Estimates the cost of reproducing the paper's tables: ``python benchmarks/reproduction.py``.

It trains nothing and needs no GPU. Steps are computed from the sizes of the datasets; operations and the bytes that a
step keeps for its backward pass are counted on tensors that have shapes but no memory. The rows are written to
benchmarks/results/reproduction.json, the source of the table in docs/reproduce.md.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # The checkout of this file comes before an installed mmgroupnet.

from benchmarks.timing import format_table, write_json  # noqa: E402
from benchmarks.train_step import Maps, saved_bytes  # noqa: E402

OUT = ROOT / 'benchmarks/results/reproduction.json'
FLOAT_OPS_PER_SECOND = 50e12  # an assumption for a GPU in half precision, not a measurement
PASSES = 3  # forward, and two products of the same size backward


class Dataset(NamedTuple):
    """A training split.

    Attributes:
        images: Number of training images; for COCO those with boxes.
        size: Height and width of a training image; for COCO the largest, padded.
    """

    images: int
    size: tuple[int, int]


IMAGENET = Dataset(1_281_167, (224, 224))
VOC = Dataset(10_582, (480, 480))
CITYSCAPES = Dataset(2_975, (512, 1024))
COCO = Dataset(117_266, (800, 1344))


class Row(NamedTuple):
    """A training of the paper.

    Attributes:
        config: Its config.
        dataset: Its training data.
        gpus: Number of GPUs of one run.
    """

    config: str
    dataset: Dataset
    gpus: int


ROWS = [
    *(
        Row(f'classification/groupnet_{depth}_k5_{stage}_8xb32-40e_in1k.py', IMAGENET, 8)
        for depth in ('r18', 'r34', 'r50')
        for stage in ('stage-a', 'stage-b', 'float-downsample_stage-b')
    ),
    *(
        Row(f'segmentation/fcn-32s_groupnet_{depth}_{variant}50e_voc12aug-480x480.py', VOC, 1)
        for depth in ('r18', 'r34', 'r50')
        for variant in ('', 'bpac_', 'bpac_float-downsample_')
    ),
    Row('segmentation/deeplabv3_groupnet_r18_bpac_200e_cityscapes-512x1024.py', CITYSCAPES, 1),
    Row('segmentation/deeplabv3_groupnet_r50_bpac_200e_cityscapes-512x1024.py', CITYSCAPES, 1),
    *(Row(f'fcos_groupnet_{depth}_coco.py', COCO, 8) for depth in ('r18', 'r34', 'r50')),
]


def count(row: Row) -> dict:
    """Counts the operations and the memory of a training."""
    from mmgroupnet.analysis.complexity import analyze, total
    from mmgroupnet.engine.configs import load_config

    cfg = load_config(str(ROOT / 'configs' / row.config))
    cfg.model.backbone.init_cfg = None  # tensors without memory have no values
    batch = cfg.train_dataloader.batch_size
    epochs = cfg.train_cfg.max_epochs
    with torch.device('meta'):
        model = Maps(cfg)
        image = torch.empty(1, 3, *row.dataset.size)
        model.eval()
        whole = total(analyze(model, lambda: model(image)))
        # Two images, because some norms refuse the single value of a pooled image.
        kept = saved_bytes(model.train(), image.repeat(2, 1, 1, 1)) / 2
    # A simulated binary product is a float product. Besides weight and gradient, Adam has two moments per weight, SGD
    # one.
    bytes_per_weight = 4 * (4 if 'Adam' in cfg.optim_wrapper.optimizer.type else 3)
    products = PASSES * (whole.flops + whole.bops) * row.dataset.images * epochs
    return dict(
        config=row.config,
        gpus=row.gpus,
        batch=batch,
        epochs=epochs,
        steps=epochs * math.ceil(row.dataset.images / (batch * row.gpus)),
        products=products,
        hours=2 * products / FLOAT_OPS_PER_SECOND / row.gpus / 3600,
        kept_bytes=kept * batch,
        weight_bytes=bytes_per_weight * whole.parameters,
    )


def results_table(rows: Sequence[dict]) -> str:
    """The trainings as Markdown."""
    cells = [
        [
            f'[{Path(row["config"]).stem}](../configs/{row["config"]})',
            f'{row["gpus"]} x {row["batch"]}',
            row['epochs'],
            f'{row["steps"]:,}',
            f'{(row["kept_bytes"] + row["weight_bytes"]) / 2**30:.1f}',
            f'{row["products"]:.1e}',
            f'{row["hours"]:.1f}',
        ]
        for row in rows
    ]
    columns = ['config', 'GPUs x batch', 'epochs', 'steps', 'GiB a GPU', 'multiply-adds', 'hours, by arithmetic']
    return format_table(columns, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    rows = []
    for row in ROWS:
        print(row.config, file=sys.stderr, flush=True)
        rows.append(count(row))
    write_json(OUT, dict(float_ops_per_second=FLOAT_OPS_PER_SECOND, rows=rows))
    print(results_table(rows))


if __name__ == '__main__':
    main()
