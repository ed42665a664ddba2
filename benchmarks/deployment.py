"""Compares exported models with their float twins, from picture to prediction: ``python benchmarks/deployment.py``.

Models: the detector of the demo (``make demo`` trains it and its twin), the detector of BCCD
(benchmarks/bccd_detection.py trains both), and ResNet-18 classifiers at 224x224, K = 1 and 4, with random weights. The
same code exports every network, so normalisation, decoding and non-maximum suppression are measured, too. Detectors
have trained weights, since the time of the suppression depends on the scores.

Contestants run at batch 1, in one process, in turns, with the same number of threads: the packed model in torch
(``test_step``); the .onnx on bits; the float twin's .onnx in ONNX Runtime, and in OpenVINO in float32 and int8
(post-training quantization by nncf, calibrated on pictures of noise: for speed, not accuracy). Engines that are not
installed are left out with the reason (requirements/benchmark.txt has all of them). The script prints a table and
writes benchmarks/results/deployment.json.

``--arm`` counts instructions under qemu instead (tests/arm/machine.py says what it needs): the instructions for one
picture, by kind, of the .onnx on bits and of the float twin in float32 and int8 (ONNX Runtime's own quantization), all
in ONNX Runtime on one thread. On an idle machine, counts of SIMD instructions repeat to a hundredth; Python adds some
hundredths to the counts of all instructions. On a busy machine the latter have been off by 150 million. The least
cycles in which a core can issue the SIMD instructions are computed from the counts, see ``least_cycles``. The results
are written to benchmarks/results/deployment_arm.json.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
# The checkout of this file comes before installed packages.
sys.path[:0] = [str(ROOT), str(ROOT / 'runtime' / 'src')]

from benchmarks.packed_model import CALIBRATION_IMAGES, as_trained, in_openvino  # noqa: E402
from benchmarks.timing import Spread, describe_machine, format_table, interleave, stopwatch, write_json  # noqa: E402

PACKED, ON_BITS = 'packed, in torch', '.onnx on bits'
TWIN, TWIN_INT8 = 'float twin, ONNX Runtime', 'float twin, ONNX Runtime int8'
OPENVINO, OPENVINO_INT8 = 'float twin, OpenVINO', 'float twin, OpenVINO int8'
CORES = ('cortex-a53', 'cortex-a72', 'cortex-a76')  # of Raspberry Pi 3, 4 and 5


class Network(NamedTuple):
    """A config with its weights.

    Attributes:
        config: The config.
        work_dir: Work directory of the training whose last checkpoint is used; None for random weights.
        options: Changes of the config, as in ``--cfg-options``.
    """

    config: str
    work_dir: str | None = None
    options: Mapping = {}


class Subject(NamedTuple):
    """A line of the table: a binary network and its float twin, on images of one size.

    Attributes:
        size: Height and width of a picture after the test pipeline.
        binary, twin: The networks.
        training: The command that trains them; empty for random weights.
    """

    size: tuple[int, int]
    binary: Network
    twin: Network
    training: str = ''


def _resnet18(num_bases: int) -> Subject:
    binary = 'configs/classification/groupnet_r18_k5_stage-b_8xb32-40e_in1k.py'
    options = {'model.backbone.num_bases': num_bases, 'model.backbone.init_cfg': None}
    return Subject((224, 224), Network(binary, None, options), Network('mmpretrain::resnet/resnet18_8xb32_in1k.py'))


SUBJECTS = {
    'demo FCOS': Subject(
        (128, 128),
        Network('configs/demo/fcos_groupnet_digits.py', 'work_dirs/demo'),
        Network('configs/demo/fcos_float_digits.py', 'work_dirs/demo/float_twin'),
        'make demo',
    ),
    'BCCD FCOS': Subject(
        (240, 320),
        Network('configs/detection/fcos_groupnet_r18_bccd.py', 'work_dirs/bccd/fcos_groupnet_r18_bccd'),
        Network('configs/detection/fcos_r18_bccd.py', 'work_dirs/bccd/fcos_r18_bccd'),
        'python benchmarks/bccd_detection.py',
    ),
    'ResNet-18, K = 1': _resnet18(1),
    'ResNet-18, K = 4': _resnet18(4),
}


def _config(network: Network) -> Config:
    from mmgroupnet.engine.configs import load_config

    cfg = load_config(network.config)
    cfg.merge_from_dict(dict(network.options))
    return cfg


def _checkpoint(subject: Subject, network: Network, folder: Path) -> Path:
    """The last checkpoint of a network's training, or random weights with the statistics of one run.

    Raises:
        FileNotFoundError: If the network was not trained.
    """
    if network.work_dir is not None:
        last = ROOT / network.work_dir / 'last_checkpoint'
        if not last.is_file():
            raise FileNotFoundError(f'{last} does not exist: `{subject.training}` trains the network')
        return Path(last.read_text().strip())
    from mmengine.registry import MODELS, DefaultScope

    from mmgroupnet.model_configs import with_data_preprocessor

    torch.manual_seed(0)
    cfg = _config(network)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(with_data_preprocessor(cfg.model, cfg.get('data_preprocessor')))
    model = as_trained(model, torch.randn(2, 3, *subject.size))
    path = folder / f'{Path(network.config).stem}.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


def _export(subject: Subject, network: Network, folder: Path) -> tuple[Path, Path]:
    """Exports a network; returns the checkpoint and the .onnx file."""
    from mmgroupnet.engine.onnx_export import export_checkpoint

    checkpoint = _checkpoint(subject, network, folder)
    out = folder / f'{Path(network.config).stem}.onnx'
    print(export_checkpoint(_config(network), checkpoint, out, strict=True), file=sys.stderr, flush=True)
    return checkpoint, out


def in_torch(network: Network, checkpoint: Path, image: Tensor) -> Callable[[], Sequence]:
    """``test_step`` of the packed model on one image, uint8 ``(3, H, W)``."""
    from mmengine.registry import DefaultScope

    from mmgroupnet.engine.packing import load_float, pack_loaded

    cfg = _config(network)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        packed, _ = pack_loaded(load_float(cfg, checkpoint)[0], strict=True)
    data = dict(inputs=image[None])
    if cfg.default_scope == 'mmdet':
        from mmdet.structures import DetDataSample

        size = tuple(image.shape[1:])
        sample = DetDataSample(
            metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), batch_input_shape=size)
        )
        data = dict(inputs=[image], data_samples=[sample])

    @torch.inference_mode()
    def run() -> Sequence:
        return packed.test_step(data)

    return run


def in_runtime(path: Path, image: np.ndarray, threads: int) -> Callable[[], Sequence]:
    """An .onnx file in ONNX Runtime, on one image, uint8 ``(H, W, 3)``."""
    import mmgroupnet_runtime

    model = mmgroupnet_runtime.load(path, threads)
    return partial(model.run, image[None])


def picture(subject: Subject) -> np.ndarray:
    """One image of the test set for trained weights, otherwise noise; uint8 ``(H, W, 3)``, BGR."""
    if subject.binary.work_dir is None:
        return np.random.default_rng(0).integers(0, 256, (*subject.size, 3), np.uint8)
    from mmengine.registry import DATASETS, DefaultScope

    cfg = _config(subject.binary)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        image = DATASETS.build(cfg.test_dataloader.dataset)[0]['inputs']
    if tuple(image.shape[1:]) != subject.size:
        raise ValueError(f'size={subject.size}: the pictures of {subject.binary.config} are {tuple(image.shape[1:])}')
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def measure(subject: Subject, rounds: int, threads: int) -> dict:
    """Measures all contestants of a subject.

    Args:
        subject: What is measured.
        rounds: Measurements of each contestant.
        threads: Threads of each of them.

    Returns:
        The results, as they are written to the JSON file: times in ms, each as ``[median, 10th percentile, 90th
        percentile, count]``.
    """
    torch.set_num_threads(threads)
    image = picture(subject)
    noise = np.random.default_rng(1).integers(0, 256, (CALIBRATION_IMAGES, *image.shape), np.uint8)
    batch, calibration = torch.from_numpy(image[None]), torch.from_numpy(noise)
    with tempfile.TemporaryDirectory() as name:
        checkpoint, on_bits = _export(subject, subject.binary, Path(name))
        _, twin = _export(subject, subject.twin, Path(name))
        engines = {
            PACKED: lambda: in_torch(subject.binary, checkpoint, batch[0].permute(2, 0, 1).contiguous()),
            ON_BITS: lambda: in_runtime(on_bits, image, threads),
            TWIN: lambda: in_runtime(twin, image, threads),
            OPENVINO: lambda: in_openvino(twin, batch, threads),
            OPENVINO_INT8: lambda: in_openvino(twin, batch, threads, calibration),
        }
        runs, skipped = {}, {}
        for engine, make in engines.items():
            try:
                runs[engine] = make()
            except ImportError as error:
                skipped[engine] = str(error)
                print(f'{engine} is left out: {error}', flush=True)
        values = interleave({engine: stopwatch(run) for engine, run in runs.items()}, rounds)
        sizes = {ON_BITS: on_bits.stat().st_size, TWIN: twin.stat().st_size}
    rows = [
        dict(
            name=engine,
            ms=Spread.of([1e3 * value for value in values[engine]]),
            over_twin=Spread.of([slow / fast for slow, fast in zip(values[TWIN], values[engine], strict=True)]),
            bytes=sizes.get(engine),
        )
        for engine in runs
    ]
    return dict(size=subject.size, contestants=rows, skipped=skipped)


# The program on a device: some inferences on one image. It does not use mmgroupnet_runtime.load, which refuses a
# quantized file because its weights are not those that the exporter wrote.
_ON_DEVICE = """
import sys
import numpy
import onnxruntime
from mmgroupnet_runtime import library_path
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.add_session_config_entry('mmgroupnet.threads', '1')
options.register_custom_ops_library(library_path())
session = onnxruntime.InferenceSession(sys.argv[1], options)
for _ in range(int(sys.argv[3])):
    session.run(None, dict(image=numpy.load(sys.argv[2])))
"""


def least_cycles(core: str, simd: float, multiply_adds: float) -> float:
    """The least cycles in which a core can issue SIMD instructions, without any other limit.

    Per cycle, a Cortex-A53 starts one 128-bit instruction, a Cortex-A72 two, but only one float multiply-add, and a
    Cortex-A76 two of any kind (ARM's software optimization guides).

    Args:
        core: Its name in qemu.
        simd: Number of SIMD instructions.
        multiply_adds: Number of float multiply-adds among them.
    """
    if core == 'cortex-a53':
        return simd
    return (simd + multiply_adds) / 2 if core == 'cortex-a72' else simd / 2


def _quantized(twin: Path, images: np.ndarray) -> Path:
    """The float twin in int8, calibrated on some images, uint8 ``(N, H, W, 3)``."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(images)

        def get_next(self) -> dict | None:
            image = next(self.rest, None)
            return None if image is None else dict(image=image[None])

    out = twin.with_suffix('.int8.onnx')
    quantize_static(twin, out, Images(), per_channel=True, op_types_to_quantize=['Conv', 'Gemm', 'MatMul', 'Add'])
    return out


def count(subject: Subject, cores: Sequence[str], wheel: Path) -> dict:
    """Counts the instructions of one picture.

    Args:
        subject: What is measured.
        cores: Names of ARM cores in qemu.
        wheel: The wheel of mmgroupnet-runtime for aarch64.

    Returns:
        The results, as they are written to the JSON file: for each core and engine the numbers of all instructions,
        SIMD instructions, float multiply-adds, loads and stores, and the least cycles, all in millions.
    """
    from tests.arm import machine

    image = picture(subject)
    noise = np.random.default_rng(1).integers(0, 256, (CALIBRATION_IMAGES, *image.shape), np.uint8)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plugin = machine.compile_counter(folder)
        package = machine.unpack(wheel, folder / 'package')
        np.save(folder / 'image.npy', image[None])
        _, on_bits = _export(subject, subject.binary, folder)
        _, twin = _export(subject, subject.twin, folder)
        files = {ON_BITS: on_bits, TWIN: twin, TWIN_INT8: _quantized(twin, noise)}
        for core in cores:
            for engine, path in files.items():
                once, twice = (
                    machine.python(core).count(
                        plugin, '-c', _ON_DEVICE, path, folder / 'image.npy', number, paths=[package]
                    )
                    for number in (1, 2)
                )
                counts = [(after - before) / 1e6 for before, after in zip(once, twice, strict=True)]
                everything, simd, multiply_adds, memory = counts
                rows.append(
                    dict(
                        core=core,
                        name=engine,
                        all=everything,
                        simd=simd,
                        multiply_adds=multiply_adds,
                        memory=memory,
                        least_cycles=least_cycles(core, simd, multiply_adds),
                    )
                )
                print(rows[-1], file=sys.stderr, flush=True)
    return dict(size=subject.size, counts=rows)


def counts_table(results: Mapping[str, dict]) -> str:
    """The counts of all subjects, in millions, as one Markdown table."""
    keys = ('all', 'simd', 'multiply_adds', 'memory', 'least_cycles')
    rows = [
        [f'{name}, {"x".join(map(str, found["size"]))}', row['core'], row['name'], *(f'{row[key]:.1f}' for key in keys)]
        for name, found in results.items()
        for row in found['counts']
    ]
    columns = ['model', 'core', 'engine', 'all', 'SIMD', 'multiply-adds', 'loads, stores', 'least cycles']
    return format_table(columns, rows)


def results_table(results: Mapping[str, dict]) -> str:
    """All subjects as one Markdown table."""
    rows = []
    for name, found in results.items():
        for row in found['contestants']:
            ms, size = Spread(*row['ms']), row['bytes']
            rows.append(
                [
                    f'{name}, {found["size"][0]}x{found["size"][1]}',
                    row['name'],
                    f'{ms.median:.2f} ({ms.low:.2f}..{ms.high:.2f})',
                    f'{Spread(*row["over_twin"]).median:.2f}x',
                    '' if size is None else f'{size / 1e6:.2f}',
                ]
            )
    return format_table(['model', 'engine', 'ms (10th..90th)', 'against the twin', 'MB'], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--threads', type=int, default=1, help='threads of all contestants (default: 1)')
    parser.add_argument('--rounds', type=int, default=30, help='measurements of each contestant (default: 30)')
    parser.add_argument('--models', nargs='+', choices=SUBJECTS, default=list(SUBJECTS), help='default: all')
    parser.add_argument('--arm', action='store_true', help='count instructions of ARM cores instead')
    parser.add_argument('--out', type=Path, help='default: benchmarks/results/deployment.json or deployment_arm.json')
    args = parser.parse_args(arguments)
    out = (args.out or ROOT / f'benchmarks/results/deployment{"_arm" if args.arm else ""}.json').resolve()
    os.chdir(ROOT)
    results = {}
    if args.arm:
        wheel = next((ROOT / 'runtime' / 'dist').glob('*_aarch64.whl'), None)
        if wheel is None:
            parser.error('--arm needs the wheel for aarch64 in runtime/dist: `make runtime` builds it')
        for name in args.models:
            results[name] = count(SUBJECTS[name], CORES, wheel)
        print(f'\nMillions\n\n{counts_table(results)}')
        write_json(out, dict(models=results))
        return
    for name in args.models:
        print(f'{name} ...', file=sys.stderr, flush=True)
        results[name] = measure(SUBJECTS[name], args.rounds, args.threads)
    print(f'\n{results_table(results)}')
    write_json(out, dict(machine=describe_machine(args.threads), rounds=args.rounds, models=results))


if __name__ == '__main__':
    main()
