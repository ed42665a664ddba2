"""Adds the masks of SBD to VOC 2012: ``python tools/dataset_converters/voc_aug.py DEVKIT SBD [--nproc N]``.

It runs mmseg's converter of that name, which writes ``SegmentationClassAug`` and the lists ``aug.txt`` (9,118 images)
and ``trainaug.txt`` (10,582); they contain no image of VOC's validation split.
"""

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path


def main() -> None:
    spec = find_spec('mmseg')
    script = spec and Path(spec.origin).parent / '.mim' / 'tools' / 'dataset_converters' / 'voc_aug.py'
    if not script or not script.exists():
        sys.exit('error: mmsegmentation is not installed with its tools: pip install mmsegmentation')
    if len(sys.argv) < 2:
        sys.argv.append('--help')
    runpy.run_path(str(script), run_name='__main__')


if __name__ == '__main__':
    main()
