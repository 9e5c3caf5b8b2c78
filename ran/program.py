"""Whether this process is the command line's."""

import sys
from pathlib import Path


def is_program() -> bool:
    """Whether this process was started as ``ran`` or as ``python -m ran``.

    Then ``import ran`` leaves the networks to the commands that need them: help, a shell's
    completion and a wrong option take no torch, which takes seconds to load.
    """
    argv = getattr(sys, "argv", None) or [""]  # a program that embeds Python may set none
    if argv[0] == "-m":  # as long as the module to run is being looked for
        words = sys.orig_argv
        return "-m" in words and words[words.index("-m") + 1 :][:1] == ["ran"]
    return Path(argv[0]).name in ("ran", "ran.exe")
