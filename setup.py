"""Builds the compiled operators against PyTorch's stable ABI, into the folder of ran_kernels:

  libran_kernels.so  the kernels and the tensor side, without Python
  libran_schemas.so  the operators' schemas, for processes that have no ran_kernels
  _C                 the build report as a Python module

Environment variables:
  RAN_NO_EXTENSION=1    build nothing: Triton and the reference alone
  RAN_CUDA=1            a missing or unfit CUDA toolkit is an error
  RAN_CUDA=0            leave the CUDA kernels out
  RAN_PORTABLE_WHEEL=1  no _C, which is tied to one version of Python: one wheel for all of them
  CUDA_HOME             the toolkit, where it is not found by itself
  TORCH_CUDA_ARCH_LIST  GPUs to build for (default "8.0;9.0;10.0+PTX;12.0", as far as the toolkit
                        knows them)
  MAX_JOBS              compilers at once (default: as cores and memory allow)
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent
TORCH_TARGET = (2, 11)
LIBRARY = "csrc/library"
CORE, SCHEMAS = "ran_kernels.libran_kernels", "ran_kernels.libran_schemas"
# GPUs to build for, oldest first: each runs on the later ones of its own major version, too.
ARCHES = ("8.0", "9.0", "10.0", "12.0")
# PTX of the last of these that the toolkit knows serves what comes later. Not 12.0: its PTX would
# not run on 11.0.
PTX_ARCHES = ("9.0", "10.0")
# nvcc compiles one source for several GPUs in about this much memory.
GIB_PER_JOB = 3


def say(text):
    print(f"ran-attention: {text}", file=sys.stderr)


def switch(name):
    """The 0/1 environment variable `name`: True, False, or None where it is not set."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        sys.exit(f"ran-attention: {name}: expected 0 or 1, got {value!r}")
    return {"": None, "0": False, "1": True}[value]


def is_toolkit(home):
    return (home / "include" / "cuda_runtime.h").is_file() and (home / "bin" / "nvcc").is_file()


def find_cuda_home():
    """(toolkit folder or None, why).

    What is on the PATH may be a wrapper script in a folder that holds no toolkit, so a folder
    counts only if it holds both the header and the compiler.
    """
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            home = Path(os.environ[name])
            if is_toolkit(home):
                return home, f"from {name}"
            return None, f"{name}={home} has no include/cuda_runtime.h and bin/nvcc"
    places = []
    if nvcc := shutil.which("nvcc"):
        places.append((Path(nvcc).resolve().parent.parent, "from nvcc on the PATH"))
    usual = [Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]
    usual += [Path("/opt/cuda"), Path("/usr/lib/cuda")]
    places += [(home, "the usual place") for home in usual]
    for home, why in places:
        if is_toolkit(home):
            return home, why
    looked = ", ".join(str(home) for home, _ in places)
    return None, f"no CUDA toolkit found (looked in {looked}); set CUDA_HOME"


def toolkit_version(home):
    text = subprocess.run(
        [home / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True
    ).stdout
    match = re.search(r"release (\d+\.\d+)", text)
    if match is None:
        sys.exit(f"ran-attention: {home}/bin/nvcc --version names no release: {text!r}")
    return match.group(1)


def default_arches(home):
    """The GPUs of ARCHES that the toolkit's compiler knows, as TORCH_CUDA_ARCH_LIST names them."""
    text = subprocess.run(
        [home / "bin" / "nvcc", "--list-gpu-arch"], capture_output=True, text=True, check=True
    ).stdout
    known = [arch for arch in ARCHES if f"compute_{arch.replace('.', '')}" in text.split()]
    if not known:
        sys.exit(
            f"ran-attention: {home}/bin/nvcc knows none of {', '.join(ARCHES)}: {text!r}; "
            "set TORCH_CUDA_ARCH_LIST"
        )
    ptx = [arch for arch in known if arch in PTX_ARCHES] or known
    return ";".join(f"{arch}+PTX" if arch == ptx[-1] else arch for arch in known)


def torch_beside(torch):
    """(version, its CUDA version or None) of the torch that the extension is to run beside.

    That is the installed one. In pip's build isolation `torch` is another: the newest, which pip
    has fetched for the build alone and which may be for another CUDA. The stable ABI is the same.
    """
    path = Path(sysconfig.get_path("purelib"), "torch", "version.py")
    if not path.is_file():
        return torch.__version__, torch.version.cuda
    said = dict(re.findall(r"^(__version__|cuda)\b.*= '(.+)'$", path.read_text(), re.MULTILINE))
    return said.get("__version__", "of an unknown version"), said.get("cuda")


def choose_cuda(torch):
    """(toolkit folder or None, its version or None, why)."""
    wanted = switch("RAN_CUDA")
    installed, cuda = torch_beside(torch)
    if wanted is False:
        return None, None, "left out: RAN_CUDA=0"
    home, version = None, None
    if cuda is None:
        why = f"torch {installed} is not a CUDA build"
    elif torch.version.cuda is None:
        why = f"torch {torch.__version__}, of the build alone, has no CUDA: --no-build-isolation"
    else:
        home, why = find_cuda_home()
        if home is not None:
            version = toolkit_version(home)
            if version.split(".")[0] != cuda.split(".")[0]:
                why = f"toolkit {version} in {home}, torch is for {cuda}"
                home, version = None, None
    if home is None and wanted:
        sys.exit(f"ran-attention: RAN_CUDA=1 asks for CUDA kernels: {why}")
    return home, version, why if home else f"left out: {why}"


def cap_jobs():
    """Sets MAX_JOBS by cores and memory, unless the user did."""
    if not os.environ.get("MAX_JOBS"):
        cores = len(os.sched_getaffinity(0))
        gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        os.environ["MAX_JOBS"] = str(max(1, min(cores, int(gib / GIB_PER_JOB))))
    return os.environ["MAX_JOBS"]


def find_cuobjdump(cuda_home):
    """The toolkit's cuobjdump, or the one inside Triton's package; None where there is neither."""
    places = [cuda_home / "bin" / "cuobjdump"]
    if (spec := importlib.util.find_spec("triton")) and spec.origin:
        places.append(Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    return next((place for place in places if place.is_file()), None)


def demangle(name):
    """A kernel's name with its template arguments, without namespaces and parameters."""
    run = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True)
    plain = re.sub(r"\(anonymous namespace\)::|ran::cuda::|ran::|^void ", "", run.stdout.strip())
    plain = re.sub(r"\(\w+\)(?=\d)", "", plain)  # (Activation)1 and (int)8 among the arguments
    return plain.split("(")[0]


def kernel_resources(objects, cuda_home):
    """{kernel: {GPU target: {registers, shared_bytes, stack_bytes, local_bytes}}}."""
    cuobjdump = find_cuobjdump(cuda_home)
    if cuobjdump is None:
        say("no cuobjdump: build_info() will not know the kernels' registers and shared memory")
        return {}
    kernels: dict[str, dict[str, dict[str, int]]] = {}
    for path in objects:
        command = [cuobjdump, "--dump-resource-usage", path]
        dump = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        target = name = ""
        for line in dump.splitlines():
            if match := re.search(r"arch = (\w+)", line):
                target = match.group(1)
            elif match := re.search(r"Function (\S+):", line):
                name = demangle(match.group(1))
            elif "REG:" in line:
                used = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
                kernels.setdefault(name, {})[target] = {
                    "registers": used["REG"],
                    "shared_bytes": used["SHARED"],
                    "stack_bytes": used["STACK"],
                    "local_bytes": used["LOCAL"],
                }
    return kernels


def compiled_extension():
    """setup() arguments that build the libraries and ran_kernels._C."""
    try:
        import torch
    except ImportError as error:
        sys.exit(
            f"ran-attention: building the extension needs torch >= 2.11 ({error}); "
            "install torch first, or set RAN_NO_EXTENSION=1"
        )
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < TORCH_TARGET:
        sys.exit(f"ran-attention: expected torch >= 2.11, got {torch.__version__}")
    cuda_home, cuda_version, why = choose_cuda(torch)
    if cuda_home:
        # Or torch guesses one from nvcc's place on the PATH, and refuses one for another CUDA.
        os.environ["CUDA_HOME"] = str(cuda_home)
        torch.version.cuda = cuda_version
    from torch.utils import cpp_extension

    say(f"torch {torch.__version__}, MAX_JOBS={cap_jobs()}")
    cxx = ["-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]
    cxx += ["-Wall", "-Wno-psabi"]
    macros = [("TORCH_TARGET_VERSION", f"0x{TORCH_TARGET[0]:02x}{TORCH_TARGET[1]:02x}000000000000")]
    sources = [f"{LIBRARY}/core.cpp"]
    for pattern in ("csrc/*.cpp", "csrc/cpu/*.cpp"):
        sources += [str(p.relative_to(ROOT)) for p in ROOT.glob(pattern)]
    nvcc = []
    if cuda_home:
        if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
            os.environ["TORCH_CUDA_ARCH_LIST"] = default_arches(cuda_home)
        gencode = cpp_extension._get_cuda_arch_flags()
        say(f"CUDA {cuda_version} in {cuda_home} ({why}), for {os.environ['TORCH_CUDA_ARCH_LIST']}")
        macros += [("RAN_WITH_CUDA", "1"), ("USE_CUDA", "1")]
        sources += [str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/cuda/*.cu")]
        nvcc = ["-O3", "-std=c++17", "-Xcompiler", "-fvisibility=hidden"]
        targets = sorted(set(re.findall(r",code=(\w+)", " ".join(gencode))))
        extension = cpp_extension.CUDAExtension
    else:
        say(f"CUDA kernels {why}")
        targets = []
        extension = cpp_extension.CppExtension
    portable = bool(switch("RAN_PORTABLE_WHEEL"))

    info = {
        "compiler": compiler_version(cpp_extension.get_cxx_compiler()),
        "flags": cxx,
        "torch": torch.__version__,
        "torch_target": ".".join(map(str, TORCH_TARGET)),
        "cuda": cuda_version,
        "cuda_home": str(cuda_home) if cuda_home else None,
        "cuda_reason": why,
        "gpu_targets": targets,
    }

    class BuildKernels(cpp_extension.BuildExtension):
        """Compiles CUDA first, so that the library can report each kernel's resources."""

        def finalize_options(self):
            super().finalize_options()
            if self.editable_mode:
                # Kept, unlike pip's temporary folder: the next build compiles only what changed,
                # and the tests count instructions of the CPU kernels' object files.
                tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
                self.build_temp = str(Path("build", f"temp.{tag}"))

        def get_ext_filename(self, ext_name):
            # A library is not named after one version of Python.
            *folders, name = ext_name.split(".")
            if name.startswith("lib"):
                return str(Path(*folders, f"{name}.so"))
            return super().get_ext_filename(ext_name)

        def build_extension(self, ext):
            if ext.name == CORE:
                self.prepare_core(ext)
            else:
                built = str(Path(self.get_ext_fullpath(CORE)).parent)
                ext.library_dirs = [built, *ext.library_dirs]
            super().build_extension(ext)

        def prepare_core(self, ext):
            cuda = [s for s in ext.sources if s.endswith(".cu")]
            objects = []
            if cuda:
                objects = self.compiler.compile(
                    cuda,
                    output_dir=self.build_temp,
                    macros=ext.define_macros,
                    include_dirs=ext.include_dirs,
                    debug=self.debug,
                    extra_postargs=ext.extra_compile_args,
                    depends=ext.depends,
                )
                ext.sources = [s for s in ext.sources if s not in cuda]
                ext.extra_objects = [*ext.extra_objects, *objects]
            kernels = kernel_resources(objects, cuda_home) if objects else {}
            write_header(Path(self.build_temp), {**info, "kernels": kernels})
            ext.include_dirs = [*ext.include_dirs, str(Path(self.build_temp).resolve())]

    def linked_to_core(name, source, *libraries, include_dirs=()):
        """What is made of one source beside the core, and finds it there."""
        module = cpp_extension.CppExtension(
            name,
            [f"{LIBRARY}/{source}"],
            include_dirs=[*include_dirs],
            define_macros=macros[:1],
            extra_compile_args={"cxx": cxx},
            extra_link_args=["-Wl,-rpath,$ORIGIN"],
            depends=[f"{LIBRARY}/core.h"],
        )
        module.libraries = ["ran_kernels", *libraries]
        return module

    core = extension(
        CORE,
        sorted(sources),
        define_macros=macros,
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
        # By this name the others know it, and a process that has it loads it once.
        extra_link_args=["-Wl,-soname,libran_kernels.so"],
        depends=[str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/**/*.*h")],
    )
    # Only the libraries of the stable ABI: libtorch's other interfaces change with its version.
    core.libraries = ["torch_cpu", *(["torch_cuda", "cudart"] if cuda_home else [])]
    modules = [core, linked_to_core(SCHEMAS, "schemas.cpp", "torch_cpu")]
    commands = {"build_ext": BuildKernels}
    if portable:
        commands["bdist_wheel"] = PortableWheel
    else:
        import pybind11

        folders = [pybind11.get_include()]
        modules.append(linked_to_core("ran_kernels._C", "module.cpp", include_dirs=folders))
    return {"ext_modules": modules, "cmdclass": commands}


class PortableWheel(bdist_wheel):
    """A wheel of libraries alone, which no version of Python is part of."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


def compiler_version(compiler):
    run = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    return run.stdout.splitlines()[0]


def write_header(folder, info):
    """The build report as ran_build_info.h, untouched where nothing changed."""
    text = f'#define RAN_BUILD_INFO R"json({json.dumps(info)})json"\n'
    path = folder / "ran_build_info.h"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


if switch("RAN_NO_EXTENSION"):
    say("no compiled extension: RAN_NO_EXTENSION=1")
    setup()
else:
    setup(**compiled_extension())
