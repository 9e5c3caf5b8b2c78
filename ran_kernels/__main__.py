"""``python -m ran_kernels``: versions, the build, devices, and which backend runs each operator."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator

import torch

from . import backends, extension, library


def main() -> None:
    try:
        for line in report():
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, say `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def report() -> Iterator[str]:
    """The lines that ``python -m ran_kernels`` prints."""
    yield from _versions()
    yield from _build()
    yield from _devices()
    yield from _operators()


def _versions() -> Iterator[str]:
    yield "versions"
    for name in ("ran-attention", "torch", "triton"):
        try:
            yield f"  {name:<16}{importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"  {name:<16}not installed"
    yield f"  {'python':<16}{platform.python_version()} on {platform.platform()}"
    yield f"  {'torch CUDA':<16}{torch.version.cuda or 'none'}"


def _build() -> Iterator[str]:
    yield "extension"
    if extension.path is None:
        yield f"  {extension.why_not}"
        return
    yield f"  {'path':<16}{extension.path}"
    if extension.foreign:
        yield f"  {'':<16}{extension.foreign}"
    info = extension.build_info()
    yield f"  {'compiler':<16}{info['compiler']}"
    yield f"  {'built with':<16}torch {info['torch']}, runs on torch >= {info['torch_target']}"
    if info["cuda"] is None:
        yield f"  {'CUDA kernels':<16}{info['cuda_reason']}"
        return
    targets = ", ".join(info["gpu_targets"])
    yield f"  {'CUDA kernels':<16}{info['cuda']} ({info['cuda_reason']}), for {targets}"
    used = [on for kernel in info["kernels"].values() for on in kernel.values()]
    if used:
        yield (
            f"  {'':<16}{len(info['kernels'])} kernels, at most "
            f"{max(on['registers'] for on in used)} registers and "
            f"{max(on['shared_bytes'] for on in used)} bytes of shared memory; "
            "ran_kernels.extension.build_info() lists them"
        )


def _devices() -> Iterator[str]:
    yield "devices"
    instructions = torch.backends.cpu.get_cpu_capability()
    yield f"  {'cpu':<16}{torch.get_num_threads()} threads, {instructions}"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield (
            f"  cuda:{index}          {properties.name}, sm_{properties.major}{properties.minor}, "
            f"{properties.total_memory / 2**30:.0f} GiB"
        )
    if not torch.cuda.device_count():
        yield "  cuda            none found"


def _operators() -> Iterator[str]:
    yield f"operators (RAN_BACKEND asks for {backends.current()!r})"
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    for device in devices:
        tensor = torch.empty(1, device=device)
        for op in library.OPERATORS:
            try:
                chosen = backends.choose(op, tensor)
            except backends.BackendError as error:
                yield f"  {op:<24}{device:<8}{error}"
                continue
            yield f"  {op:<24}{device:<8}{chosen}"
            for name in backends.ORDER:
                reason = backends.can_run(name, op, tensor)
                if reason is not None:
                    yield f"  {'':<32}not {name}: {reason}"


if __name__ == "__main__":
    main()
