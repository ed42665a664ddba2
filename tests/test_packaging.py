import ctypes
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = (
    '.ci',
    'mmgroupnet',
    'csrc',
    'configs',
    'tools',
    'requirements',
    'setup.py',
    'pyproject.toml',
    'MANIFEST.in',
    'README.md',
    'LICENSE',
    'model-index.yml',
)


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    """A copy of the files that a package is built from, so that building does not change the real checkout."""
    copy = tmp_path_factory.mktemp('packaging') / 'checkout'
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns('__pycache__', '.mim', '*.so'))
        else:
            shutil.copy2(ROOT / name, copy / name)
    # setup.py must not import torch: this file makes such an import fail.
    (copy / 'torch.py').write_text("raise ImportError('setup.py imports torch')")
    return copy


@pytest.fixture(scope='module')
def quick_compiler(tmp_path_factory):
    """Environment variables with which a build compiles the kernels without optimisation, which takes most of the
    time."""
    if not shutil.which('g++'):
        return {}
    compiler = tmp_path_factory.mktemp('compiler') / 'compiler'
    compiler.write_text('#!/bin/sh\nexec g++ "$@" -O0\n')
    compiler.chmod(0o755)
    return dict(CC=str(compiler), CXX=str(compiler))


@pytest.fixture(scope='module')
def wheel(checkout, quick_compiler, tmp_path_factory):
    return build_wheel(checkout, tmp_path_factory.mktemp('wheel'), **quick_compiler)


def build_wheel(source, folder, **environ):
    pip('wheel', '--no-deps', '--no-build-isolation', '--wheel-dir', folder, source, **environ)
    return next(folder.glob('mmgroupnet-*.whl'))


def pip(*args, **environ):
    subprocess.run(
        [sys.executable, '-m', 'pip', '--disable-pip-version-check', *map(str, args)],
        check=True,
        env={**os.environ, **environ},
    )


def names_in(wheel):
    return set(zipfile.ZipFile(wheel).namelist())


def files(folder, ending=''):
    return {str(path.relative_to(folder)) for path in folder.rglob(f'*{ending}')}


def test_a_wheel_carries_the_package_and_what_mim_looks_for(checkout, wheel):
    assert wheel.name.startswith('mmgroupnet-') and '-py3-none-' in wheel.name
    names = names_in(wheel)
    assert {f'mmgroupnet/{name}' for name in files(checkout / 'mmgroupnet', '.py')} <= names
    assert {f'mmgroupnet/.mim/configs/{name}' for name in files(checkout / 'configs', '.py')} <= names
    assert {f'mmgroupnet/.mim/tools/{name}' for name in files(checkout / 'tools', '.py')} <= names
    assert {f'mmgroupnet/.mim/tools/{name}' for name in files(checkout / 'tools', '.sh')} <= names
    assert 'mmgroupnet/.mim/model-index.yml' in names
    dist_info = '-'.join(wheel.name.split('-')[:2]) + '.dist-info'
    assert {name.split('/')[0] for name in names} == {'mmgroupnet', dist_info}


def test_the_wheel_declares_ranges_and_extras(wheel):
    name = next(name for name in names_in(wheel) if name.endswith('/METADATA'))
    metadata = zipfile.ZipFile(wheel).read(name).decode().splitlines()
    assert 'Requires-Dist: torch>=2.7.1' in metadata
    assert 'Requires-Dist: mmdet<4.0.0,>=3.2.0; extra == "mmdet"' in metadata
    assert 'Requires-Dist: mmcv<2.2.0,>=2.0.0rc4; extra == "mim"' in metadata
    extras = {line.removeprefix('Provides-Extra: ') for line in metadata if line.startswith('Provides-Extra')}
    upstream = {'mim', 'mmdet', 'mmseg', 'mmpretrain'}
    assert extras == upstream | {'onnx', 'demo', 'tests', 'lint', 'benchmark', 'all', 'onedl'}
    # The forks have the same modules as upstream's packages, so no extra may install both.
    forks = [line for line in metadata if line.startswith('Requires-Dist: onedl-')]
    assert len(forks) == 4
    assert all(line.endswith('; extra == "onedl"') for line in forks)


def test_a_wheel_from_a_source_archive_is_the_same(checkout, wheel, quick_compiler, tmp_path):
    subprocess.run([sys.executable, 'setup.py', '--quiet', 'sdist', '--dist-dir', tmp_path], cwd=checkout, check=True)
    archive = next(tmp_path.glob('mmgroupnet-*.tar.gz'))
    assert names_in(build_wheel(archive, tmp_path, **quick_compiler)) == names_in(wheel)


def test_a_source_archive_carries_what_is_built_and_no_tests(checkout, tmp_path):
    """setuptools adds tests/test_*.py by itself, but these tests cannot run without the folders in tests/."""
    (checkout / 'tests').mkdir()
    (checkout / 'tests/test_orphan.py').touch()
    subprocess.run([sys.executable, 'setup.py', '--quiet', 'sdist', '--dist-dir', tmp_path], cwd=checkout, check=True)
    with tarfile.open(next(tmp_path.glob('mmgroupnet-*.tar.gz'))) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    assert not [name for name in names if 'test_' in name]
    assert {f'csrc/{name}' for name in files(checkout / 'csrc', '.cpp')} <= names
    assert {'LICENSE', 'README.md', 'model-index.yml', 'configs/detection/metafile.yml'} <= names


def test_an_editable_install_links_to_the_checkout(checkout, wheel, quick_compiler, tmp_path):
    pip('install', '--no-deps', '--no-build-isolation', '--target', tmp_path, '--editable', checkout, **quick_compiler)
    for name in ('configs', 'tools', 'model-index.yml'):
        assert (checkout / 'mmgroupnet' / '.mim' / name).resolve() == checkout / name


@pytest.mark.skipif(not shutil.which('g++'), reason='needs g++')
def test_the_wheel_carries_kernels_that_know_neither_python_nor_torch(wheel, tmp_path):
    zipfile.ZipFile(wheel).extract('mmgroupnet/ops/_kernels.so', tmp_path)
    library = ctypes.CDLL(str(tmp_path / 'mmgroupnet/ops/_kernels.so'))
    library.mmg_available_kernels.restype = ctypes.c_char_p
    assert library.mmg_available_kernels().decode().split()[0] == 'portable'
    needed = subprocess.run(['ldd', tmp_path / 'mmgroupnet/ops/_kernels.so'], capture_output=True, text=True).stdout
    assert 'libstdc++' in needed and 'python' not in needed and 'torch' not in needed


def test_without_a_compiler_the_package_is_built_without_kernels(checkout, wheel, tmp_path):
    shutil.copytree(checkout, tmp_path / 'checkout', ignore=shutil.ignore_patterns('build', '*.egg-info'))
    poor = build_wheel(tmp_path / 'checkout', tmp_path, CC='/nonexistent/cc', CXX='/nonexistent/c++')
    assert names_in(wheel) - names_in(poor) <= {'mmgroupnet/ops/_kernels.so'}
    assert 'mmgroupnet/ops/_kernels.so' not in names_in(poor)


def install(wheel, folder):
    """Installs a wheel into a folder; returns a function that runs Python with it, outside the checkout."""
    pip('install', '--no-deps', '--target', folder, wheel)
    environ = {**os.environ, 'PYTHONPATH': str(folder)}
    cwd = folder.parent / 'empty'
    cwd.mkdir()

    def run(*words):
        command = [sys.executable, *map(str, words)]
        return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True)

    return run


def test_an_installed_wheel_has_the_command_and_configs_by_name(wheel, tmp_path):
    run = install(wheel, tmp_path / 'site')
    done = run(tmp_path / 'site/bin/mmgroupnet', '--help')
    assert '  train       train a model\n' in done.stdout and f'{tmp_path}/site/mmgroupnet/.mim/configs' in done.stdout
    done = run('-m', 'mmgroupnet', 'train', 'mmgroupnet::demo/fcos_groupnet_digits.py')
    assert done.stderr.splitlines()[-1].startswith('error: data folder data/digits (train_dataloader) does not exist.')
    assert 'Traceback' not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('g++'), reason='needs g++')
def test_the_digits_demo_without_a_checkout(checkout, tmp_path):
    """Builds a wheel like `make wheels`, installs it, and runs all commands from the data to the .onnx file."""
    subprocess.run([sys.executable, '.ci/build_wheels.py'], cwd=checkout, check=True)
    (wheel,) = (checkout / 'dist').glob('*.whl')
    assert re.fullmatch(r'mmgroupnet-.*-py3-none-manylinux_2_(1[789]|2[0-8])_\w+\.whl', wheel.name)
    run = install(wheel, tmp_path / 'site')
    config, checkpoint = 'mmgroupnet::demo/fcos_groupnet_digits.py', 'work_dirs/fcos_groupnet_digits/epoch_1.pth'
    for words, end in (
        (
            ['digits', '--num-train', '8', '--num-val', '2'],
            'digits: 8 training and 2 validation images are in data/digits',
        ),
        (['train', config, '--cfg-options', 'train_cfg.max_epochs=1'], ''),
        (['test', config, checkpoint], ''),
        (['pack', config, checkpoint, '--out', 'packed.pth'], 'packed.pth: 1,618,'),
        (['test', config, 'packed.pth'], ''),
        (['export', config, checkpoint, '--out', 'model.onnx'], 'exported in '),
    ):
        done = run('-m', 'mmgroupnet', *words)
        assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith(end), done.stdout + done.stderr
