"""The recorded runs, and drawing without their checkpoints."""

from collections import Counter
from pathlib import Path

from benchmarks.camvid_segmentation import CONFIGS, DRAWN, FIGURE, RESULTS, draw_frames, run_of
from benchmarks.trainings import read_lines

ROOT = Path(__file__).resolve().parents[2]
LINES = read_lines(ROOT / RESULTS)


def test_every_run_has_its_line():
    runs = [run_of(line) for line in LINES]
    assert len(set(runs)) == len(runs)
    assert Counter(name for name, _ in runs) == {name: seeds for name, (_, seeds) in CONFIGS.items()}


def test_nothing_is_drawn_without_checkpoints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    draw_frames(LINES)
    assert capsys.readouterr().out.startswith(f'{FIGURE} stays as it is: no checkpoints in work_dirs/camvid/{DRAWN[0]}')
    assert not FIGURE.exists()
