"""The extension that was built, and what setup.py decides and says."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
import torch

from ran_kernels import extension

ROOT = Path(__file__).resolve().parent.parent
CUDA_SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))

needs_cuda_build = pytest.mark.skipif(
    not extension.has_cuda(), reason="the extension here was built without CUDA kernels"
)


def copy_of_the_sources(folder: Path) -> None:
    """The package in ``folder``, without its compiled file."""
    without = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "ran_kernels", folder, ignore=without, dirs_exist_ok=True)


def test_the_extension_is_there_and_reports_its_build() -> None:
    assert extension.path is not None, extension.why_not
    info = extension.build_info()
    assert info["torch_target"] == "2.11"
    assert re.search(r"\d+\.\d+", info["compiler"])
    assert info["cuda_reason"]


def test_cuda_is_built_wherever_torch_and_a_toolkit_allow() -> None:
    info = extension.build_info()
    if torch.version.cuda is None:
        assert info["cuda"] is None
        assert "not a CUDA build" in info["cuda_reason"]
    elif info["cuda"] is None:
        assert os.environ.get("RAN_CUDA") == "0" or "toolkit" in info["cuda_reason"]
    else:
        assert info["gpu_targets"]


def needed(library: Path) -> set[str]:
    """The libraries that one names."""
    run = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True)
    return set(re.findall(r"\(NEEDED\).*\[(.+)\]", run.stdout))


@pytest.mark.skipif(not shutil.which("readelf"), reason="binutils are not installed")
def test_the_libraries_need_no_python() -> None:
    core, schemas = extension.path, extension.library_path()
    assert core is not None
    for library in (core, schemas):
        command = ["nm", "--dynamic", "--undefined-only", str(library)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "aoti_torch_library_init" in run.stdout  # of the stable ABI
        assert not re.findall(r" _?Py\w+| .*pybind11.*", run.stdout)
    torch_and_cuda = {name for name in needed(core) if re.match("libtorch|libc10|libcud", name)}
    cuda = {"libtorch_cuda.so", "libcudart.so"} if extension.has_cuda() else set()
    assert {name.partition(".so")[0] + ".so" for name in torch_and_cuda} == {
        "libtorch_cpu.so"
    } | cuda
    assert "libran_kernels.so" in needed(schemas)


def test_the_module_reports_the_same_build() -> None:
    module = pytest.importorskip("ran_kernels._C", reason="a portable wheel has no module")
    assert module.build_info() == extension.build_info()


@needs_cuda_build
def test_every_cuda_kernel_is_reported_and_none_spills() -> None:
    info = extension.build_info()
    sources = "\n".join(path.read_text() for path in (ROOT / "csrc" / "cuda").glob("*.cu*"))
    declared = set(
        re.findall(r"__global__ void __launch_bounds__\((?:[^()]|\([^()]*\))*\)\s+(\w+)\(", sources)
    )
    assert declared
    reported = {name.split("<")[0] for name in info["kernels"]}
    assert reported == declared
    targets = {target for target in info["gpu_targets"] if target.startswith("sm_")}
    for kernel, on in info["kernels"].items():
        assert set(on) == targets, kernel
        for target, used in on.items():
            assert 0 < used["registers"] <= 255
            assert used["local_bytes"] == 0, (kernel, target)
            # Partial means are merged in float64, whose division is a call.
            wide = "double" in kernel or kernel.startswith("finish_batch_kernel")
            if target == "sm_90" and not wide:
                # Spilled registers are on the stack; so are float64's calls of exp and division.
                assert used["stack_bytes"] == 0, kernel


@needs_cuda_build
def test_the_binary_holds_code_for_the_targets() -> None:
    spec = importlib.util.find_spec("triton")
    assert spec is not None
    assert spec.origin is not None
    cuobjdump = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    library = str(extension.path)
    run = subprocess.run(
        [cuobjdump, "-lelf", "-lptx", library], capture_output=True, text=True, check=True
    )
    for target in extension.build_info()["gpu_targets"]:
        machine = target.replace("compute_", "sm_")
        suffix = "ptx" if target.startswith("compute_") else "cubin"
        # One image a source file and target.
        images = re.findall(rf"\.\d+\.{machine}\.{suffix}", run.stdout)
        assert len(images) == len(CUDA_SOURCES), (target, run.stdout)


def setup_says(
    *arguments: str, python: Path | str = sys.executable, **environment: str
) -> subprocess.CompletedProcess[str]:
    if int(importlib.metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("setuptools before 77 knows another form of the licence's field")
    names = (
        *("RAN_CUDA", "RAN_NO_EXTENSION", "RAN_PORTABLE_WHEEL"),
        *("CUDA_HOME", "CUDA_PATH", "MAX_JOBS"),
        "TORCH_CUDA_ARCH_LIST",
    )
    inherited = {k: v for k, v in os.environ.items() if k not in names}
    return subprocess.run(
        [python, "setup.py", *(arguments or ("--name",))],
        cwd=ROOT,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("environment", "code", "said"),
    [
        ({"RAN_CUDA": "yes"}, 1, "RAN_CUDA: expected 0 or 1, got 'yes'"),
        ({"RAN_PORTABLE_WHEEL": "2"}, 1, "RAN_PORTABLE_WHEEL: expected 0 or 1, got '2'"),
        ({"RAN_CUDA": "0"}, 0, "CUDA kernels left out: RAN_CUDA=0"),
        ({"RAN_CUDA": "1", "CUDA_HOME": "/nonexistent"}, 1, "RAN_CUDA=1 asks for CUDA kernels: "),
        ({"CUDA_HOME": "/nonexistent"}, 0, "CUDA kernels left out: "),
        ({"CUDA_PATH": "/nonexistent"}, 0, "CUDA kernels left out: "),
        ({"RAN_NO_EXTENSION": "1"}, 0, "no compiled extension: RAN_NO_EXTENSION=1"),
    ],
    ids=[
        "not-a-switch",
        "no-wheel",
        "without",
        "required",
        "no-toolkit",
        "no-toolkit-path",
        "no-extension",
    ],
)
def test_setup_says_what_it_builds_and_why(
    environment: dict[str, str], code: int, said: str
) -> None:
    run = setup_says(**environment)
    assert run.returncode == code, run.stderr
    assert said in run.stderr


def toolkit(folder: Path, *known: int, version: str | None = torch.version.cuda) -> Path:
    """A CUDA toolkit as far as setup.py asks it: by default for this torch; its GPUs' numbers."""
    (folder / "include").mkdir(parents=True)
    (folder / "include" / "cuda_runtime.h").touch()
    (folder / "bin").mkdir()
    nvcc = folder / "bin" / "nvcc"
    listed = "\n".join(f"compute_{number}" for number in known)
    nvcc.write_text(
        f'#!/bin/sh\ncase $1 in\n--list-gpu-arch) echo "{listed}" ;;\n'
        f"*) echo Cuda compilation tools, release {version} ;;\nesac\n"
    )
    nvcc.chmod(0o755)
    return folder


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is not a CUDA build")
@pytest.mark.parametrize(
    ("known", "given", "expected"),
    [
        ((75, 80, 86, 90, 100, 110, 120, 121), "", "8.0;9.0;10.0+PTX;12.0"),
        ((50, 80, 89, 90), "", "8.0;9.0+PTX"),
        ((80, 90, 103, 121), "", "8.0;9.0+PTX"),  # not the GPUs whose numbers begin likewise
        ((80, 90, 100, 120), "9.0", "9.0"),
    ],
    ids=["all", "before-blackwell", "neighbours", "given"],
)
def test_the_default_names_every_chip_that_the_toolkit_knows(
    known: tuple[int, ...], given: str, expected: str, tmp_path: Path
) -> None:
    home = toolkit(tmp_path, *known)
    run = setup_says(RAN_CUDA="1", CUDA_HOME=str(home), TORCH_CUDA_ARCH_LIST=given)
    assert run.returncode == 0, run.stderr
    assert run.stderr.rstrip().endswith(f", for {expected}")


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is not a CUDA build")
@pytest.mark.parametrize(
    ("version", "cuda", "said"),
    [
        ("12.6", "'12.8'", "CUDA 12.6 in {home} (from CUDA_HOME), for 8.0;9.0+PTX"),
        ("13.1", "'12.8'", "CUDA kernels left out: toolkit 13.1 in {home}, torch is for 12.8"),
        ("12.6", "None", "CUDA kernels left out: torch 2.11.0+here is not a CUDA build"),
    ],
    ids=["for-the-installed", "for-another", "without"],
)
def test_in_build_isolation_the_installed_torch_decides(
    version: str, cuda: str, said: str, tmp_path: Path
) -> None:
    # As pip arranges it: the environment's Python, which finds the build's packages first.
    venv.create(tmp_path / "environment", symlinks=True)
    python = tmp_path / "environment" / "bin" / "python"
    command = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.check_output(command, text=True).strip())
    (site / "torch").mkdir()
    text = f"__version__ = '2.11.0+here'\ncuda: Optional[str] = {cuda}\n"
    (site / "torch" / "version.py").write_text(text)
    home = toolkit(tmp_path / "toolkit", 80, 90, version=version)
    build = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    run = setup_says(python=python, CUDA_HOME=str(home), PYTHONPATH=build)
    assert run.returncode == 0, run.stderr
    assert said.format(home=home) in run.stderr


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is not a CUDA build")
def test_a_toolkit_that_knows_no_chip_is_an_error(tmp_path: Path) -> None:
    run = setup_says(RAN_CUDA="1", CUDA_HOME=str(toolkit(tmp_path, 50, 70)))
    assert run.returncode == 1
    assert "nvcc knows none of 8.0, 9.0, 10.0, 12.0: " in run.stderr


@pytest.fixture
def wrapper_on_the_path(tmp_path: Path) -> Path:
    """A folder with an `nvcc` that is a script, as compiler caches and distributions install it."""
    wrapper = tmp_path / "bin" / "nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text("#!/bin/sh\nexit 1\n")
    wrapper.chmod(0o755)
    return wrapper.parent


def test_a_wrapper_on_the_path_does_not_mislead_it(wrapper_on_the_path: Path) -> None:
    path = f"{wrapper_on_the_path}{os.pathsep}{os.environ['PATH']}"
    run = setup_says(PATH=path)
    assert run.returncode == 0, run.stderr
    chosen = re.search(r"CUDA [\d.]+ in (\S+)", run.stderr)
    if chosen is None:
        assert "CUDA kernels left out" in run.stderr
        return
    home = Path(chosen.group(1))
    assert home != wrapper_on_the_path.parent
    assert (home / "include" / "cuda_runtime.h").is_file()


#: As an editable installation of another checkout leaves its module to find.
EDITABLE = """
import sys, importlib.util as u
class Finder:
    def find_spec(name, path=None, target=None):
        if name == 'ran_kernels._C':
            return u.spec_from_file_location(name, {module!r})
sys.meta_path.insert(0, Finder)
"""
#: As a program does that ran a compiled package before.
LOADED = "import torch; torch.ops.load_library({library!r})\n"


@pytest.mark.parametrize("before", [EDITABLE, LOADED], ids=["editable", "loaded"])
def test_an_extension_of_another_checkout_is_named(before: str, tmp_path: Path) -> None:
    # The sources of one checkout, with the compiled files of another.
    package = tmp_path / "ran_kernels"
    copy_of_the_sources(package)
    compiled = extension.path
    assert compiled is not None
    names = {"module": str(compiled.with_name("_C.so")), "library": str(extension.library_path())}
    program = f"{before.format(**names)}from ran_kernels.__main__ import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    said = f"expected it in {package}: this one is of another checkout or build"
    assert re.search(rf"path +{re.escape(str(compiled))}\n +{re.escape(said)}", run.stdout)
    assert said in run.stderr


def test_the_report_says_where_the_extension_is() -> None:
    from ran_kernels.__main__ import report

    lines = list(report())
    assert f"  {'path':<16}{extension.path}" in lines
    assert not any("another checkout" in line for line in lines)


@pytest.mark.parametrize("command", [["ran_kernels"], ["ran", "info"], ["ran", "models"]], ids=str)
def test_a_reader_that_leaves_is_no_error(command: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        run = subprocess.run(
            [sys.executable, "-m", *command],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)
    assert run.stderr == ""
    assert run.returncode == 1


def test_without_the_extension_everything_still_imports_and_runs(tmp_path: Path) -> None:
    # The package without its compiled file, as RAN_NO_EXTENSION=1 installs it.
    package = tmp_path / "ran_kernels"
    copy_of_the_sources(package)
    # An editable installation would still find the source tree's compiled file.
    program = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)];"
        "import torch, ran_kernels as k; t = torch.randn(2, 3, 4, 4, requires_grad=True);"
        "k.attention_gate(t, t).sum().backward(); print(k.can_run('native', 'attention_gate', t))"
    )
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "not part of this installation" in run.stdout


#: What makes grids: the helper that checks them, and those that hand it a count of their own.
GRIDS = ("grid_of", "blocks_for", "looping_blocks_for", "blocks_sharing", "tiles.blocks", "g")


def test_every_launch_has_its_grid_from_the_helper_that_checks_it() -> None:
    # 2**32 + 5 blocks cut to 32 bits are five, and nothing would say so.
    launched = 0
    for path in (ROOT / "csrc" / "cuda").glob("*.cu*"):
        text = re.sub(r"//[^\n]*", "", path.read_text())
        for grid in re.findall(r"<<<\s*(\w+)", text):
            launched += 1
            makers = re.findall(rf"\bdim3 {grid} = ([\w.]+)\(", text) or [grid]
            for maker in makers:
                assert maker in GRIDS, (path.name, maker)
        if path.name != "kernel.cuh":
            assert not re.search(r"\bdim3\(|dim3 \w+\(\s*static_cast", text), path.name
    assert launched >= 10


@pytest.mark.parametrize(
    ("error", "cuda", "expected"),
    [
        (
            "libtorch_cuda.so: cannot open shared object file: No such file or directory",
            None,
            "built with CUDA kernels, and this torch has no CUDA: .*RAN_CUDA=0",
        ),
        (
            "libcudart.so.13: cannot open shared object file: No such file or directory",
            "12.8",
            r"built for CUDA 13, and this torch is for CUDA 12\.8: .*no-deps$",
        ),
        ("_C.so: undefined symbol: aoti_x", "13.0", "does not load: _C.so: undefined symbol"),
    ],
)
def test_a_build_beside_a_torch_for_another_cuda_says_what_to_do(
    error: str, cuda: str | None, expected: str
) -> None:
    assert re.search(expected, extension.why_it_does_not_load(error, cuda))
