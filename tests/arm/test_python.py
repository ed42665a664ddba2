import numpy as np
import pytest

from tests.arm import machine

pytestmark = pytest.mark.arm


@pytest.mark.parametrize('cpu', machine.CORES)
def test_onnxruntime_on_each_core(cpu, tmp_path):
    """The model is one addition; onnxruntime must not use instructions that the core lacks."""
    onnx = pytest.importorskip('onnx')
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 3]) for name in 'xyz']
    graph = onnx.helper.make_graph([onnx.helper.make_node('Add', ['x', 'y'], ['z'])], 'sum', values[:2], values[2:])
    opsets = [onnx.helper.make_opsetid('', 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / 'sum.onnx')
    code = (
        'import platform, sys; import numpy as np; import onnxruntime; '
        'x = np.arange(6, dtype=np.float32).reshape(2, 3); '
        'session = onnxruntime.InferenceSession("sum.onnx"); '
        'np.save("sum.npy", session.run(None, dict(x=x, y=x))[0]); print(platform.machine())'
    )
    done = machine.python(cpu).run('-c', code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ['aarch64']
    assert np.load(tmp_path / 'sum.npy').tolist() == [[0, 2, 4], [6, 8, 10]]


def test_modules_of_paths_come_first(tmp_path):
    (tmp_path / 'numpy.py').write_text('print("not numpy")')
    done = machine.python('cortex-a53').run('-c', 'import numpy', paths=[tmp_path])
    assert done.stdout.split() == ['not', 'numpy']
