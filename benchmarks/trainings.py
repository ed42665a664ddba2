"""Common parts of the benchmarks that train: calls of the tools' command lines, and results as JSON lines."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Run = TypeVar('Run', bound=Hashable)


def write_config(path: Path, base: Path, changes: str) -> Path:
    """Writes a config that inherits another one and changes parts of it, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"_base_ = '{base}'\n{changes}")
    return path


def train(config: str, work_dir: Path, *cfg_options: str, amp: bool = False) -> None:
    """Trains a config by tools/train.py, by default in float32; an interrupted run resumes from its last epoch."""
    options = ['--amp'] if amp else []
    run_tool('tools/train.py', config, '--work-dir', work_dir, '--resume', *options, cfg_options=cfg_options)


def test(config: str, checkpoint: Path, work_dir: Path, *cfg_options: str) -> dict[str, float]:
    """Evaluates a checkpoint by tools/test.py, and returns the metrics by name."""
    folder = work_dir / 'evaluation'
    shutil.rmtree(folder, ignore_errors=True)  # so that only the metrics of this evaluation are there
    run_tool('tools/test.py', config, checkpoint, '--work-dir', folder, cfg_options=cfg_options)
    (metrics,) = folder.glob('*/*.json')
    return json.loads(metrics.read_text())


def box_results(work_dir: Path) -> dict[str, float]:
    """Epochs, AP, AP50 and seconds of a detector's training; AP from the evaluation after its last epoch."""
    from mmgroupnet.analysis.training_curves import read_history, training_seconds

    metrics = read_history(work_dir).metrics
    last_epoch = max(metrics['coco/bbox_mAP'])
    return dict(
        epochs=last_epoch,
        AP=metrics['coco/bbox_mAP'][last_epoch],
        AP50=metrics['coco/bbox_mAP_50'][last_epoch],
        seconds=round(training_seconds(work_dir)),
    )


def run_tool(*command: object, cfg_options: tuple[str, ...] = ()) -> None:
    """Runs a tool of the repository, with overrides of its config."""
    options = ['--cfg-options', *cfg_options] if cfg_options else []
    subprocess.run([sys.executable, *map(str, command), *options], check=True)


def read_lines(path: Path) -> list[dict]:
    """The finished runs."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def collect(
    path: Path, runs: Sequence[Run], key: Callable[[dict], Run], finish: Callable[[Run], dict], jobs: int = 1
) -> list[dict]:
    """Makes the runs that have no line in a file of results yet.

    Args:
        path: The file, JSON lines. A line is appended as soon as its run and those before it are finished.
        runs: All runs, in the order in which they are made.
        key: The run of a line.
        finish: Makes a run and returns its line.
        jobs: Number of parallel runs. Default: 1.

    Returns:
        All lines of the file.
    """
    lines = read_lines(path)
    done = {key(line) for line in lines}
    with ThreadPoolExecutor(jobs) as pool:
        for line in pool.map(finish, [run for run in runs if run not in done]):
            lines.append(line)
            with path.open('a') as file:
                file.write(json.dumps(line) + '\n')
    return lines
