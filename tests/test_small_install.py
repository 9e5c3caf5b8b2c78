"""What a small install is enough for, in environments that hold nothing else.

They are folders of links to the packages that are named and to all that those require.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
NETWORKS = PROJECT["dependencies"]


def _names(requirements: list[str]) -> Iterator[str]:
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name


def _closure(requirements: list[str]) -> set[str]:
    """Names of these packages and of all that they require, as far as they are installed."""
    found: set[str] = set()
    waiting = list(_names(requirements))
    while waiting:
        name = waiting.pop()
        try:
            package = distribution(name)
        except PackageNotFoundError:  # of another platform, or built into another package
            continue
        if package.name not in found:
            found.add(package.name)
            waiting += _names(package.requires or [])
    return found


def _environment(folder: Path, requirements: list[str]) -> None:
    """Links in `folder` to this checkout's packages and to the installed ones that are required."""
    for name in ("ran", "ran_kernels"):
        (folder / name).symlink_to(ROOT / name)
    for name in (*_closure(requirements), "ran-attention"):
        package = distribution(name)
        for top in {file.parts[0] for file in package.files or [] if file.parts[0] != ".."}:
            where = Path(str(package.locate_file(top)))
            if where.exists() and not (folder / top).exists():
                (folder / top).symlink_to(where)


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Neither site-packages nor what the caller's environment adds to the path.
    start = f"import sys; sys.path[0:0] = [{str(folder)!r}]"
    code = (
        f"import runpy; sys.argv = {[*arguments]!r}\n"
        "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    )
    if arguments[0] == "-c":
        code = arguments[1]
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"{start}\n{code}"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )


def test_the_operators_need_torch_alone(tmp_path: Path) -> None:
    _environment(tmp_path, ["torch"])
    assert not any((tmp_path / name).exists() for name in ("timm", "torchvision", "lightning"))
    done = _run(
        tmp_path,
        "-c",
        "import torch, ran_kernels\n"
        "from ran_kernels.nn import CBAM\n"
        "x = torch.randn(2, 16, 5, 5, requires_grad=True)\n"
        "CBAM(16, 4)(ran_kernels.attention_gate(x, x), x, relu=True).sum().backward()\n"
        "print(x.grad.shape, ran_kernels.fuse(torch.nn.Sequential(CBAM(16, 4)), norms=True))\n"
        "print(sorted({'timm', 'numpy', 'torchvision'} & set(sys.modules)))",
    )
    assert done.returncode == 0, done.stderr
    assert "torch.Size([2, 16, 5, 5])" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    _environment(folder, NETWORKS)
    for name in ("lightning", "sklearn", "matplotlib", "torchmetrics", "tensorboard"):
        assert not (folder / name).exists(), name
    return folder


def test_networks_need_no_extra(networks: Path) -> None:
    done = _run(
        networks,
        "-c",
        "import ran, torch\n"
        "model = ran.attention56_cifar(num_classes=3).eval()\n"
        "images = torch.randn(1, 3, 32, 32)\n"
        "ran.save_pretrained(model, 'saved')\n"
        "again = ran.from_pretrained('saved').eval()\n"
        "assert torch.equal(model(images), again(images))\n"
        "print(ran.deploy(again)(images).shape, ran.__version__)",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == PROJECT["version"]


def test_what_needs_the_extra_says_so_in_one_line(networks: Path) -> None:
    done = _run(
        networks,
        "-c",
        "import ran\n"
        "for use in (lambda: ran.train('digits'), lambda: ran.evaluate, lambda: ran.plot_masks):\n"
        "    try: use()\n"
        "    except ImportError as error: print(error)",
    )
    assert done.returncode == 0, done.stderr
    how = "to be installed: pip install 'ran-attention[train]'"
    lines = done.stdout.splitlines()
    named = [line.partition(":")[0] for line in lines]
    assert named == ["ran.train", "ran.evaluate", "ran.plot_masks"]
    assert all(": expected " in line and line.endswith(how) for line in lines)
    command = _run(networks, "ran", "models")
    assert (command.returncode, command.stdout) == (2, "")
    assert command.stderr.startswith("ran: expected ")
    assert command.stderr.endswith(f"{how}\n")


def test_the_extra_has_what_the_message_promises() -> None:
    from ran.extras import TRAIN

    given = {Requirement(text).name for text in PROJECT["optional-dependencies"]["train"]}
    assert {"scikit-learn" if name == "sklearn" else name for name in TRAIN} <= given
