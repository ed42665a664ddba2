import importlib.util
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / 'tools' / 'misc' / 'build_mmcv.py'


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location('build_mmcv', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fail(*args, **kwargs):
    raise AssertionError(f'called with {args}')


def make_executable(path, text='#!/bin/sh\n'):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.parametrize(
    'version, cuda, cuda_ops, expected',
    [
        ('2.14.1+cu130', '13.0', False, 'torch2.14.1-cu130-cpu_ops'),
        ('2.14.1+cu130', '13.0', True, 'torch2.14.1-cu130-cuda_ops'),
        ('2.14.1+cpu', None, False, 'torch2.14.1-cpu-cpu_ops'),
        ('2.14.1', None, False, 'torch2.14.1-cpu-cpu_ops'),
    ],
)
def test_the_cache_name_carries_what_the_ops_depend_on(script, monkeypatch, version, cuda, cuda_ops, expected):
    monkeypatch.setattr(script.platform, 'machine', lambda: 'x86_64')
    monkeypatch.setattr(script.sys, 'version_info', (3, 12, 1))
    torch = script.Torch(version, cuda, has_gpu=False)
    assert script.cache_name(script.UPSTREAM, torch, cuda_ops) == f'mmcv2.1.0-cp312-x86_64-{expected}'
    assert script.cache_name(script.ONEDL, torch, cuda_ops) == f'onedl-mmcv2.3.6-cp312-x86_64-{expected}'


def test_the_cache_follows_xdg(script, monkeypatch):
    monkeypatch.setenv('HOME', '/home/someone')
    assert script.cache_folder({'XDG_CACHE_HOME': '/var/cache'}) == Path('/var/cache/mmgroupnet')
    assert script.cache_folder({'XDG_CACHE_HOME': ''}) == Path('/home/someone/.cache/mmgroupnet')
    assert script.cache_folder({}) == Path('/home/someone/.cache/mmgroupnet')


def test_the_standard_is_raised_where_mmcv_names_an_old_one(script):
    assert script.raise_standard("['-std=c++14'] ['-std=c++17'] ['/std:c++17'] ['-std=c++20']") == (
        "['-std=c++20'] ['-std=c++20'] ['/std:c++17'] ['-std=c++20']"
    )


@pytest.mark.parametrize('cores, gib, expected', [(2, 24, 2), (64, 24, 12), (16, 7.9, 3), (8, 1, 1)])
def test_jobs_fit_cores_and_memory(script, cores, gib, expected):
    assert script.jobs(cores, gib) == expected


def test_nothing_happens_where_the_ops_can_be_imported(script, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv('FORCE_CUDA', raising=False)
    monkeypatch.setattr(script, 'import_error', lambda needs_cuda: None)
    monkeypatch.setattr(script, 'build', fail)
    monkeypatch.setattr(script.subprocess, 'run', fail)
    script.install_mmcv(script.UPSTREAM, tmp_path)
    assert 'already' in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_ops_of_this_environment_are_recognised(script):
    assert script.import_error() is None


def test_the_import_error_is_one_line(script, monkeypatch, tmp_path):
    broken = tmp_path / 'mmcv' / 'ops'
    broken.mkdir(parents=True)
    (tmp_path / 'mmcv' / '__init__.py').touch()
    (broken / '__init__.py').write_text("raise ImportError('_ext.so: undefined symbol')")
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    assert script.import_error() == 'ImportError: _ext.so: undefined symbol'


def test_a_cached_wheel_is_installed_without_compiling(script, monkeypatch, tmp_path):
    torch = script.Torch('2.14.1+cu130', '13.0', has_gpu=False)
    wheel = tmp_path / script.cache_name(script.UPSTREAM, torch, False) / 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl'
    wheel.parent.mkdir()
    wheel.touch()
    commands = []
    errors = iter(["ModuleNotFoundError: No module named 'mmcv'", None])
    monkeypatch.delenv('FORCE_CUDA', raising=False)
    monkeypatch.setattr(script, 'import_error', lambda needs_cuda: next(errors))
    monkeypatch.setattr(script, 'describe_torch', lambda: torch)
    monkeypatch.setattr(script, 'build', fail)
    monkeypatch.setattr(script.subprocess, 'run', lambda command, check: commands.append(command))
    script.install_mmcv(script.UPSTREAM, tmp_path)
    assert len(commands) == 1
    assert commands[0][:4] == [sys.executable, '-m', 'pip', 'install']
    assert '--no-deps' in commands[0] and commands[0][-1] == str(wheel)


@pytest.mark.parametrize(('release', 'mmengine'), [('UPSTREAM', 'mmengine'), ('ONEDL', 'onedl-mmengine')])
def test_what_mmcv_imports_is_asked_for_before_it_is_compiled(script, monkeypatch, tmp_path, release, mmengine):
    monkeypatch.delenv('FORCE_CUDA', raising=False)
    monkeypatch.setattr(script, 'import_error', lambda needs_cuda: 'ModuleNotFoundError')
    monkeypatch.setattr(script, 'describe_torch', lambda: script.Torch('2.14.1', None, False))
    monkeypatch.setattr(script, 'build', fail)
    monkeypatch.setattr(script.importlib.util, 'find_spec', lambda name: None if name in ('cv2', 'mmengine') else name)
    with pytest.raises(
        SystemExit, match=f"^mmcv imports cv2, mmengine, which is missing: .* -m pip install {mmengine} 'op"
    ):
        script.install_mmcv(getattr(script, release), tmp_path)


def test_a_cached_wheel_that_does_not_work_is_named(script, monkeypatch, tmp_path):
    wheel = tmp_path / 'mmcv-2.1.0.whl'
    monkeypatch.delenv('FORCE_CUDA', raising=False)
    monkeypatch.setattr(script, 'import_error', lambda needs_cuda: 'ImportError: undefined symbol')
    monkeypatch.setattr(script, 'describe_torch', lambda: script.Torch('2.14.1', None, False))
    monkeypatch.setattr(script, 'cached_wheel', lambda release, folder: wheel)
    monkeypatch.setattr(script.subprocess, 'run', lambda command, check: None)
    with pytest.raises(SystemExit, match=rf'{wheel} cannot be imported \(ImportError: undefined symbol\): delete'):
        script.install_mmcv(script.UPSTREAM, tmp_path)


class TestMissingTools:
    def test_a_missing_compiler_gives_one_line_and_loses_no_work(self, tmp_path):
        environ = {'PATH': str(tmp_path), 'XDG_CACHE_HOME': str(tmp_path)}
        command = [sys.executable, str(SCRIPT), '--preflight']
        result = subprocess.run(command, env=environ, capture_output=True, text=True)
        assert result.returncode == 1
        assert result.stdout == '' and len(result.stderr.splitlines()) == 1
        assert 'a C++ compiler' in result.stderr and 'apt-get install g++' in result.stderr

    def test_a_cached_wheel_needs_no_compiler(self, tmp_path):
        tag = f'cp{sys.version_info[0]}{sys.version_info[1]}'
        wheel = tmp_path / 'mmgroupnet' / f'mmcv2.1.0-{tag}-x86_64-torch2.14.1-cpu-cpu_ops' / 'mmcv-2.1.0.whl'
        wheel.parent.mkdir(parents=True)
        wheel.touch()
        environ = {'PATH': '/nowhere', 'XDG_CACHE_HOME': str(tmp_path)}
        result = subprocess.run(
            [sys.executable, str(SCRIPT), '--preflight'], env=environ, capture_output=True, text=True
        )
        assert (result.returncode, result.stdout, result.stderr) == (0, '', '')

    def test_everything_that_is_missing_is_named_at_once(self, script, monkeypatch, tmp_path):
        monkeypatch.setattr(script.sys, 'version_info', (3, 12, 1))
        monkeypatch.setattr(script, 'find_compiler', lambda environ: None)
        monkeypatch.setattr(script.importlib.util, 'find_spec', lambda name: None)
        monkeypatch.setattr(script.sysconfig, 'get_path', lambda name: str(tmp_path))
        with pytest.raises(SystemExit, match=r'apt-get install python3.12-venv g\+\+ python3.12-dev$'):
            script.preflight(script.UPSTREAM, tmp_path)

    def test_another_python_is_refused_with_its_version(self, script, monkeypatch, tmp_path):
        monkeypatch.setattr(script.sys, 'version_info', (3, 13, 0))
        monkeypatch.setattr(script.platform, 'python_version', lambda: '3.13.0')
        with pytest.raises(SystemExit, match=r'is Python 3\.13\.0, .* for 3\.11 or 3\.12'):
            script.preflight(script.UPSTREAM, tmp_path)

    @pytest.mark.parametrize(
        'present, cxx, expected',
        [
            (['c++', 'g++'], None, 'c++'),
            (['g++'], None, 'g++'),
            ([], None, None),
            (['g++', 'clang++'], 'clang++ -v', 'clang++ -v'),
            (['g++'], 'clang++', None),
        ],
    )
    def test_the_compiler_is_cxx_or_the_first_found(self, script, tmp_path, present, cxx, expected):
        for name in present:
            make_executable(tmp_path / name)
        assert script.find_compiler({'PATH': str(tmp_path), 'CXX': cxx or ''}) == expected


class TestCudaOps:
    @pytest.fixture
    def nvcc(self, tmp_path, monkeypatch):
        """A function that creates an nvcc of some version in ``CUDA_HOME``."""

        def put(version):
            make_executable(tmp_path / 'bin' / 'nvcc', f'#!/bin/sh\necho "release {version}, V{version}.1"\n')

        monkeypatch.setenv('CUDA_HOME', str(tmp_path))
        return put

    @pytest.mark.parametrize(
        'cuda, has_gpu, version, expected',
        [
            ('13.0', True, '13.2', True),
            ('13.0', False, '13.0', False),
            (None, False, '13.0', False),
            ('13.0', True, '12.8', False),
            ('13.0', True, None, False),
        ],
    )
    def test_they_need_torch_nvcc_and_a_gpu(self, script, nvcc, cuda, has_gpu, version, expected):
        if version:
            nvcc(version)
        assert script.wants_cuda(script.Torch('2.14.1', cuda, has_gpu), forced=False) is expected

    def test_they_can_be_forced_without_a_gpu(self, script, nvcc):
        nvcc('13.0')
        assert script.wants_cuda(script.Torch('2.14.1', '13.0', has_gpu=False), forced=True)

    @pytest.mark.parametrize(
        'cuda, version, reason',
        [
            (None, '13.0', 'torch 2.14.1 is built without CUDA'),
            ('13.0', None, 'nvcc is not found'),
            ('13.0', '12.8', 'nvcc is of CUDA 12.8, torch of CUDA 13.0'),
        ],
    )
    def test_forcing_what_cannot_be_says_why(self, script, nvcc, cuda, version, reason):
        if version:
            nvcc(version)
        with pytest.raises(SystemExit, match=f'FORCE_CUDA=1 .* but {reason}'):
            script.wants_cuda(script.Torch('2.14.1', cuda, has_gpu=False), forced=True)


class TestBuild:
    @pytest.fixture
    def commands(self, script, monkeypatch):
        """Replaces pip and mmcv's setup.py by a function that creates the source archive and the wheel. Returns the
        list of commands."""
        commands = []

        def run_logged(command, log, cwd, env=None, progress=None):
            commands.append(command)
            if 'download' in command:
                name = command[-1].replace('==', '-').replace('onedl-', 'onedl_')
                (cwd / name).mkdir()
                (cwd / name / 'setup.py').write_text("cxx = '-std=c++17'")
                subprocess.run(['tar', '-czf', f'{name}.tar.gz', name], cwd=cwd, check=True)
            else:
                assert (cwd / 'setup.py').read_text() == "cxx = '-std=c++20'"
                assert env['FORCE_CUDA'] == '0' and env['CUDA_VISIBLE_DEVICES'] == ''
                (cwd / 'dist').mkdir()
                (cwd / 'dist' / f'{cwd.name}-cp311-cp311-linux_x86_64.whl').write_text('a wheel')

        monkeypatch.setattr(script, 'run_logged', run_logged)
        monkeypatch.setattr(script, 'precompile_header', lambda folder, log, environ: None)
        return commands

    @pytest.mark.parametrize(
        'name, wheel_name, requirement',
        [
            ('UPSTREAM', 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl', 'mmcv==2.1.0'),
            ('ONEDL', 'onedl_mmcv-2.3.6-cp311-cp311-linux_x86_64.whl', 'onedl-mmcv==2.3.6'),
        ],
    )
    def test_it_keeps_the_wheel_and_nothing_else(self, script, commands, tmp_path, name, wheel_name, requirement):
        release, folder = getattr(script, name), tmp_path / 'cache' / 'name'
        wheel = script.build(release, folder, cuda=False)
        assert wheel == script.cached_wheel(release, folder) == folder / wheel_name
        assert wheel.read_text() == 'a wheel'
        assert list(folder.iterdir()) == [wheel]
        assert [command[-1] for command in commands] == [requirement, 'bdist_wheel']

    @pytest.mark.slow  # parses torch's header, which takes half a minute
    @pytest.mark.skipif(not shutil.which('g++'), reason='needs g++')
    def test_gcc_takes_the_precompiled_header(self, script, monkeypatch, tmp_path):
        monkeypatch.setenv('CXX', 'g++')
        environ = script.build_environment(cuda=False)
        with open(tmp_path / 'build.log', 'w') as log:
            script.precompile_header(tmp_path, log, environ)
        source = tmp_path / 'empty.cpp'
        source.touch()
        setup = (
            'from setuptools import setup; from torch.utils.cpp_extension import BuildExtension, CppExtension\n'
            "setup(name='empty', ext_modules=[CppExtension('empty', ['empty.cpp'], extra_compile_args=["
            "'-std=c++20', '-H'])], cmdclass={'build_ext': BuildExtension})"
        )
        result = subprocess.run(
            [sys.executable, '-c', setup, 'build_ext'],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            check=True,
        )
        # With -H, gcc prints an exclamation mark in front of a precompiled header that it uses, and an x in front of an
        # unsuitable one.
        assert f'! {tmp_path}/torch_types.hpp.gch' in result.stdout + result.stderr

    def test_other_compilers_do_without_a_precompiled_header(self, script, monkeypatch, tmp_path):
        make_executable(tmp_path / 'clang++', '#!/bin/sh\necho clang version 19.1\n')
        environ = {'CXX': str(tmp_path / 'clang++'), 'CFLAGS': '-g0'}
        monkeypatch.setattr(script, 'run_logged', fail)
        script.precompile_header(tmp_path, None, environ)
        assert environ['CFLAGS'] == '-g0'

    def test_a_failure_shows_the_end_of_the_log_and_where_it_is(self, script, tmp_path):
        path = tmp_path / 'build.log'
        code = "for i in range(50): print('line', i)\nraise SystemExit(3)"
        with open(path, 'w') as log, pytest.raises(SystemExit) as error:
            script.run_logged([sys.executable, '-c', code], log, cwd=tmp_path)
        message = str(error.value)
        assert 'line 49' in message and 'line 30' in message and 'line 29' not in message
        assert 'exit status 3' in message and message.endswith(str(path))
        assert 'line 0' in path.read_text()

    def test_an_interruption_ends_the_compilers_too(self, script, monkeypatch, tmp_path):
        pid = tmp_path / 'pid'

        def interrupt(seconds):
            if pid.exists() and pid.read_text().strip():
                raise KeyboardInterrupt

        def is_running():
            stat = Path('/proc', pid.read_text().strip(), 'stat')
            return stat.exists() and stat.read_text().split()[2] != 'Z'

        monkeypatch.setattr(script.time, 'sleep', interrupt)
        with open(tmp_path / 'build.log', 'w') as log, pytest.raises(KeyboardInterrupt):
            script.run_logged(['sh', '-c', f'sleep 60 & echo $! > {pid}; wait'], log, cwd=tmp_path)
        monkeypatch.undo()
        deadline = time.monotonic() + 5
        while is_running() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_running()

    def test_progress_counts_compiled_files(self, script, monkeypatch, tmp_path, capsys):
        ops = tmp_path / 'mmcv' / 'ops' / 'csrc' / 'pytorch'
        for name in ('nms.cpp', 'roi_align.cpp', 'cpu/nms.cpp', 'cuda/nms_cuda.cu'):
            (ops / name).parent.mkdir(parents=True, exist_ok=True)
            (ops / name).touch()
        (tmp_path / 'build').mkdir()
        (tmp_path / 'build' / 'nms.o').touch()
        clock = [100.0]
        monkeypatch.setattr(script.time, 'monotonic', lambda: clock[0])
        progress = script.Progress(tmp_path, cuda=False)
        progress.update()
        clock[0] += 125
        progress.update()
        assert capsys.readouterr().out == 'mmcv ops 1/3, 2 min 05 s\n'
        assert script.Progress(tmp_path, cuda=True).total == 4
