"""Whole packed models beside their float twins in other engines, at batch 1: ``python benchmarks/packed_model.py``.

Models: Group-Net ResNet-18 and -50 classifiers (K = 1, 4 and 5, soft gates, all binary behind the stem) at 224x224, and
the detector of the demo at its size, up to the maps of its head. Weights are random; batch norms have random scales and
shifts, and the statistics of one training-mode run.

Contestants run in one process, in turns, with the same number of threads: the packed models; the models before packing,
which run on bits automatically; the float twin in torch (contiguous and channels_last), ONNX Runtime, and OpenVINO in
float32 and int8 (post-training quantization by nncf, calibrated on random images: for speed, not accuracy); and, in a
few rounds, the simulated binary models. Engines that are not installed are left out with the reason
(requirements/benchmark.txt has all of them). Float32 engines must agree with torch. The distance of packed outputs from
simulated ones is shown. If no sign flips, it is rounding; if one of millions of inputs is next to zero and its sign
flips, random layers behind it make the distance large. tests/test_deploy shows that each layer is right.

The script prints one table per model, and writes benchmarks/results/packed_model.json with a plot beside it.
``--layers`` adds the time of each layer of the packed models. ``MMGROUPNET_KERNEL=portable`` selects other kernels.
"""

import argparse
import copy
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # The checkout of this file comes before an installed mmgroupnet.

from benchmarks.timing import Spread, describe_machine, format_table, interleave, stopwatch, write_json  # noqa: E402
from mmgroupnet.deploy import pack_and_report  # noqa: E402
from mmgroupnet.layers.packed import PackedChain, PackedModule, PackedStem, PackedTower, simulated  # noqa: E402

CALIBRATION_IMAGES = 8
SIMULATED_ROUNDS = 3  # they are slow, and not competitors
FLOAT_TOLERANCE = 1e-3  # largest distance of a float32 engine's outputs from torch's, relative to their norm

TORCH, CHANNELS_LAST = 'torch float32', 'torch float32, channels_last'
ONNX_RUNTIME = 'ONNX Runtime float32'
OPENVINO, OPENVINO_INT8 = 'OpenVINO float32', 'OpenVINO int8'
FLOAT_ENGINES = (TORCH, CHANNELS_LAST, ONNX_RUNTIME, OPENVINO)

Run = Callable[[], Sequence]


class GroupNetClassifier(nn.Module):
    """Group-Net ResNet, global average pooling and a linear layer.

    Args:
        depth: Depth of the ResNet.
        num_bases: Number K of bases.
        num_classes: Number of classes. Default: 1000.
        base_channels: Channels of the stem. Default: 64.
        options: Options of :class:`GroupNetResNet`.
    """

    def __init__(self, depth: int, num_bases: int, num_classes: int = 1000, base_channels: int = 64, **options) -> None:
        super().__init__()
        from mmgroupnet.models import GroupNetResNet

        self.backbone = GroupNetResNet(depth, num_bases, base_channels=base_channels, out_indices=(3,), **options)
        expansion = self.backbone.arch_settings[depth][0].expansion
        self.fc = nn.Linear(base_channels * 8 * expansion, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        (features,) = self.backbone(x)
        return self.fc(features.mean((2, 3)))


def float_classifier(depth: int) -> nn.Module:
    """torchvision's ResNet."""
    import torchvision

    return torchvision.models.get_model(f'resnet{depth}', weights=None)


class Maps(nn.Module):
    """The head's maps of a config's detector, as one tuple; the timing excludes the non-maximum suppression.

    Args:
        config: A config file.
    """

    def __init__(self, config: str) -> None:
        super().__init__()
        from mmengine.config import Config
        from mmengine.registry import MODELS, DefaultScope

        cfg = Config.fromfile(ROOT / config)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            self.detector = MODELS.build(cfg.model)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(feature for level in self.detector(x, mode='tensor') for feature in level)


class Subject(NamedTuple):
    """The models that are measured under one name.

    Attributes:
        size: Height and width of the image.
        binary: Builds the binary models, by their names in the table.
        float_twin: Builds their float twin.
    """

    size: int
    binary: dict[str, Callable[[], nn.Module]]
    float_twin: Callable[[], nn.Module]


def _classifiers(depth: int) -> Subject:
    binary = {f'K = {bases}': partial(GroupNetClassifier, depth, bases) for bases in (1, 4, 5)}
    return Subject(224, binary, partial(float_classifier, depth))


SUBJECTS = {
    'resnet18': _classifiers(18),
    'resnet50': _classifiers(50),
    'fcos': Subject(
        128,
        {'K = 3': partial(Maps, 'configs/demo/fcos_groupnet_digits.py')},
        partial(Maps, 'configs/demo/fcos_float_digits.py'),
    ),
}


class Contestant(NamedTuple):
    """One row of a table.

    Attributes:
        run: Runs the model on the image and returns its outputs.
        megabytes: Size of the weights, if it is known.
        difference: Distance of its outputs from its reference's, relative to their norm; None without a reference.
        model: The packed model of a packed row.
    """

    run: Run
    megabytes: float | None = None
    difference: float | None = None
    model: nn.Module | None = None


def as_trained(model: nn.Module, images: Tensor) -> nn.Module:
    """Gives batch norms random scales and shifts and the statistics of one training-mode run; turns to eval mode."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.reset_running_stats()
            module.momentum = None  # the plain average: one run counts in full
            module.train()  # including those of a backbone with norm_eval
    with torch.no_grad():
        model(images)
    return model.eval()


def megabytes(model: nn.Module) -> float:
    """Size of a state dict; tensors that share their memory are stored once."""
    storages = {value.untyped_storage().data_ptr(): value for value in model.state_dict().values()}
    return sum(value.untyped_storage().nbytes() for value in storages.values()) / 1e6


def in_torch(model: nn.Module, image: Tensor) -> Run:
    """Runs a model in torch, as it is."""

    @torch.inference_mode()
    def run() -> Sequence[Tensor]:
        outputs = model(image)
        return (outputs,) if isinstance(outputs, Tensor) else outputs

    return run


def as_it_trains(model: nn.Module, image: Tensor) -> Run:
    """Runs a model in torch with simulated layers, which would otherwise run on bits."""
    run = in_torch(model, image)

    def run_simulated() -> Sequence[Tensor]:
        with simulated():
            return run()

    return run_simulated


def in_onnx_runtime(path: Path, image: Tensor, threads: int) -> Run:
    """Runs an ONNX file in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Its threads would keep spinning during the next contestant's time.
    options.add_session_config_entry('session.force_spinning_stop', '1')
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    feeds = {session.get_inputs()[0].name: image.numpy()}
    return lambda: session.run(None, feeds)


def _without_telemetry() -> None:
    """Keeps openvino and nncf from sending usage data while others are timed."""
    sys.modules.setdefault('openvino_telemetry', None)


def in_openvino(path: Path, image: Tensor, threads: int, calibration: Tensor | None = None) -> Run:
    """Runs an ONNX file in OpenVINO, in float32, or in int8 after a calibration on some images."""
    _without_telemetry()
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    if calibration is not None:
        import nncf

        nncf.set_log_level(logging.ERROR)
        images = [image.numpy() for image in calibration.split(1)]
        model = nncf.quantize(model, nncf.Dataset(images), subset_size=len(images))
    settings = {
        'INFERENCE_NUM_THREADS': threads,
        'NUM_STREAMS': 1,
        'PERFORMANCE_HINT': 'LATENCY',
        'INFERENCE_PRECISION_HINT': 'f32',  # otherwise bfloat16 on processors that have it
    }
    compiled = core.compile_model(model, 'CPU', settings)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(image.numpy(), shared_memory=True))

    def run() -> Sequence[np.ndarray]:
        request.infer(share_outputs=True)
        return [request.get_output_tensor(index).data for index in range(len(compiled.outputs))]

    return run


def export_onnx(model: nn.Module, image: Tensor, path: Path) -> None:
    """Writes a model as ONNX."""
    import onnx  # noqa: F401  # torch.onnx needs both
    import onnxscript  # noqa: F401

    torch.onnx.export(model, (image,), path, dynamo=True, external_data=False, verbose=False)


def difference(outputs: Sequence, expected: Sequence) -> float:
    """Distance of outputs from expected ones, relative to the norm of the latter."""
    outputs, expected = (
        torch.cat([torch.as_tensor(np.asarray(value)).flatten() for value in values]) for values in (outputs, expected)
    )
    return ((outputs - expected).norm() / expected.norm()).item()


def prepare(subject: Subject, threads: int, folder: Path) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Builds all contestants and compares their outputs.

    Args:
        subject: What is measured.
        threads: Threads of each of them.
        folder: For temporary files.

    Returns:
        The contestants, and the reasons for those that are left out.

    Raises:
        RuntimeError: If a layer was not packed, or a float32 engine does not agree with torch.
    """
    torch.manual_seed(0)
    images = torch.randn(CALIBRATION_IMAGES, 3, subject.size, subject.size)
    image = images[:1].clone()
    found: dict[str, Contestant] = {}
    skipped: dict[str, str] = {}
    for name, build in subject.binary.items():
        trained = as_trained(build(), images[:2])
        run = as_it_trains(trained, image)
        packed, layers = pack_and_report(trained)
        left = [layer.name for layer in layers if layer.problem]
        if left:
            raise RuntimeError(f'{name}: not packed: {", ".join(left)}')
        packed_run = in_torch(packed, image)
        distance = difference(packed_run(), run())
        found[f'packed, {name}'] = Contestant(packed_run, megabytes(packed), distance, packed)
        unpacked_run = in_torch(trained, image)
        found[f'unpacked, {name}'] = Contestant(unpacked_run, None, difference(unpacked_run(), run()))
        found[f'simulated, {name}'] = Contestant(run, megabytes(trained))

    twin = as_trained(subject.float_twin(), images[:2])
    size = megabytes(twin)
    found[TORCH] = Contestant(in_torch(twin, image), size)
    expected = [value.numpy().copy() for value in found[TORCH].run()]
    path = folder / 'float_twin.onnx'
    exported: list[Path] = []

    def onnx_file() -> Path:
        if not exported:
            export_onnx(twin, image, path)
            exported.append(path)
        return path

    def channels_last() -> Run:
        last = dict(memory_format=torch.channels_last)
        return in_torch(copy.deepcopy(twin).to(**last), image.contiguous(**last))  # `to` changes a module in place

    engines = {
        CHANNELS_LAST: channels_last,
        ONNX_RUNTIME: lambda: in_onnx_runtime(onnx_file(), image, threads),
        OPENVINO: lambda: in_openvino(onnx_file(), image, threads),
        OPENVINO_INT8: lambda: in_openvino(onnx_file(), image, threads, images),
    }
    for name, make in engines.items():
        try:
            run = make()
        except ImportError as error:
            skipped[name] = str(error)
            print(f'{name} is left out: {error}', flush=True)
            continue
        distance = difference(run(), expected)
        if name in FLOAT_ENGINES and not distance <= FLOAT_TOLERANCE:
            raise RuntimeError(
                f'{name}: its outputs differ by {distance:.2g} of their norm from those of torch, '
                f'at most {FLOAT_TOLERANCE} is rounding'
            )
        found[name] = Contestant(run, size if name == CHANNELS_LAST else None, distance)
    return found, skipped


def measure(subject: Subject, rounds: int, threads: int, layers: bool = False) -> dict:
    """Measures all contestants of a subject.

    Args:
        subject: What is measured.
        rounds: Measurements of each contestant.
        threads: Threads of each of them.
        layers: Adds the times of the layers of packed models. Default: False.

    Returns:
        The results, as they are written to the JSON file: times in ms, each as ``[median, 10th percentile, 90th
        percentile, count]``.
    """
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        contestants, skipped = prepare(subject, threads, Path(folder))
        few = {name: SIMULATED_ROUNDS for name in contestants if name.startswith('simulated')}
        values = interleave({name: stopwatch(row.run) for name, row in contestants.items()}, rounds, few)
        rows = [
            dict(
                name=name,
                ms=Spread.of([value * 1e3 for value in values[name]]),
                megabytes=row.megabytes,
                difference=row.difference,
            )
            for name, row in contestants.items()
        ]
        fastest = min((row for row in rows if row['name'] in FLOAT_ENGINES), key=lambda row: row['ms'].median)['name']
        for row in rows:
            for key, opponent in dict(over_torch=TORCH, over_fastest_float32=fastest).items():
                pairs = zip(values[opponent], values[row['name']], strict=False)  # simulated ones have fewer rounds
                row[key] = Spread.of([slow / fast for slow, fast in pairs])
        results = dict(size=subject.size, fastest_float32=fastest, contestants=rows, skipped=skipped)
        if layers:
            image = torch.randn(1, 3, subject.size, subject.size)
            results['layers'] = {
                name: layer_times(row.model, image, rounds)
                for name, row in contestants.items()
                if row.model is not None
            }
    return results


def timed_layers(model: nn.Module, name: str = '') -> Iterator[tuple[str, nn.Module]]:
    """The layers of a packed model: blocks that run in one call, the merges behind them, and modules without
    children."""
    is_block = isinstance(model, PackedChain)
    is_whole = isinstance(model, (PackedModule, PackedStem)) and not isinstance(model, PackedTower)
    if is_whole or not any(model.children()):
        yield name, model
    if is_block or not is_whole:
        for child_name, child in model.named_children():
            if not is_block or child_name == 'merge':
                yield from timed_layers(child, f'{name}.{child_name}' if name else child_name)


def layer_times(model: nn.Module, image: Tensor, rounds: int) -> list[dict]:
    """Times of the layers of a packed model.

    Args:
        model: The model.
        image: Its input.
        rounds: Number of runs, after one that is not counted.

    Returns:
        A dict for each layer that ran: its name, type, calls, the shape of its last output and the ms of all its calls
        in one run. The last two dicts are the time between the layers, and the whole run.
    """
    began: dict[str, float] = {}
    seconds: dict[str, float] = {}
    rows: dict[str, dict] = {}

    def before(module: nn.Module, inputs: tuple, name: str) -> None:
        began[name] = time.perf_counter()

    def after(module: nn.Module, inputs: tuple, out: Tensor, name: str) -> None:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began[name]
        row = rows.setdefault(name, dict(name=name, type=type(module).__name__, calls=0))
        row['calls'] += 1
        row['output'] = list(out.shape)

    handles = []
    for name, module in timed_layers(model):
        handles.append(module.register_forward_pre_hook(partial(before, name=name)))
        handles.append(module.register_forward_hook(partial(after, name=name)))
    runs: list[dict[str, float]] = []
    try:
        with torch.inference_mode():
            for _ in range(rounds + 1):
                seconds.clear()
                start = time.perf_counter()
                model(image)
                total = time.perf_counter() - start
                runs.append({**seconds, 'between': total - sum(seconds.values()), 'total': total})
    finally:
        for handle in handles:
            handle.remove()
    runs = runs[1:]
    for row in rows.values():
        row['calls'] //= rounds + 1
    for name in ('between', 'total'):
        rows[name] = dict(name=name, type='', calls=1, output=[])
    for name, row in rows.items():
        row['ms'] = Spread.of([run[name] * 1e3 for run in runs])
    return list(rows.values())


def summary_table(runs: Sequence[dict]) -> str:
    """Milliseconds of all contestants of some runs, each with its threads, as Markdown."""
    columns = {
        f'{name}, {run["machine"]["threads"]} thread{"s" * (run["machine"]["threads"] > 1)}': {
            row['name']: f'{Spread(*row["ms"]).median:.1f}' for row in found['contestants']
        }
        for run in runs
        for name, found in run['models'].items()
    }
    names = sorted({name for found in columns.values() for name in found}, key=_place_in_summary)
    rows = [[name, *(found.get(name, '') for found in columns.values())] for name in names]
    return format_table(['ms for one image', *columns], rows)


def _place_in_summary(contestant: str) -> tuple[int, str]:
    kinds = ['packed', 'unpacked', 'torch', 'ONNX', 'OpenVINO float', 'OpenVINO int', 'simulated']
    return next(index for index, kind in enumerate(kinds) if contestant.startswith(kind)), contestant


def print_tables(name: str, results: dict) -> None:
    """Prints the results of a subject as Markdown."""
    columns = ['', 'ms (10th..90th)', 'against torch', f'against {results["fastest_float32"]}', 'MB', 'difference']
    rows = []
    for row in results['contestants']:
        ms, size, distance = row['ms'], row['megabytes'], row['difference']
        rows.append(
            [
                row['name'],
                f'{ms.median:.2f} ({ms.low:.2f}..{ms.high:.2f})',
                f'{row["over_torch"].median:.2f}x',
                f'{row["over_fastest_float32"].median:.2f}x',
                '' if size is None else f'{size:.1f}',
                '' if distance is None else f'{distance:.1g}',
            ]
        )
    rows += [[left, reason, '', '', '', ''] for left, reason in results['skipped'].items()]
    print(f'\n{name}, {results["size"]}x{results["size"]}\n\n{format_table(columns, rows)}')
    for packed, layers in results.get('layers', {}).items():
        total = layers[-1]['ms'].median
        rows = [
            [
                row['name'],
                row['type'],
                row['calls'],
                'x'.join(map(str, row['output'])),
                f'{row["ms"].median:.3f}',
                f'{row["ms"].median / total:.1%}',
            ]
            for row in layers
        ]
        print(f'\n{name}, {packed}\n\n{format_table(["layer", "type", "calls", "output", "ms", "share"], rows)}')


def plot(results: dict, path: Path) -> None:
    """Draws the times of all contestants except the simulated ones, which are too slow for the plot; one panel per
    subject."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    models, machine = results['models'], results['machine']
    figure, panels = plt.subplots(1, len(models), figsize=(6 * len(models), 4.5), layout='constrained', squeeze=False)
    for axes, (name, found) in zip(panels[0], models.items(), strict=True):
        rows = [row for row in found['contestants'][::-1] if not row['name'].startswith('simulated')]
        times = [row['ms'] for row in rows]
        errors = [[time.median - time.low for time in times], [time.high - time.median for time in times]]
        colors = ['tab:blue' if row['name'].startswith('packed') else 'tab:gray' for row in rows]
        medians = [time.median for time in times]
        bars = axes.barh([row['name'] for row in rows], medians, xerr=errors, capsize=2, color=colors)
        axes.bar_label(bars, [f'{median:.3g}' for median in medians], padding=3)
        axes.margins(x=0.15)
        axes.set_xlabel('ms')
        axes.set_title(f'{name}, {found["size"]}x{found["size"]}')
    figure.suptitle(f'{machine["processor"]}, {machine["packed_kernels"]}, {machine["threads"]} thread(s), batch 1')
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--threads', type=int, default=1, help='threads of all contestants (default: 1)')
    parser.add_argument('--rounds', type=int, default=30, help='measurements of each contestant (default: 30)')
    parser.add_argument('--models', nargs='+', choices=SUBJECTS, default=list(SUBJECTS), help='default: all')
    parser.add_argument('--layers', action='store_true', help='times of each layer of the packed models, too')
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks/results/packed_model.json')
    args = parser.parse_args(arguments)
    args.out = args.out.resolve()
    os.chdir(ROOT)
    models = {}
    for name in args.models:
        print(f'{name} ...', file=sys.stderr, flush=True)
        models[name] = measure(SUBJECTS[name], args.rounds, args.threads, args.layers)
        print_tables(name, models[name])
    results = dict(machine=describe_machine(args.threads), rounds=args.rounds, models=models)
    write_json(args.out, results)
    plot(results, args.out.with_suffix('.png'))


if __name__ == '__main__':
    main()
