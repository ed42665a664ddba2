"""The command ``mmgroupnet-run``."""

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from mmgroupnet_runtime.drawing import draw
from mmgroupnet_runtime.errors import UserError
from mmgroupnet_runtime.machine import core_name, import_onnxruntime, kernel_set
from mmgroupnet_runtime.model import Model, load
from mmgroupnet_runtime.pictures import find_pictures, read_picture
from mmgroupnet_runtime.predictions import Answer, PredictionsFile, entries, summary
from mmgroupnet_runtime.version import __version__

_TIMED = 10  # lowest number of inferences, without the first


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='mmgroupnet-run', description='Runs a binary network on pictures.')
    parser.add_argument('model', help='.onnx file that `mmgroupnet export` wrote')
    parser.add_argument('pictures', nargs='+', metavar='PICTURE_OR_FOLDER', help='a picture or a folder of pictures')
    parser.add_argument('--json', metavar='FILE', help='write the answers as JSON')
    parser.add_argument('--npz', metavar='FILE', help='write the answers for `mmgroupnet test CONFIG FILE`')
    parser.add_argument('--draw', metavar='DIR', help='draw the answers on the pictures, as DIR/NAME.jpg')
    parser.add_argument('--time', action='store_true', help='print how long a picture takes')
    parser.add_argument('--threads', type=int, metavar='N', help='number of threads (default: one per core)')
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        metavar='S',
        help='lowest score of a detection that is printed or drawn; files hold all (default: 0.3)',
    )
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command. An error that the user can fix is printed as one line, with exit status 1.

    Args:
        arguments: The command line. Default: that of the process.
    """
    try:
        run(parse_args(arguments))
    except (UserError, OSError) as error:  # OSError: a file cannot be written.
        print(f'error: {error}', file=sys.stderr)
        sys.exit(1)


def run(args: argparse.Namespace) -> None:
    """Runs the command with parsed arguments.

    Raises:
        UserError: If something is wrong with the model, a picture or an option.
    """
    model = load(args.model, args.threads)
    paths = find_pictures(args.pictures)
    _check_names(paths, args)
    listed, seconds = [], []
    with ExitStack() as stack:
        predictions = stack.enter_context(PredictionsFile(args.npz, model)) if args.npz else None
        for path in paths:
            picture = read_picture(path)
            answer, taken = _timed(model, picture)
            seconds.append(taken)
            print(f'{path.name}: {summary(answer, model.classes, args.score_thr)}')
            if predictions is not None:
                predictions.add(path.name, answer)
            if args.json:
                height, width = picture.shape[:2]
                listed.append(dict(name=path.name, width=width, height=height, answer=entries(answer, model.classes)))
            if args.draw:
                drawn = _drawn_path(path, args)
                drawn.parent.mkdir(parents=True, exist_ok=True)
                image = draw(picture, answer, model.classes, model.palette, args.score_thr)
                image.save(drawn, quality=95, subsampling=0)  # Thin lines keep their colour.
    if args.json:
        content = dict(model=Path(args.model).name, task=model.task, classes=model.classes, pictures=listed)
        file = Path(args.json)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding='utf-8')
    if args.time:
        while len(seconds) <= _TIMED:
            seconds.append(_timed(model, picture)[1])
        print(_times(model, seconds))


def _check_names(paths: list[Path], args: argparse.Namespace) -> None:
    """Raises an error if the answers would overwrite each other or a picture."""
    for wanted, names in ((args.npz, [p.name for p in paths]), (args.draw, [p.stem for p in paths])):
        name, count = Counter(names).most_common(1)[0]
        if wanted and count > 1:
            raise UserError(
                f'{count} pictures have the name {name}, but {wanted} holds each name once: run them separately'
            )
    for path in paths:
        if args.draw and _drawn_path(path, args).resolve() == path.resolve():
            raise UserError(f'--draw {args.draw} would overwrite the picture {path}: give another folder')


def _drawn_path(path: Path, args: argparse.Namespace) -> Path:
    return Path(args.draw) / f'{path.stem}.jpg'


def _timed(model: Model, picture: np.ndarray) -> tuple[Answer, tuple[float, float]]:
    """Returns the answer for a picture, and the seconds that the resize rule and the network took."""
    start = time.perf_counter()
    image = model.prepare(picture)
    between = time.perf_counter()
    answer = model.answer(image, picture.shape[:2])
    return answer, (between - start, time.perf_counter() - between)


def _times(model: Model, seconds: list[tuple[float, float]]) -> str:
    """Returns the line that ``--time`` prints."""
    resize, network = (1000 * np.array(part) for part in zip(*seconds, strict=True))
    threads = model.session.get_session_options().intra_op_num_threads or 'one per core'
    kernels = f', kernels {kernel_set()}' if model.has_binary_layers else ''
    return (
        f'ms per picture, median of {len(seconds) - 1}: resize {statistics.median(resize[1:]):.2f}, '
        f'network {statistics.median(network[1:]):.2f} (the first {network[0]:.2f}); threads: {threads}; '
        f'ONNX Runtime {import_onnxruntime().__version__}, {core_name()}{kernels}'
    )
