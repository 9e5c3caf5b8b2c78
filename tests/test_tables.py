"""The tables in the documents are made from the committed measurements."""

from pathlib import Path

import pytest

from bench.tables import DOCUMENTS, filled


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.parent.name)
def test_tables_are_up_to_date(path: Path) -> None:
    text = path.read_text()
    assert text == filled(text), "`make tables` rewrites them"


def test_a_table_without_measurements_is_named() -> None:
    with pytest.raises(ValueError, match="table nowhere: expected a file"):
        filled("<!-- table: nowhere -->\n<!-- end -->")
