"""Opens files in the inferencers and init functions of OpenMMLab: ``python tests/open_in_inferencers.py FILES.json``
prints one line of JSON for each file and each way to open it.

Every attempt runs in a separate process, forked from one that has imported the OpenMMLab libraries but not mmgroupnet.
"""

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module

import torch
from mmengine.config import Config

sys.path = [entry for entry in sys.path if not entry.endswith('tests')]


def _mmdet(config: str, checkpoint: str, picture: str) -> Iterator[tuple[str, Callable]]:
    from mmdet.apis import DetInferencer, inference_detector, init_detector

    def infer(model: object) -> object:
        return DetInferencer(model, checkpoint, 'cpu', show_progress=False)(picture)['predictions'][0]['scores']

    def init(model: object) -> object:
        detector = init_detector(model, checkpoint, device='cpu')
        return inference_detector(detector, picture).pred_instances.scores.tolist()

    yield 'DetInferencer(config file)', lambda: infer(config)
    yield 'DetInferencer(Config)', lambda: infer(Config.fromfile(config))
    yield 'DetInferencer(checkpoint alone)', lambda: infer(None)
    yield 'init_detector(config file)', lambda: init(config)
    yield 'init_detector(Config)', lambda: init(Config.fromfile(config))


def _mmseg(config: str, checkpoint: str, picture: str) -> Iterator[tuple[str, Callable]]:
    from mmseg.apis import MMSegInferencer, inference_model, init_model

    def infer(model: object) -> object:
        inferencer = MMSegInferencer(model, checkpoint, device='cpu')
        return inferencer(picture, return_datasamples=True).seg_logits.data.mean((1, 2)).tolist()

    def init(model: object) -> object:
        segmentor = init_model(model, checkpoint, device='cpu')
        return inference_model(segmentor, picture).seg_logits.data.mean((1, 2)).tolist()

    yield 'MMSegInferencer(config file)', lambda: infer(config)
    yield 'MMSegInferencer(Config)', lambda: infer(Config.fromfile(config))
    yield 'MMSegInferencer(checkpoint alone)', lambda: infer(None)
    yield 'init_model(config file)', lambda: init(config)
    yield 'init_model(Config)', lambda: init(Config.fromfile(config))


def _mmpretrain(config: str, checkpoint: str, picture: str) -> Iterator[tuple[str, Callable]]:
    from mmpretrain import ImageClassificationInferencer, get_model
    from mmpretrain.apis import init_model

    def infer(model: object) -> object:
        if not hasattr(model, 'forward'):
            model = ImageClassificationInferencer(model, checkpoint, 'cpu')
        else:
            model = ImageClassificationInferencer(model)
        return model(picture)[0]['pred_scores'].tolist()

    def from_checkpoint() -> object:
        return Config.fromstring(torch.load(checkpoint, map_location='cpu')['meta']['cfg'], '.py')

    yield 'ImageClassificationInferencer(config file)', lambda: infer(config)
    yield 'ImageClassificationInferencer(Config)', lambda: infer(Config.fromfile(config))
    yield 'ImageClassificationInferencer(meta.cfg)', lambda: infer(from_checkpoint())
    yield 'get_model(config file)', lambda: infer(get_model(config, checkpoint, device='cpu'))
    yield 'get_model(Config)', lambda: infer(get_model(Config.fromfile(config), checkpoint, device='cpu'))
    yield 'init_model(config file)', lambda: infer(init_model(config, checkpoint, device='cpu'))


_WAYS = dict(mmdet=_mmdet, mmseg=_mmseg, mmpretrain=_mmpretrain)


def _open(entry: dict, way: str, run: Callable) -> None:
    result = dict(library=entry['library'], kind=entry['kind'], way=way)
    assert 'mmgroupnet' not in sys.modules
    try:
        with contextlib.redirect_stdout(sys.stderr):
            result['prediction'] = run()
    except Exception as error:
        result['error'] = f'{type(error).__name__}: {error}'
    print(json.dumps(result), flush=True)


def main() -> None:
    warnings.simplefilter('ignore')
    with open(sys.argv[1]) as file:
        files = json.load(file)
    for library in dict.fromkeys(entry['library'] for entry in files):
        # mmengine imports these modules for every model; here they are imported once for all processes.
        import_module(f'{library}.utils').register_all_modules(init_default_scope=False)
    for entry in files:
        for way, run in _WAYS[entry['library']](entry['config'], entry['checkpoint'], entry['picture']):
            child = os.fork()
            if child == 0:
                _open(entry, way, run)
                os._exit(0)
            os.waitpid(child, 0)


if __name__ == '__main__':
    main()
