"""Memory and time of one training step: ``python benchmarks/train_step.py``.

The contestants, in one run, for Group-Net ResNets with soft gates, merged by the mean, all binary behind the stem:

- *float twin*: torchvision's ResNet;
- *plain loop*: every block written branch by branch with plain autograd, as the method is described;
- *plain loop, checkpointed*: the same under ``torch.utils.checkpoint``, block by block;
- *ours*, and *ours, with_cp*, which does not keep the integers of the convolutions either.

A step is forward, backward and the clearing of gradients, without an optimizer. The script measures

- the bytes saved for backward: all tensors that autograd's graph holds at the end of the forward pass, each storage
  once, without parameters, buffers and the image. Custom functions save their tensors through the same hooks; for
  checkpoints their inputs are counted;
- the resident memory of a step, including gradients of the weights, above that of the process before the step; it is
  sampled while the step runs, in a separate process;
- milliseconds, in turns.

At the end it counts the bytes saved by the flagship detector at 800x1333, whose tensors have shapes but no memory.

All contestants have the same latent weights. The script prints one table per setting, and writes
benchmarks/results/train_step.json. ``--device cuda`` measures on a GPU, see benchmarks/train_step_cuda.py.
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # The checkout of this file comes before an installed mmgroupnet.

from benchmarks.packed_model import GroupNetClassifier, float_classifier  # noqa: E402
from benchmarks.timing import Spread, describe_machine, format_table, interleave, write_json  # noqa: E402

MIB = 2**20
FLOAT, PLAIN, CHECKPOINTED = 'float twin', 'plain loop', 'plain loop, checkpointed'
OURS, OURS_CP = 'ours', 'ours, with_cp'
FLAGSHIP = 'configs/fcos_groupnet_r50_coco.py'
CONTESTANTS = (FLOAT, PLAIN, CHECKPOINTED, OURS, OURS_CP)


class Setting(NamedTuple):
    """A network and its batch.

    Attributes:
        depth: Depth of the ResNet.
        num_bases: Number K of bases.
        size: Height and width of the images.
        batch: Number of images.
    """

    depth: int
    num_bases: int
    size: int
    batch: int

    def __str__(self) -> str:
        return f'ResNet-{self.depth}, K = {self.num_bases}, {self.batch} x {self.size}x{self.size}'


class _Sign(torch.autograd.Function):
    """Sign with the gradient of Bi-Real Net's polynomial."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (2 - 2 * x.abs()).clamp(min=0)


class _Binarize(torch.autograd.Function):
    """Scaled signs of weights, straight through."""

    @staticmethod
    def forward(ctx, weight: Tensor) -> Tensor:
        return weight.abs().mean() * torch.where(weight >= 0, 1.0, -1.0).to(weight.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient


class PlainConv(nn.Conv2d):
    """Binary conv of one branch: sign, pad with +1, convolve with binarised weights."""

    def forward(self, x: Tensor) -> Tensor:
        pad = self.kernel_size[0] // 2
        return F.conv2d(F.pad(_Sign.apply(x), (pad,) * 4, value=1.0), _Binarize.apply(self.weight), stride=self.stride)


class PlainBranch(nn.Module):
    """One branch of a block.

    Args:
        depth: Depth of the ResNet.
        in_channels: Channels of its input.
        channels: Channels of its inner convs.
        stride: Stride of its 3x3 conv (of the first one in a basic block).
    """

    def __init__(self, depth: int, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.is_basic = depth < 50
        if self.is_basic:
            shapes = ((in_channels, channels, 3, stride), (channels, channels, 3, 1))
        else:
            shapes = ((in_channels, channels, 1, 1), (channels, channels, 3, stride), (channels, 4 * channels, 1, 1))
        self.convs = nn.ModuleList(PlainConv(a, b, kernel, step, bias=False) for a, b, kernel, step in shapes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(out) for _, out, _, _ in shapes)

    def forward(self, x: Tensor, shortcut: Callable[[Tensor], Tensor]) -> Tensor:
        out = x
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            given, out = out, norm(F.relu(conv(out)))
            if self.is_basic and index == 0 or not self.is_basic and index == 2:
                out = out + shortcut(x)
            elif given.shape == out.shape:
                out = out + given
        return out


class PlainBlock(nn.Module):
    """A soft-gated block, branch by branch; arguments as for :class:`PlainBranch`."""

    def __init__(
        self, depth: int, in_channels: int, channels: int, stride: int, num_bases: int, is_first: bool
    ) -> None:
        super().__init__()
        out_channels = channels * (1 if depth < 50 else 4)
        self.theta = None if is_first else nn.Parameter(torch.rand(1))
        self.branches = nn.ModuleList(PlainBranch(depth, in_channels, channels, stride) for _ in range(num_bases))
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                PlainConv(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self.theta is not None:
            merged = sum(inputs) / len(inputs)
            gate = self.theta.sigmoid()
            inputs = [gate * x + (1 - gate) * merged for x in inputs]
        return tuple(branch(x, self.shortcut) for branch, x in zip(self.branches, inputs, strict=True))


class PlainLoop(nn.Module):
    """The network as described in the paper, with plain autograd.

    Args:
        depth: 18 or 50.
        num_bases: Number K of branches.
        with_checkpoints: Checkpoints every block.
    """

    def __init__(self, depth: int, num_bases: int, with_checkpoints: bool) -> None:
        super().__init__()
        self.num_bases = num_bases
        self.with_checkpoints = with_checkpoints
        expansion, stage_blocks = {18: (1, (2, 2, 2, 2)), 50: (4, (3, 4, 6, 3))}[depth]
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(64))
        self.blocks = nn.ModuleList()
        in_channels = 64
        for stage, num_blocks in enumerate(stage_blocks):
            channels = 64 * 2**stage
            for index in range(num_blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                self.blocks.append(PlainBlock(depth, in_channels, channels, stride, num_bases, not self.blocks))
                in_channels = channels * expansion
        self.fc = nn.Linear(in_channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.stem(x),) * self.num_bases
        for block in self.blocks:
            if self.with_checkpoints:
                branches = checkpoint(block, *branches, use_reentrant=False)
            else:
                branches = block(*branches)
        return self.fc((sum(branches) / self.num_bases).mean((2, 3)))


def build(contestant: str, setting: Setting) -> nn.Module:
    """Builds a contestant, in training mode."""
    torch.manual_seed(0)
    if contestant == FLOAT:
        return float_classifier(setting.depth).train()
    if contestant in (PLAIN, CHECKPOINTED):
        return PlainLoop(setting.depth, setting.num_bases, contestant == CHECKPOINTED).train()
    return GroupNetClassifier(setting.depth, setting.num_bases, with_cp=contestant == OURS_CP).train()


def images(setting: Setting) -> Tensor:
    return torch.randn(setting.batch, 3, setting.size, setting.size, generator=torch.Generator().manual_seed(0))


def step(model: nn.Module, x: Tensor) -> None:
    """One training step without an optimizer."""
    model(x).square().mean().backward()
    model.zero_grad(set_to_none=True)


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that the graph of one forward pass keeps for the backward pass, each storage once."""
    known = {value.untyped_storage()._cdata for value in (*model.parameters(), *model.buffers(), x)}
    storages: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in known:
            storages[storage._cdata] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        outs = model(x)
        loss = sum(out.square().mean() for out in ((outs,) if isinstance(outs, Tensor) else outs))
    # Tensors saved inside a checkpoint are freed; its inputs are kept, whether or not another op saves them.
    for block in model.modules():
        for value in getattr(block, 'kept_inputs', ()):
            note(value)
    loss.backward()
    model.zero_grad(set_to_none=True)
    return sum(storages.values())


class Maps(nn.Module):
    """A config's model up to its losses, which keep little memory: the maps of its head, or a classifier's scores.

    Args:
        cfg: A config of mmdet, mmsegmentation or mmpretrain.
    """

    def __init__(self, cfg) -> None:
        super().__init__()
        from mmgroupnet.engine.models import build_model

        self.model = build_model(cfg)

    def forward(self, x: Tensor) -> list[Tensor]:
        found, waiting = [], [self.model(x, mode='tensor')]
        while waiting:
            value = waiting.pop()
            if isinstance(value, Tensor):
                found.append(value)
            else:
                waiting.extend(value)
        return found


def flagship(memory_efficient: bool, with_cp: bool):
    """The flagship detector's config, without pretrained weights.

    Args:
        memory_efficient: This option of its binary convs.
        with_cp: This option of its backbone.
    """
    from mmgroupnet.engine.configs import load_config

    cfg = load_config(str(ROOT / FLAGSHIP))
    cfg.model.backbone.update(with_cp=with_cp, init_cfg=None)
    for part in ('backbone', 'neck', 'bbox_head'):
        options = cfg.model[part].get('binary_cfg') or {}
        cfg.model[part].binary_cfg = dict(options, memory_efficient=memory_efficient)
    return cfg


def flagship_bytes() -> dict[str, int]:
    """Counts the saved bytes of the flagship detector at 800x1333, batch 1; its tensors have shapes but no memory."""
    contestants = {'plain autograd': (False, False), OURS: (True, False), OURS_CP: (True, True)}
    found = {}
    for name, options in contestants.items():
        with torch.device('meta'):
            model, x = Maps(flagship(*options)).train(), torch.empty(1, 3, 800, 1344)
        found[name] = saved_bytes(model, x)
    return found


def note_inputs_of_checkpoints(model: nn.Module) -> None:
    """Records the inputs of checkpointed blocks for :func:`saved_bytes`, because ``checkpoint`` holds them in a
    closure."""
    if isinstance(model, PlainLoop) and model.with_checkpoints:
        for block in model.blocks:
            block.register_forward_pre_hook(lambda block, inputs: setattr(block, 'kept_inputs', inputs))


def resident_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * 4096


def peak_of_a_step(contestant: str, setting: Setting, threads: int) -> int:
    """Resident bytes of a step above those of the process before it, after one step on a tiny image."""
    torch.set_num_threads(threads)
    model, x = build(contestant, setting), images(setting)
    step(model, x[:1, :, :64, :64].repeat(2, 1, 1, 1))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # glibc keeps freed memory, which the resting process does not need
    resting = peak = resident_bytes()
    is_over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not is_over.wait(0.002):
            peak = max(peak, resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    step(model, x)
    is_over.set()
    watcher.join()
    return peak - resting


def peak_in_a_process(contestant: str, setting: Setting, threads: int) -> int:
    """:func:`peak_of_a_step` in a process of its own."""
    command = [sys.executable, __file__, '--peak', contestant, '--threads', str(threads), *map(str, setting)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def seconds_of(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def measure(setting: Setting, contestants: Sequence[str], rounds: int, threads: int) -> list[dict]:
    """Measures all contestants in a setting.

    Args:
        setting: The setting.
        contestants: Their names.
        rounds: Timed steps of each, in turns, behind one that is not timed.
        threads: Threads of each of them.

    Returns: A row a contestant: bytes saved, bytes at the peak, and ms as ``[median, low, high, count]``.
    """
    torch.set_num_threads(threads)
    peaks = {name: peak_in_a_process(name, setting, threads) for name in contestants}
    x = images(setting)
    models = {name: build(name, setting) for name in contestants}
    saved, runs = {}, {}
    for name, model in models.items():
        note_inputs_of_checkpoints(model)
        saved[name] = saved_bytes(model, x)
        for block in model.modules():
            block.__dict__.pop('kept_inputs', None)
            block._forward_pre_hooks.clear()
        run = partial(step, model, x)
        run()
        runs[name] = partial(seconds_of, run)
    values = interleave(runs, rounds)
    return [
        dict(
            name=name,
            saved_bytes=saved[name],
            peak_bytes=peaks[name],
            ms=Spread.of([value * 1e3 for value in values[name]]),
        )
        for name in contestants
    ]


def results_table(settings: Sequence[dict]) -> str:
    """The contestants of each setting as Markdown, with their ratios to the plain loop."""
    cells = []
    for found in settings:
        setting = str(Setting(*(found[field] for field in Setting._fields)))
        rows = found['contestants']
        plain = next((row for row in rows if row['name'] == PLAIN), None)
        for row in rows:
            ms = Spread(*row['ms'])
            ratios = ['', '', '']
            if plain is not None:
                ratios = [
                    f'1/{plain["saved_bytes"] / row["saved_bytes"]:.1f}',
                    f'1/{plain["peak_bytes"] / row["peak_bytes"]:.1f}',
                    f'1/{Spread(*plain["ms"]).median / ms.median:.2f}',
                ]
            cells.append(
                [
                    setting,
                    row['name'],
                    f'{row["saved_bytes"] / MIB:.0f}',
                    ratios[0],
                    f'{row["peak_bytes"] / MIB:.0f}',
                    ratios[1],
                    f'{ms.median:.0f} ({ms.low:.0f}..{ms.high:.0f})',
                    ratios[2],
                ]
            )
            setting = ''
    columns = ['', 'contestant', 'saved, MiB', 'of plain', 'peak, MiB', 'of plain', 'ms (10th..90th)', 'of plain']
    return format_table(columns, cells)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('setting', type=int, nargs='*', help='DEPTH K SIZE BATCH; default: those of the documentation')
    parser.add_argument(
        '--device', choices=('cpu', 'cuda'), default='cpu', help='cuda measures all contestants of train_step_cuda.py'
    )
    parser.add_argument('--contestants', nargs='+', choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument('--threads', type=int, default=2, help='threads of all contestants (default: 2)')
    parser.add_argument('--rounds', type=int, default=7, help='timed steps of each contestant (default: 7)')
    parser.add_argument('--out', type=Path, help='default: benchmarks/results/train_step.json or train_step_cuda.json')
    parser.add_argument('--peak', help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.setting and len(args.setting) != len(Setting._fields):
        parser.error(f'setting: {len(args.setting)} numbers, give DEPTH K SIZE BATCH')
    is_cuda = args.device == 'cuda'
    if is_cuda and not torch.cuda.is_available():
        raise SystemExit('--device cuda: torch sees no GPU here')
    out = args.out or ROOT / f'benchmarks/results/train_step{"_cuda" if is_cuda else ""}.json'
    if is_cuda:
        from benchmarks.train_step_cuda import run_all

        run_all(Setting(*args.setting) if args.setting else None, args.rounds, out)
        return
    if args.peak:
        print(peak_of_a_step(args.peak, Setting(*args.setting), args.threads))
        return
    settings = (
        [Setting(*args.setting)]
        if args.setting
        else [Setting(18, bases, 224, 4) for bases in (1, 3, 5)]
        + [
            Setting(50, 5, 224, 2),
            Setting(18, 5, 640, 1),
        ]
    )
    results = dict(machine=describe_machine(args.threads), settings=[])
    for setting in settings:
        rows = measure(setting, args.contestants, args.rounds, args.threads)
        results['settings'].append(dict(setting._asdict(), contestants=rows))
        print(f'\n{results_table(results["settings"][-1:])}', flush=True)
        write_json(out, results)
    if not args.setting:
        results['flagship'] = flagship_bytes()
        print(f'\n{FLAGSHIP}, 1 x 800x1333 (padded to 800x1344), saved by count\n')
        cells = [[name, f'{value / 2**30:.2f}'] for name, value in results['flagship'].items()]
        print(format_table(['', 'GiB'], cells))
        write_json(out, results)


if __name__ == '__main__':
    main()
