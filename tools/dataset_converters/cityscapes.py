"""Converts Cityscapes' label ids to the 19 evaluated classes: ``gtFine_labelIds.png`` to ``gtFine_labelTrainIds.png``.

mmseg's own converter draws the masks from the polygons and needs cityscapesscripts; this one needs only the masks,
which come with the polygons in ``gtFine_trainvaltest.zip``.
"""

import argparse
import os
import sys
from multiprocessing import Pool
from pathlib import Path

# The checkout of this file comes before an installed mmgroupnet.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np

from mmgroupnet.engine.cli import add_traceback_option
from mmgroupnet.engine.errors import one_line_errors
from mmgroupnet.errors import UserError

# Label ids of the classes in the order of their training ids (Cordts et al., CVPR 2016); all other ids are ignored.
TRAINED_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
NUM_IDS = 34
IGNORED = 255
SUFFIX, NEW_SUFFIX = '_gtFine_labelIds.png', '_gtFine_labelTrainIds.png'


def train_ids(label_ids: np.ndarray) -> np.ndarray:
    """Training ids of a mask of label ids, both uint8; 255 stays 255.

    Raises:
        UserError: If the mask holds ids that Cityscapes does not have.
    """
    unknown = np.setdiff1d(label_ids, [*range(NUM_IDS), IGNORED])
    if len(unknown):
        raise UserError(f'it holds the ids {unknown.tolist()}, Cityscapes has 0 to {NUM_IDS - 1} and {IGNORED}')
    table = np.full(256, IGNORED, dtype=np.uint8)
    table[list(TRAINED_IDS)] = range(len(TRAINED_IDS))
    return table[label_ids]


def convert(path: Path) -> str | None:
    """Writes the converted mask beside a mask. Returns a description of the problem, or None."""
    mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if mask is None or mask.ndim != 2:
        return f'{path} is no mask of one channel'
    try:
        converted = train_ids(mask)
    except UserError as error:
        return f'{path}: {error}'
    target = path.with_name(path.name.removesuffix(SUFFIX) + NEW_SUFFIX)
    partial = target.with_name(f'.partial_{target.name}')  # A killed run leaves no partial mask under its name.
    cv2.imwrite(str(partial), converted)
    os.replace(partial, target)
    return None


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('root', nargs='?', type=Path, default='data/cityscapes', help='default: data/cityscapes')
    parser.add_argument('--nproc', type=int, default=os.cpu_count(), help='processes (default: one per core)')
    add_traceback_option(parser)
    return parser.parse_args()


def convert_all(root: Path, num_processes: int) -> int:
    """Converts all masks of a data set.

    Args:
        root: Its folder.
        num_processes: Number of processes that share the work.

    Returns:
        The number of masks.

    Raises:
        UserError: If there are no masks, or some cannot be converted; the message names them.
    """
    masks = sorted((root / 'gtFine').glob(f'*/*/*{SUFFIX}'))
    if not masks:
        raise UserError(f'there are no {root}/gtFine/SPLIT/CITY/*{SUFFIX}')
    with Pool(num_processes) as pool:
        problems = [problem for problem in pool.imap_unordered(convert, masks, chunksize=16) if problem]
    if problems:
        raise UserError('\n'.join(sorted(problems)))
    return len(masks)


def main() -> None:
    args = parse_args()
    with one_line_errors(args):
        print(f'{convert_all(args.root, args.nproc)} masks converted in {args.root}/gtFine')


if __name__ == '__main__':
    main()
