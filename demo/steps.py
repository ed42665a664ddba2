"""The common parts of the demos: steps that could be typed one by one, timed, and continued after an interruption."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mmgroupnet.checkpoints.read import find_resumable
from mmgroupnet.engine.cli import add_traceback_option
from mmgroupnet.engine.errors import one_line_errors
from mmgroupnet.errors import UserError

ROOT = Path(__file__).resolve().parents[1]

DATA_ROOT = Path('data/digits')  # like all paths here and in the configs, relative to the checkout


class Stopwatch:
    """Announces steps and measures their seconds. A file keeps them, so that the time of interrupted runs counts, too.

    Args:
        path: The file, JSON.
        num_steps: How many steps there are.
    """

    def __init__(self, path: Path, num_steps: int) -> None:
        self.path = path
        self.num_steps = num_steps
        self.num_started = 0
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Announce a step and measure its time, also if it fails or is interrupted."""
        self.num_started += 1
        print(f'\n===== step {self.num_started}/{self.num_steps}: {title} =====', flush=True)
        start = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - start
            self.seconds[title] = self.seconds.get(title, 0) + seconds
            self.path.write_text(json.dumps(self.seconds, indent=2))
        print(f'===== done in {seconds:.0f} s =====', flush=True)

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def run_demo(description: str, work_dir: Path, run: Callable[[Path, list[str]], None]) -> None:
    """Reads the command line of a demo and runs it in the checkout.

    Args:
        description: The text of its ``--help``.
        work_dir: Default folder of the results.
        run: Called with the folder of the results, which keeps those of an unfinished run, and with the overrides
            ``KEY=VALUE`` of all configs.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--work-dir', type=Path, default=work_dir, help=f'folder of the results, in the checkout (default: {work_dir})'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='settings of all configs to override, e.g. train_cfg.max_epochs=2 for a quick look',
    )
    add_traceback_option(parser)
    args = parser.parse_args()
    os.chdir(ROOT)
    with one_line_errors(args):
        try:
            keep_finished_results(args.work_dir)
            args.work_dir.mkdir(parents=True, exist_ok=True)
            run(args.work_dir, args.cfg_options)
        except KeyboardInterrupt:
            sys.exit('\ndemo: interrupted; the same command continues from the last checkpoint.')


def keep_finished_results(work_dir: Path) -> None:
    """Rename the results of a finished demo, so that this run starts from scratch; keep those of an unfinished one.

    Raises:
        UserError: If something other than results of a demo has the new name; older results are replaced.
    """
    if not (work_dir / 'summary.json').exists():
        return
    previous = work_dir.with_name(f'{work_dir.name}_previous')
    if os.path.lexists(previous):
        if previous.is_symlink() or not (previous / 'summary.json').is_file():
            raise UserError(
                f'the results of the last demo cannot be kept in {previous}, which contains something else '
                '(no summary.json of a demo): move it, or give another --work-dir'
            )
        shutil.rmtree(previous)
    work_dir.rename(previous)
    print(f'The results of the last demo are kept in {previous}.')


def run_tool(*command: str | Path, cfg_options: list[str]) -> None:
    """Run a tool of this checkout with its output on the terminal.

    Raises:
        UserError: If it ends with an error.
    """
    words = [str(word) for word in command] + (['--cfg-options', *cfg_options] if cfg_options else [])
    print('$ python', *words, flush=True)
    status = subprocess.run([sys.executable, *words]).returncode
    if status:
        raise UserError(f'{words[0]} ended with exit status {status}; its error is above.')


def train(config: str, work_dir: Path, cfg_options: list[str]) -> None:
    """Train, or continue an interrupted training."""
    # --resume without a checkpoint in the work directory starts from the beginning.
    run_tool('tools/train.py', config, '--work-dir', work_dir, '--resume', cfg_options=cfg_options)


def evaluate(config: str, work_dir: Path, cfg_options: list[str], *options: str | Path) -> dict[str, float]:
    """Evaluate the last checkpoint, with further ``options`` of tools/test.py, and return the metrics by name."""
    folder = work_dir / 'evaluation'
    folder.mkdir(exist_ok=True)
    before = set(folder.glob('*/*.json'))
    run_tool(
        'tools/test.py',
        config,
        last_checkpoint(work_dir),
        '--work-dir',
        folder,
        *options,
        cfg_options=cfg_options,
    )
    (metrics,) = set(folder.glob('*/*.json')) - before
    return json.loads(metrics.read_text())


def last_checkpoint(work_dir: Path) -> Path:
    """The checkpoint of the last epoch."""
    checkpoint = find_resumable(str(work_dir))
    if checkpoint is None:
        raise UserError(f'there is no checkpoint in {work_dir}, although its training ended.')
    return Path(checkpoint)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells in columns, the first aligned to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [
        '  '.join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in (header, *rows))
    ]
    lines.insert(1, '  '.join('-' * width for width in widths))
    return '\n'.join(lines)


def print_places(places: Sequence[tuple[Path, str]], seconds: float) -> None:
    """Print how long the demo took, and where the results are."""
    print(f'{seconds:.0f} seconds in all. Where to look:')
    for path, content in places:
        print(f'    {str(path):<36} {content}')
