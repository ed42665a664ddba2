"""Script that runs models in a separate process, with only numpy and ONNX Runtime.

    run_models.py LIBRARY INPUTS.npz OUTPUTS.npz THREADS MODEL...

In the files, the inputs of model i are named ``{i}/{name}``, and its output ``{i}``.
"""

import sys

import numpy as np
import onnxruntime


def main(library: str, inputs: str, outputs: str, threads: str, *models: str) -> None:
    given, found = np.load(inputs), {}
    for i, model in enumerate(models):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(threads)
        options.register_custom_ops_library(library)
        session = onnxruntime.InferenceSession(model, options, providers=['CPUExecutionProvider'])
        feeds = {value.name: given[f'{i}/{value.name}'] for value in session.get_inputs()}
        (found[str(i)],) = session.run(None, feeds)
    np.savez(outputs, **found, version=onnxruntime.__version__)


if __name__ == '__main__':
    main(*sys.argv[1:])
