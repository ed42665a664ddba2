"""Estimates the cost of reproducing the paper's tables: ``python benchmarks/reproduction.py``.

It trains nothing and needs no GPU. Steps are computed from the sizes of the datasets; operations and the bytes that a
step keeps for its backward pass are counted on tensors that have shapes but no memory. The rows are written to
benchmarks/results/reproduction.json, the source of the table in docs/reproduce.md.
"""

import argparse
import itertools
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
GPUS = 8  # of a host; each run uses all


class Dataset(NamedTuple):
    """A training split.

    Attributes:
        name: Its name.
        images: Number of training images; for COCO those with boxes.
        size: Height and width of a training image; for COCO the largest, padded.
    """

    name: str
    images: int
    size: tuple[int, int]


IMAGENET = Dataset('ImageNet', 1_281_167, (224, 224))
VOC = Dataset('VOC', 10_582, (480, 480))
CITYSCAPES = Dataset('Cityscapes', 2_975, (512, 1024))
COCO = Dataset('COCO', 117_266, (800, 1344))


class Row(NamedTuple):
    """A training of the paper.

    Attributes:
        config: Its config.
        dataset: Its training data.
        batch: Images per GPU. Default: None, as in the config.
    """

    config: str
    dataset: Dataset
    batch: int | None = None


ROWS = [
    *(
        Row(f'classification/groupnet_{depth}_k5_{stage}_8xb32-40e_in1k.py', IMAGENET)
        for depth in ('r18', 'r34', 'r50')
        for stage in ('stage-a', 'stage-b', 'float-downsample_stage-a', 'float-downsample_stage-b')
    ),
    *(
        Row(f'segmentation/{head}_groupnet_{depth}_{variant}50e_voc12aug-480x480.py', VOC, 2)
        for head, depth in (('fcn-32s', 'r18'), ('fcn-16s', 'r18'), ('fcn-32s', 'r34'), ('fcn-32s', 'r50'))
        for variant in ('', 'bpac_', 'bpac_float-downsample_')
    ),
    Row('segmentation/deeplabv3_groupnet_r18_bpac_200e_cityscapes-512x1024.py', CITYSCAPES, 1),
    Row('segmentation/deeplabv3_groupnet_r50_bpac_200e_cityscapes-512x1024.py', CITYSCAPES, 1),
    *(Row(f'fcos_groupnet_{depth}_coco.py', COCO) for depth in ('r18', 'r34', 'r50')),
]


def count_products(model: Maps, image: torch.Tensor, with_cp: bool) -> int:
    """Multiply-adds of a training step with one image, which simulates binary products in floats.

    Args:
        model: The model, in evaluation mode.
        image: The image.
        with_cp: Whether the backbone runs forward again in the backward pass.
    """
    from mmgroupnet.analysis.complexity import count_operations

    flops, bops = count_operations(model, lambda: model(image))
    products = 0
    for name, module in model.named_modules():
        # Training merges the bases of a layer-wise conv into one weight.
        merged = module.num_bases if getattr(module, 'merges', False) else 1
        again = with_cp and name.startswith('model.backbone.')
        products += (PASSES + again) * (flops.get(name, 0) + bops.get(name, 0) // merged)
    return products


def count(row: Row) -> dict:
    """Counts the operations and the memory of a training."""
    from mmgroupnet.engine.configs import load_config

    cfg = load_config(str(ROOT / 'configs' / row.config))
    cfg.model.backbone.init_cfg = None  # tensors without memory have no values
    batch = row.batch or cfg.train_dataloader.batch_size
    epochs = cfg.train_cfg.max_epochs
    with torch.device('meta'):
        model = Maps(cfg)
        image = torch.empty(1, 3, *row.dataset.size)
        products = count_products(model.eval(), image, cfg.model.backbone.get('with_cp', False))
        # Two images, because some norms refuse the single value of a pooled image.
        kept = saved_bytes(model.train(), image.repeat(2, 1, 1, 1)) / 2
    # Besides weight and gradient, Adam has two moments per weight, SGD one.
    bytes_per_weight = 4 * (4 if 'Adam' in cfg.optim_wrapper.optimizer.type else 3)
    products *= row.dataset.images * epochs
    steps = row.dataset.images / (batch * GPUS)
    return dict(
        config=row.config,
        dataset=row.dataset.name,
        batch=batch,
        epochs=epochs,
        steps=epochs * (math.floor(steps) if cfg.train_dataloader.get('drop_last') else math.ceil(steps)),
        products=products,
        hours=2 * products / FLOAT_OPS_PER_SECOND / GPUS / 3600,
        kept_bytes=kept * batch,
        weight_bytes=bytes_per_weight * sum(weight.numel() for weight in model.parameters()),
    )


def results_table(rows: Sequence[dict]) -> str:
    """The trainings as Markdown, and the sums over all trainings on a data set."""
    cells = []
    for dataset, group in itertools.groupby(rows, lambda row: row['dataset']):
        runs = list(group)
        cells += [
            [
                f'[{Path(row["config"]).stem}](../configs/{row["config"]})',
                f'{GPUS} x {row["batch"]}',
                row['epochs'],
                f'{row["steps"]:,}',
                f'{(row["kept_bytes"] + row["weight_bytes"]) / 2**30:.1f}',
                f'{row["products"]:.1e}',
                f'{row["hours"]:.1f}',
            ]
            for row in runs
        ]
        products, hours = (sum(row[key] for row in runs) for key in ('products', 'hours'))
        cells.append([f'{dataset}, all {len(runs)}', '', '', '', '', f'{products:.1e}', f'{hours:.1f}'])
    columns = [
        'config',
        'GPUs x batch',
        'epochs',
        'steps',
        'GiB a GPU, at least',
        'multiply-adds',
        'hours, by arithmetic',
    ]
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
