"""Curves of loss and metrics over training, read from the logs of mmengine's runner in a work directory."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple


class TrainingHistory(NamedTuple):
    """The log of one training.

    Attributes:
        losses: Loss by training iteration.
        metrics: By name of the metric, its value by epoch.
    """

    losses: dict[int, float]
    metrics: dict[str, dict[int, float]]


def read_history(work_dir: str | Path) -> TrainingHistory:
    """Read the scalars of all runs in a work directory as one training.

    A resumed training writes one folder per run. If runs overlap (in iterations after the checkpoint that the later run
    resumed from), the later one counts.

    Args:
        work_dir: ``--work-dir`` of ``tools/train.py``.

    Returns:
        The history, sorted by step.

    Raises:
        FileNotFoundError: If the folder holds no ``*/vis_data/scalars.json``.
    """
    losses: dict[int, float] = {}
    metrics: dict[str, dict[int, float]] = {}
    for scalars in _read_scalars(work_dir):
        step = scalars['step']
        if 'loss' in scalars:
            losses[step] = scalars['loss']
            continue
        for name, value in scalars.items():
            if '/' in name:  # metrics have a prefix, as in coco/bbox_mAP
                metrics.setdefault(name, {})[step] = value
    return TrainingHistory(_sorted(losses), {name: _sorted(values) for name, values in metrics.items()})


def training_seconds(work_dir: str | Path) -> float:
    """Total seconds of all iterations, over all runs of a resumed training; evaluation is not counted.

    Args:
        work_dir: ``--work-dir`` of ``tools/train.py``.

    Raises:
        FileNotFoundError: As :func:`read_history`.
    """
    seconds = {record['step']: record['time'] for record in _read_scalars(work_dir) if 'loss' in record}
    return sum(seconds.values()) / len(seconds) * max(seconds)


def _read_scalars(work_dir: str | Path) -> Iterator[dict]:
    """The records of all runs in a work directory, in chronological order."""
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))  # the folders are named by time
    if not files:
        raise FileNotFoundError(f'work_dir={str(work_dir)!r} holds no log of a training (*/vis_data/scalars.json).')
    for line in (line for file in files for line in file.read_text().splitlines()):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # a killed run may leave half a line
            continue


def _sorted(values: dict[int, float]) -> dict[int, float]:
    return dict(sorted(values.items()))


def plot_training_curves(
    histories: Mapping[str, TrainingHistory],
    metrics: Mapping[str, str],
    path: str | Path,
    title: str,
) -> None:
    """Plot losses on the left and metrics on the right, one colour per training.

    Args:
        histories: Trainings by their names in the legend.
        metrics: Names of the metrics to plot and their names in the legend, for example
            ``{'coco/bbox_mAP_50': 'AP50'}``. The first is drawn solid, the others dashed.
        path: Picture to write; its suffix decides the format.
        title: A line above both plots.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.6), layout='constrained')  # no pyplot: no display, no state left behind
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    loss_axes, metric_axes = figure.subplots(1, 2)
    for index, (name, history) in enumerate(histories.items()):
        colour = f'C{index}'
        loss_axes.plot(list(history.losses), list(history.losses.values()), color=colour, label=name)
        for style, (key, label) in zip(('-', '--', ':', '-.'), metrics.items(), strict=False):
            values = history.metrics.get(key, {})
            label = f'{label}, {name}'
            metric_axes.plot(list(values), list(values.values()), style, color=colour, marker='.', label=label)
    loss_axes.set(xlabel='iteration', ylabel='training loss', ylim=(0, None))
    metric_axes.set(xlabel='epoch', ylabel='on the validation images', ylim=(0, 1))
    metric_axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in (loss_axes, metric_axes):
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
