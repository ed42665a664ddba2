"""Stock configs of mmdet, mmseg and mmpretrain made binary, one by one: ``python benchmarks/stock_configs.py``.

The script builds each config of benchmarks/stock_configs.txt, at its real widths and without pretrained weights, and
makes it binary by a policy. Then it has to

- be *alive*: with batch norms that know the mirror images of two photographs, the two photographs give different
  outputs at every binary layer and in the raw predictions, and the share of +1 at every sign is between 0.02 and 0.98;
- take one training step on them with finite gradients in every latent weight;
- give exactly the same predictions after its weights were saved and loaded, and the same up to rounding on packed bits.
  Rounding may flip a sign whose input is next to zero, and a deep network amplifies that. So at least one of the
  photographs and their mirror images has to agree; the table shows how many were tried.

It writes one line per config to benchmarks/results/stock_configs.jsonl (configs with a line are not tested again), and
the table benchmarks/results/stock_configs.md.
"""

import argparse
import copy
import ctypes
import gc
import importlib
import io
import json
import logging
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # The checkout of this file comes before an installed mmgroupnet.

from mmgroupnet.analysis.complexity import analyze, total  # noqa: E402
from mmgroupnet.checkpoints.pretrained import leave_out_pretrained  # noqa: E402
from mmgroupnet.converters import binarization_of  # noqa: E402
from mmgroupnet.deploy import pack_and_report  # noqa: E402
from mmgroupnet.engine.binarize_option import binarize_config, load_policy  # noqa: E402
from mmgroupnet.engine.configs import load_config  # noqa: E402
from mmgroupnet.engine.model_report import forward_call, input_size  # noqa: E402
from mmgroupnet.engine.models import build_model  # noqa: E402
from mmgroupnet.layers import BinaryConv2d  # noqa: E402
from mmgroupnet.layers.packed import simulated  # noqa: E402
from tests.liveness import ALIVE, estimate_statistics, real_pictures  # noqa: E402

LIST = ROOT / 'benchmarks' / 'stock_configs.txt'
RESULTS = ROOT / 'benchmarks' / 'results' / 'stock_configs.jsonl'
POLICY = ROOT / 'configs' / '_base_' / 'policies' / 'groupnet_k4.py'

# Height and width of the photographs, by library, and of backbones that take only one size.
SIZES = dict(mmdet=(96, 128), mmseg=(64, 96), mmpretrain=(128, 128))
FIXED_SIZES = dict(VGG=(224, 224), SSDVGG=(300, 300))
# A picture and its mirror images.
FLIPS = (lambda picture: picture, lambda picture: picture.flip(2), lambda picture: picture.flip(1))
# The input size for counting operations if a config does not resize pictures.
SIZE_UNKNOWN = (512, 512)
# Largest difference between packed and simulated outputs, relative to the largest output, if no sign flipped.
TOLERANCE = 1e-3


class Failure(Exception):
    """A check failed."""


def prepare(name: str) -> Config:
    """Loads a stock config without pretrained weights, with few detections and a low score threshold, so that a
    prediction is quick and never empty."""
    cfg = load_config(name)
    leave_out_pretrained(cfg)
    _make_predictions_small(cfg.model)
    return cfg


def _make_predictions_small(node: object) -> None:
    if isinstance(node, Mapping):
        for key in node:
            if key in ('score_thr', 'mask_thr', 'filter_thr') and isinstance(node[key], float):
                node[key] = 0.0
            elif key in ('max_per_img', 'nms_pre') and isinstance(node[key], int):
                node[key] = min(node[key], 50)
            else:
                _make_predictions_small(node[key])
    elif isinstance(node, list | tuple):
        for entry in node:
            _make_predictions_small(entry)


def samples(cfg: Config, size: tuple[int, int]) -> list[BaseDataElement]:
    """Annotations for the two pictures."""
    height, width = size
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0))
    meta |= dict(flip=False, flip_direction=None, img_id=0, img_path='', border=np.array([0, height, 0, width]))
    half = torch.zeros(1, height, width, dtype=torch.int64)
    half[:, :, width // 2 :] = 1
    found = []
    for number in range(2):
        if cfg.default_scope == 'mmdet':
            from mmdet.structures import DetDataSample
            from mmdet.structures.mask import BitmapMasks

            boxes = torch.tensor([[8.0, 10.0, 60.0, 90.0], [50.0, 20.0, 120.0, 80.0]])
            masks = np.zeros((2, height, width), dtype=np.uint8)
            for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
                mask[top:bottom, left:right] = 1
            sample = DetDataSample(metainfo=meta)
            sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([number, 1 - number]))
            if "'with_mask': True" in str(cfg.train_dataloader):
                sample.gt_instances.masks = BitmapMasks(masks, height, width)
            sample.gt_sem_seg = PixelData(sem_seg=half)
        elif cfg.default_scope == 'mmseg':
            from mmseg.structures import SegDataSample

            sample = SegDataSample(metainfo=meta)
            sample.gt_sem_seg = PixelData(data=half)
            # PIDNet learns the border between the classes.
            sample.gt_edge_map = PixelData(data=(half != half.roll(1, 2)).long())
        else:
            from mmpretrain.structures import DataSample

            sample = DataSample(metainfo=meta).set_gt_label(number)
        found.append(sample)
    return found


def tensors(out: object) -> Iterator[Tensor]:
    """All tensors in a model's output."""
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, BaseDataElement):
        yield from tensors([value for _, value in out.items()])
    elif isinstance(out, Mapping):
        yield from tensors(list(out.values()))
    elif isinstance(out, list | tuple):
        for entry in out:
            yield from tensors(entry)


def deviation(out: object, expected: object) -> float:
    """Largest difference between two outputs, in units of the largest of each tensor."""
    pairs = zip(tensors(out), tensors(expected), strict=True)
    return max(
        (a.float() - b.float()).abs().max().item() / max(b.float().abs().max().item(), 1e-6)
        for a, b in pairs
        if a.numel() and a.is_floating_point()
    )


def binary_layers(model: nn.Module) -> dict[str, BinaryConv2d]:
    """All binary layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BinaryConv2d)}


class Run:
    """A binarised model and the two photographs."""

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.size = FIXED_SIZES.get(cfg.model.model.backbone.type, SIZES[cfg.default_scope])
        self.model = build_model(cfg)
        self.model.init_weights()
        self.model.data_preprocessor.batch_augments = None  # They mix or enlarge pictures.
        if cfg.default_scope == 'mmseg':
            self.model.data_preprocessor.size = self.size  # Instead of the crop size, which would be mostly padding.
        self.pictures = list(real_pictures(*self.size))

    def data(self, pictures: list[Tensor], training: bool = True) -> dict:
        """The input of the model."""
        given = dict(inputs=pictures, data_samples=samples(self.cfg, self.size)[: len(pictures)])
        return self.model.data_preprocessor(given, training)

    def images(self, pictures: list[Tensor]) -> Tensor:
        """Pictures after the data preprocessor."""
        inputs = self.data(pictures)['inputs']
        return torch.stack(inputs) if isinstance(inputs, list) else inputs

    def check_alive(self) -> tuple[float, float]:
        """Returns the lowest and the highest share of +1."""
        mirrored = self.data([picture.flip(2) for picture in self.pictures])
        estimate_statistics(self.model, lambda: self.model(**mirrored, mode='loss'))
        # Some heads compute losses only in training mode; the statistics of the norms do not change.
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        outs: list[dict[str, list[Tensor]]] = [{}, {}]
        shares: dict[str, list[float]] = {}
        handles = []
        for name, layer in binary_layers(self.model).items():

            def after_sign(module: nn.Module, inputs: tuple, signs: Tensor, name: str = name) -> None:
                if signs.numel():
                    shares.setdefault(name, []).append((signs >= 0).double().mean().item())

            def after_layer(module: nn.Module, inputs: tuple, out: Tensor, name: str = name) -> None:
                outs[current].setdefault(name, []).append(out)

            handles += [layer.activation.register_forward_hook(after_sign), layer.register_forward_hook(after_layer)]
        try:
            with torch.no_grad():
                for current in range(2):  # the hooks read it
                    self.model(**self.data([self.pictures[current]]), mode='loss')
        finally:
            for handle in handles:
                handle.remove()
            self.model.eval()
        uncalled = [name for name in binary_layers(self.model) if name not in shares]
        if uncalled:
            raise Failure(f'{len(uncalled)} binary layers are never called: {uncalled[:3]}')
        for name in shares:
            first, second = (found.get(name, []) for found in outs)
            if all(torch.equal(a, b) for a, b in zip(first, second, strict=False)):
                raise Failure(f'{name} gives the same output for both pictures')
        dead = {
            name: [round(share, 3) for share in found]
            for name, found in shares.items()
            if not all(ALIVE[0] <= share <= ALIVE[1] for share in found)
        }
        if dead:
            raise Failure(f'{len(dead)} signs are nearly constant: {dict(list(dead.items())[:3])}')
        everything = [share for found in shares.values() for share in found]
        return min(everything), max(everything)

    def train_step(self) -> None:
        """One step of SGD."""
        self.model.train()
        optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4)
        loss, _ = self.model.parse_losses(self.model(**self.data(self.pictures), mode='loss'))
        loss.backward()
        if not loss.isfinite():
            raise Failure(f'the loss is {loss.item()}')
        for name, layer in binary_layers(self.model).items():
            if layer.weight.grad is None:
                raise Failure(f'{name} gets no gradient')
            if not layer.weight.grad.isfinite().all():
                raise Failure(f'the gradient of {name} is not finite')
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.model.eval()

    @torch.no_grad()
    def raw(self, model: nn.Module, pictures: list[Tensor]) -> list[Tensor]:
        """Raw predictions."""
        torch.manual_seed(0)  # SegNeXt's head draws numbers
        return list(tensors(forward_call(model, self.images(pictures))()))

    @torch.no_grad()
    def predict(self, model: nn.Module, pictures: list[Tensor]) -> list[list[Tensor]]:
        """Results, picture by picture."""
        torch.manual_seed(0)
        results = model(**self.data(pictures, training=False), mode='predict')
        return [list(tensors(result)) for result in results]

    def check_saved(self) -> None:
        """Saves and loads the weights."""
        file = io.BytesIO()
        torch.save(self.model.state_dict(), file)
        file.seek(0)
        twin = build_model(self.cfg).eval()
        twin.load_state_dict(torch.load(file, weights_only=True))
        found, expected = (self.predict(model, self.pictures) for model in (twin, self.model))
        for result, wanted in zip(found, expected, strict=True):
            if not all(torch.equal(a, b) for a, b in zip(result, wanted, strict=True)):
                raise Failure('loaded weights give another prediction')

    @simulated()
    def check_packed(self) -> tuple[int, int, float]:
        """Returns the number of packed layers, the number of pictures until one agreed, and the deviation of its raw
        predictions."""
        raw = self.raw(self.model, self.pictures)
        if not any(len(out) % 2 == 0 and not torch.equal(*out.chunk(2)) for out in raw):
            raise Failure('the raw predictions are the same for both pictures')
        packed, layers = pack_and_report(self.model)
        problems = Counter(layer.problem for layer in layers if layer.problem)
        if problems:
            raise Failure(f'not packed: {dict(problems)}')
        off = []
        for picture in [flip(picture) for flip in FLIPS for picture in self.pictures]:
            off.append(deviation(self.raw(packed, [picture]), self.raw(self.model, [picture])))
            if off[-1] > TOLERANCE:
                continue
            (found,), (expected,) = (self.predict(model, [picture]) for model in (packed, self.model))
            if [out.shape for out in found] != [out.shape for out in expected]:
                raise Failure('packed and simulated raw predictions agree, and the results do not')
            return len(layers), len(off), off[-1]
        raise Failure(f'packed outputs deviate by {min(off):.2g} of the largest and more, on {len(off)} pictures')


def share_of_operations(cfg: Config, report: object) -> tuple[float, float]:
    """Shares of the float model's operations that became binary and that are in linear layers, at the config's input
    size."""
    model = build_model(cfg)
    size = input_size(cfg) or SIZE_UNKNOWN
    rows = analyze(model, forward_call(model, torch.zeros(1, 3, *size)))
    whole = total(rows)
    binary = {name for matches in report.rules if matches.rule.become != 'keep' for name in matches.layers}
    return sum(row.flops for row in rows if row.name in binary) / whole.flops, whole.linear_flops / whole.flops


def check(name: str, policy: list[dict]) -> dict:
    """Makes one config binary, and checks it.

    Returns:
        A row of the table; ``result`` is 'pass' or 'fail', and ``reason`` why.
    """
    began = time.process_time()
    row = dict(config=name, result='pass', reason='')
    step = 'build'
    try:
        importlib.import_module(f'{name.split("::")[0]}.utils').register_all_modules(False)
        cfg = prepare(name)
        torch.manual_seed(0)
        binary = copy.deepcopy(cfg)
        binarize_config(binary, policy)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            run = Run(binary)
            report = binarization_of(run.model)
            row['kept'] = dict(Counter([*report.problems.values(), *['no rule'] * len(report.unmatched)]))
            step = 'count'
            row['binary_share'], row['linear_share'] = share_of_operations(cfg, report)
            step = 'alive'
            row['positive_share'] = run.check_alive()
            step = 'train'
            run.train_step()
            step = 'save and load'
            run.check_saved()
            step = 'pack'
            row['binary_layers'], row['pictures'], row['deviation'] = run.check_packed()
    except Exception as error:  # Any error is the result of that config.
        text = str(error).strip().splitlines() or ['']
        row.update(result='fail', reason=f'{step}: {type(error).__name__}: {text[0][:300]}')
        if not isinstance(error, Failure):
            traceback.print_exc()
    row['cpu_seconds'] = round(time.process_time() - began, 1)
    return row


def read_results(path: Path) -> dict[str, dict]:
    """The existing rows by config; the last row of a config counts."""
    if not path.exists():
        return {}
    return {row['config']: row for row in map(json.loads, path.read_text().splitlines())}


def markdown(rows: list[dict]) -> str:
    """The page with the table."""
    passed = sum(row['result'] == 'pass' for row in rows)
    lines = [
        '# Stock configs made binary',
        '',
        f'{passed} of {len(rows)} stock configs pass (`python benchmarks/stock_configs.py`, policy `groupnet_k4.py`).',
        '',
        '| config | result | operations made binary | in linears | share of +1 | layers packed | '
        'pictures until packed and simulated agree | reason when not |',
        '| --- | --- | --- | --- | --- | --- | --- | --- |',
    ]
    for row in rows:
        share, linear = (f'{row[key]:.1%}' if key in row else '' for key in ('binary_share', 'linear_share'))
        signs = '{:.2f}-{:.2f}'.format(*row['positive_share']) if 'positive_share' in row else ''
        cells = [f'`{row["config"]}`', row['result'], share, linear, signs]
        cells += [row.get('binary_layers', ''), row.get('pictures', ''), row['reason']]
        lines.append(f'| {" | ".join(map(str, cells))} |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    parser = argparse.ArgumentParser(description='Makes stock configs binary')
    parser.add_argument('configs', nargs='*', help='only these (default: all of benchmarks/stock_configs.txt)')
    parser.add_argument('--again', action='store_true', help='also those that have a result')
    parser.add_argument('--policy', default=str(POLICY), help='default: groupnet_k4.py')
    parser.add_argument('--out', type=Path, default=RESULTS, help='default: benchmarks/results/stock_configs.jsonl')
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    MMLogger.get_current_instance().setLevel(logging.ERROR)  # mmengine logs how it initialises every tensor.
    MessageHub.get_current_instance().update_info('epoch', 0)  # Some heads need it.
    listed = [line for line in LIST.read_text().splitlines() if line and not line.startswith('#')]
    policy = load_policy(args.policy)
    for name in args.configs or listed:
        if name in read_results(args.out) and not args.again:
            continue
        row = check(name, policy)
        print(json.dumps(row), flush=True)
        with args.out.open('a') as file:
            file.write(json.dumps(row) + '\n')
        gc.collect()
        if sys.platform == 'linux':
            ctypes.CDLL(None).malloc_trim(0)  # Freed models leave holes in memory that the next one can hardly use.
    rows = read_results(args.out)
    # Each config once, in the order of the list.
    rows = [rows[name] for name in [*listed, *sorted(set(rows) - set(listed))] if name in rows]
    args.out.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    args.out.with_suffix('.md').write_text(markdown(rows))


if __name__ == '__main__':
    main()
