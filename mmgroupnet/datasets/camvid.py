"""CamVid."""

from mmseg.datasets import BaseSegDataset

from mmgroupnet.registry import DATASETS


@DATASETS.register_module()
class CamVidDataset(BaseSegDataset):
    """CamVid: frames of driving videos in the 11 classes of SegNet, 367 to train, 101 to validate, 233 to test.

    Images are ``*.jpg``; masks ``*.png`` hold the classes 0 to 10 and 255 for void, as in a tree of
    ``{img_dir,ann_dir_255}/{train,val,test}``.

    Args:
        img_suffix: Ending of the images. Default: '.jpg'.
        seg_map_suffix: Ending of the masks. Default: '.png'.
        kwargs: As for mmseg's BaseSegDataset.

    Source: Brostow et al., Semantic Object Classes in Video, 2009; split and classes of Badrinarayanan et al., SegNet.
    """

    METAINFO = dict(
        classes=(
            'sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign symbol', 'fence', 'car', 'pedestrian',
            'bicyclist',
        ),
        palette=[
            [128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [60, 40, 222], [128, 128, 0],
            [192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0], [0, 128, 192],
        ],
    )  # fmt: skip

    def __init__(self, img_suffix: str = '.jpg', seg_map_suffix: str = '.png', **kwargs) -> None:
        super().__init__(img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, **kwargs)
