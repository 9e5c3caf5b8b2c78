"""Widths of accesses are read from the SASS, and compared with what was counted."""

from tests.emulator.library import Launch
from tests.emulator.traffic import Counted, Side

from . import widths

SASS = """
		Function : _ZN3ran4cuda4copyIfEEvPKfPf
        /*00a0*/                   LDG.E.128.CONSTANT R4, [R2.64] ;
        /*00b0*/                   LDG.E.U16 R8, desc[UR4][R2.64+0x10] ;
        /*00c0*/                   LDS.128 R4, [R2] ;
        /*00d0*/                   STG.E desc[UR4][R6.64], R4 ;
		Function : _ZN3ran4cuda4fillIfEEvPf
        /*00d0*/                   ST.E.64 desc[UR4][R6.64], R4 ;
"""


def counted(kernel: str, load: list[float], store: list[float]) -> Counted:
    launch = Launch(kernel, (1, 1, 1), 32, 0, 1)
    loads, stores = (Side(sum(side), 0, 0, 0, tuple(side)) for side in (load, store))
    return Counted(launch, loads, stores, 0, 0)


def test_widths_of_the_sass() -> None:
    found = widths.of_sass(SASS)
    assert found == {"copy<float>": ({16: 1, 2: 1}, {4: 1}), "fill<float>": ({}, {8: 1})}


def test_differences() -> None:
    instructions = widths.of_sass(SASS)
    same = counted("copy<float>", [0, 10, 0, 0, 90], [0, 0, 100, 0, 0])
    assert widths.differences([same], instructions) == {}
    wider = counted("copy<float>", [0, 0, 0, 0, 100], [0, 0, 0, 0, 100])
    narrower = counted("fill<float>", [0] * 5, [0, 0, 100, 0, 0])
    assert widths.differences([wider, narrower], instructions) == {
        "copy<float>, store": ("100% in 16", "1 of 4"),
        "fill<float>, store": ("100% in 4", "1 of 8"),
    }
