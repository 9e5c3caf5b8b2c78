"""CUDA kernels on a CPU: the kernels of csrc/cuda compiled as plain C++ and run thread by thread.

No CUDA is needed, only g++ or clang++. Every thread of a block is a fiber that waits where a GPU's
would, at barriers and in exchanges within its warp; one block runs at a time.

- sources.py turns CUDA's syntax into C++; shim/ stands for CUDA's headers, runtime/ is the GPU.
- build.py compiles it all, in four kinds: for speed, watching every access, sanitized, and with
  casts checked.
- place.py sends the operators' tests there (``native-emulated``), the tensor side included.
- run.py and the files of cases run the launchers alone: any shape, dtype, layout and alignment
  against formulas in float64, three orders of threads, races, bounds, uninitialised reads;
  limits.py and beyond.py: extreme shapes.
- traffic.py counts how launches reach memory; tests/regression holds the figures.
- faults.cu and mutations.py: what the emulator must notice.

How to add a kernel is said in launchers.py.
"""
