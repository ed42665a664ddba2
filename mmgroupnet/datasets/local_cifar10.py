"""CIFAR-10 from local files."""

import pickle
from pathlib import Path

import numpy as np
from mmengine.dataset import BaseDataset

from mmgroupnet.errors import UserError
from mmgroupnet.registry import DATASETS


@DATASETS.register_module()
class LocalCIFAR10(BaseDataset):
    """CIFAR-10 in its Python version, without verifying the files' checksums.

    mmpretrain's own ``CIFAR10`` downloads the original if a checksum differs, even if the images were only re-encoded.

    Args:
        split: 'train' (50,000 images) or 'test' (10,000). Default: 'train'.
        data_prefix: The folder of the batches, in ``data_root``. Default: ``dict(root='cifar-10-batches-py')``.
        kwargs: As for mmengine's ``BaseDataset``.

    Samples hold ``img``, BGR uint8 ``(32, 32, 3)`` as OpenMMLab's loaders of pictures give it, and ``gt_label``.

    Raises:
        UserError: If ``split`` is another value.
    """

    METAINFO = dict(classes=('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck'))
    files = dict(train=[f'data_batch_{number}' for number in range(1, 6)], test=['test_batch'])

    def __init__(self, split: str = 'train', data_prefix: dict = dict(root='cifar-10-batches-py'), **kwargs) -> None:
        if split not in self.files:
            raise UserError(f"split={split!r}: CIFAR-10 has 'train' and 'test'")
        self.split = split
        super().__init__(data_prefix=data_prefix, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Reads all images of the split."""
        samples = []
        for name in self.files[self.split]:
            with open(Path(self.data_prefix['root']) / name, 'rb') as file:
                batch = pickle.load(file, encoding='latin1')
            images = batch['data'].reshape(-1, 3, 32, 32)[:, ::-1].transpose(0, 2, 3, 1)  # stored as RGB
            samples += [
                dict(img=np.ascontiguousarray(image), gt_label=int(label))
                for image, label in zip(images, batch['labels'], strict=True)
            ]
        return samples
