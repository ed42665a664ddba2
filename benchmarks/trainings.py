"""What benchmarks that train have in common: the tools as a person calls them, and results as JSON lines."""

import json
import shutil
import subprocess
import sys
from pathlib import Path


def train(config: str, work_dir: Path, *cfg_options: str) -> None:
    """Trains a config by tools/train.py; a run that was cut off goes on from its last epoch."""
    _run('tools/train.py', config, '--work-dir', work_dir, '--resume', cfg_options=cfg_options)


def test(config: str, checkpoint: Path, work_dir: Path, *cfg_options: str) -> dict[str, float]:
    """Evaluates a checkpoint by tools/test.py, and returns the metrics by name."""
    folder = work_dir / 'evaluation'
    shutil.rmtree(folder, ignore_errors=True)  # so that the metrics found there are of this evaluation
    _run('tools/test.py', config, checkpoint, '--work-dir', folder, cfg_options=cfg_options)
    (metrics,) = folder.glob('*/*.json')
    return json.loads(metrics.read_text())


def _run(*command: object, cfg_options: tuple[str, ...]) -> None:
    options = ['--cfg-options', *cfg_options] if cfg_options else []
    subprocess.run([sys.executable, *map(str, command), *options], check=True)


def read_lines(path: Path) -> list[dict]:
    """The finished runs."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append_line(path: Path, line: dict) -> None:
    """Notes a finished run."""
    with path.open('a') as file:
        file.write(json.dumps(line) + '\n')
