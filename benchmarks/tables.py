"""Writes the tables of results into the documents: ``python benchmarks/tables.py``.

A document says where a table belongs:

    <!-- table: digits_detection -->
    | ... |
    <!-- end of table -->

Names are those of TABLES. Each table comes from the file of results that the benchmark of that name has written, so
documents show measured values. Run the script after a benchmark; a test compares all documents with their results.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # The checkout of this file comes before an installed mmgroupnet.

from benchmarks import (  # noqa: E402
    bccd_detection,
    bccd_policies,
    camvid_segmentation,
    cifar10_decomposition,
    cifar10_quantizers,
    deployment,
    digits_detection,
    more_detection,
    packed_conv,
    packed_model,
    reproduction,
    train_step,
    zoo,
)
from benchmarks.timing import format_table  # noqa: E402
from benchmarks.trainings import read_lines  # noqa: E402

RESULTS = ROOT / 'benchmarks/results'
_TABLE = re.compile(r'(?<=<!-- table: )(?P<name>\w+)( -->\n)(?P<table>.*?)(?=<!-- end of table -->)', re.DOTALL)


def _of_lines(benchmark) -> str:
    return benchmark.results_table(read_lines(ROOT / benchmark.RESULTS))


def _decompositions(blocks: int) -> str:
    return cifar10_decomposition.results_table(read_lines(ROOT / cifar10_decomposition.RESULTS), blocks)


def _json(name: str) -> dict:
    return json.loads((RESULTS / f'{name}.json').read_text())


def _packed_models(name: str) -> str:
    return packed_model.summary_table([_json(name), _json(f'{name}_2_threads')])


def _triton_kernels() -> str:
    # Its benchmark needs Triton, which not every build of torch has.
    from benchmarks.triton_kernels import results_table

    return results_table([row for row in _json('triton_kernels')['kernels'] if row['maps'] == 'float32'])


def _flagship_bytes() -> str:
    cells = [[name, f'{value / 2**30:.1f}'] for name, value in _json('train_step')['flagship'].items()]
    return format_table(['', 'GiB'], cells)


def _mean(benchmark, metric: str, name: str) -> float:
    """The mean of a metric over the lines of a config or variant."""
    lines = read_lines(ROOT / benchmark.RESULTS)
    found = [line[metric] for line in lines if name in (line.get('variant'), Path(line.get('config', '')).stem)]
    return sum(found) / len(found)


def _headline() -> str:
    """The table in README: accuracy, size and speed of binary networks and their float twins."""
    from mmgroupnet.engine.model_report import measure_complexity

    machines = [_json(name)['models'] for name in ('deployment_vpopcntdq', 'deployment')]

    def deployed(models: dict, model: str, engine: str) -> dict:
        return next(row for row in models[model]['contestants'] if row['name'] == engine)

    def speeds(model: str | None) -> list[str]:
        return [
            f'{deployed(models, model, deployment.ON_BITS)["over_twin"][0]:.1f}x' if model in models else ''
            for models in machines
        ]

    def size(config: str) -> str:
        return f'{measure_complexity(str(ROOT / "configs" / config)).bytes_packed / 1e6:.1f}'

    fcn = 'fcn-32s_groupnet_r18_camvid-240x180'
    float_fcn = 'fcn-32s_r18_camvid-240x180'
    trained = [
        ('digits (the demo), FCOS, K = 3', 'AP', 3, digits_detection, 'twin', 'binary',
         'demo/fcos_float_digits.py', 'demo/fcos_groupnet_digits.py', 'demo FCOS'),
        ('blood cells (BCCD), FCOS, K = 4', 'AP', 3, bccd_detection, 'fcos_r18_bccd', 'fcos_groupnet_r18_bccd',
         'detection/fcos_r18_bccd.py', 'detection/fcos_groupnet_r18_bccd.py', 'BCCD FCOS'),
        ('streets (CamVid), FCN-32s, K = 4', 'mIoU', 1, camvid_segmentation, float_fcn, fcn,
         f'segmentation/{float_fcn}.py', f'segmentation/{fcn}.py', None),
    ]  # fmt: skip
    rows = [
        [
            title,
            metric,
            f'{_mean(benchmark, metric, twin):.{digits}f}',
            f'{_mean(benchmark, metric, binary):.{digits}f}',
            size(twin_config),
            size(binary_config),
            *speeds(model),
        ]
        for title, metric, digits, benchmark, twin, binary, twin_config, binary_config, model in trained
    ]
    for model in ('ResNet-18, K = 1', 'ResNet-18, K = 4'):
        sizes = [
            f'{deployed(machines[0], model, engine)["bytes"] / 1e6:.1f}'
            for engine in (deployment.TWIN, deployment.ON_BITS)
        ]
        rows.append([f'{model}, at 224x224', '', '', '', *sizes, *speeds(model)])
    header = ['network', 'metric', 'float', 'binary', 'MB float', 'MB binary', 'speed, Zen 4', 'speed, older Xeon']
    return format_table(header, rows)


TABLES: dict[str, Callable[[], str]] = {
    'bccd_detection': lambda: _of_lines(bccd_detection),
    'bccd_policies': lambda: _of_lines(bccd_policies),
    'camvid_segmentation': lambda: _of_lines(camvid_segmentation),
    'cifar10_decomposition_r20': lambda: _decompositions(blocks=3),
    'cifar10_decomposition_r8': lambda: _decompositions(blocks=1),
    'cifar10_gates': lambda: cifar10_decomposition.gates_table(read_lines(ROOT / cifar10_decomposition.RESULTS)),
    'cifar10_quantizers': lambda: _of_lines(cifar10_quantizers),
    'deployment': lambda: deployment.results_table(_json('deployment')['models']),
    'deployment_vpopcntdq': lambda: deployment.results_table(_json('deployment_vpopcntdq')['models']),
    'digits_detection': lambda: _of_lines(digits_detection),
    'flagship_bytes': _flagship_bytes,
    'headline': _headline,
    'more_detection': lambda: _of_lines(more_detection),
    'packed_conv': lambda: packed_conv.results_table(_json('packed_conv')),
    'packed_conv_vpopcntdq': lambda: packed_conv.results_table(_json('packed_conv_vpopcntdq')),
    'packed_model': lambda: _packed_models('packed_model'),
    'packed_model_vpopcntdq': lambda: _packed_models('packed_model_vpopcntdq'),
    'reproduction': lambda: reproduction.results_table(_json('reproduction')['rows']),
    'train_step': lambda: train_step.results_table(_json('train_step')['settings']),
    'triton_kernels': _triton_kernels,
    'zoo': lambda: _of_lines(zoo),
}


def documents() -> list[Path]:
    """The Markdown files that may hold tables."""
    return [ROOT / 'README.md', *sorted(ROOT.glob('docs/**/*.md')), *sorted(ROOT.glob('configs/*/README.md'))]


def names_in(text: str) -> list[str]:
    """The names of the tables in a document."""
    return [found['name'] for found in _TABLE.finditer(text)]


def _linked_from(folder: Path, table: str) -> str:
    """A table whose links to configs, which are file names, are made relative to a folder."""

    def link(found: re.Match) -> str:
        (config,) = ROOT.glob(f'configs/**/{found[1]}')
        return f']({os.path.relpath(config, folder)})'

    return re.sub(r'\]\(([\w.-]+\.py)\)', link, table)


def fill(text: str, folder: Path = ROOT) -> str:
    """A document with the tables of the results in their places.

    Args:
        text: The document.
        folder: Its folder. Default: the root of the checkout.

    Raises:
        ValueError: If the document names an unknown table.
    """

    def table(found: re.Match) -> str:
        if found['name'] not in TABLES:
            raise ValueError(f'table: {found["name"]!r} is none of {", ".join(TABLES)}')
        return f'{found["name"]}{found[2]}{_linked_from(folder, TABLES[found["name"]]())}\n'

    return _TABLE.sub(table, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    for path in documents():
        text = path.read_text()
        filled = fill(text, path.parent)
        if filled != text:
            path.write_text(filled)
            print(f'{path.relative_to(ROOT)} written')


if __name__ == '__main__':
    main()
