"""The embedded digits as a classification set."""

from pathlib import Path

import cv2
import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.dist import barrier, is_main_process
from pycocotools.coco import COCO

from mmgroupnet.datasets.digits import DIGIT_CLASSES, generate_digits
from mmgroupnet.errors import UserError
from mmgroupnet.registry import DATASETS

# Side of a crop as a multiple of the digit's box: it includes a little of the photograph and of its neighbours.
_MARGIN = 1.2


@DATASETS.register_module()
class DigitCrops(BaseDataset):
    """The digits of the embedded detection set, each cut out with its surroundings. The set is generated on first use.

    Args:
        split: 'train' or 'val'. Default: 'train'.
        source: Folder of the detection set, see :func:`generate_digits`. Default: 'data/digits'.
        image_size: Side of the square crops in pixels. Default: 32.
        kwargs: As for mmengine's ``BaseDataset``.

    Samples hold ``img``, BGR uint8 ``(image_size, image_size, 3)``, and ``gt_label``.

    Raises:
        UserError: If ``split`` is another value.
    """

    METAINFO = dict(classes=DIGIT_CLASSES)

    def __init__(self, split: str = 'train', source: str = 'data/digits', image_size: int = 32, **kwargs) -> None:
        if split not in ('train', 'val'):
            raise UserError(f"split={split!r}: the digits have 'train' and 'val'")
        self.split = split
        self.source = Path(source)
        self.image_size = image_size
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        """Generates the detection set if it does not exist, and cuts out its digits."""
        annotations = self.source / 'annotations' / f'instances_{self.split}.json'
        if is_main_process() and not annotations.exists():
            generate_digits(self.source)
        barrier()
        coco = COCO(str(annotations))
        samples = []
        for image in coco.loadImgs(coco.getImgIds()):
            path = self.source / self.split / image['file_name']
            picture = cv2.imread(str(path))
            if picture is None:
                raise UserError(f'{path} cannot be read: delete {self.source}, and it is made again')
            for annotation in coco.loadAnns(coco.getAnnIds(image['id'])):
                samples.append(
                    dict(img=self._crop(picture, annotation['bbox']), gt_label=annotation['category_id'] - 1)
                )
        return samples

    def _crop(self, picture: np.ndarray, box: list[int]) -> np.ndarray:
        x, y, width, height = box
        side = round(max(width, height) * _MARGIN)
        center = (x + (width - 1) / 2, y + (height - 1) / 2)  # between pixel centres, not edges
        patch = cv2.getRectSubPix(picture, (side, side), center)  # repeats the border outside the picture
        return cv2.resize(patch, (self.image_size, self.image_size), interpolation=cv2.INTER_AREA)
