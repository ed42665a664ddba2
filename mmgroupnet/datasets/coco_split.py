"""Splits a COCO annotation file into two, for training and for evaluation."""

import json
import random
from pathlib import Path

from mmgroupnet.errors import UserError


def split_coco(path: Path, held_out: float, seed: int) -> dict[Path, int]:
    """Writes both files beside the original one.

    Args:
        path: The annotation file.
        held_out: Share of the pictures for evaluation, between 0 and 1; each file gets at least one picture.
        seed: Seed of the random choice of pictures.

    Returns:
        The number of pictures by file.

    Raises:
        UserError: If the file does not exist, is not in COCO's format, or has fewer than two pictures.
    """
    if not 0 < held_out < 1:
        raise UserError(f'held_out={held_out}: give a share between 0 and 1')
    if not path.is_file():
        raise UserError(f'{path} does not exist')
    try:
        whole = json.loads(path.read_text())
        pictures = [picture['id'] for picture in whole['images']]
        boxes = whole['annotations']
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} is not an annotation file in the format of COCO: {error!r}') from error
    if len(pictures) < 2:
        raise UserError(f'{path} has {len(pictures)} pictures: a split needs at least two')
    number = min(max(round(held_out * len(pictures)), 1), len(pictures) - 1)
    val = set(random.Random(seed).sample(pictures, number))
    written = {}
    for name, belongs in (('train', lambda picture: picture not in val), ('val', lambda picture: picture in val)):
        part = dict(
            whole,
            images=[picture for picture in whole['images'] if belongs(picture['id'])],
            annotations=[entry for entry in boxes if belongs(entry['image_id'])],
        )
        out = path.with_name(f'{path.stem}_{name}.json')
        out.write_text(json.dumps(part))
        written[out] = len(part['images'])
    return written
