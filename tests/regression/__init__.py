from pathlib import Path

#: The figures that no change may worsen unnoticed.
BASELINE = Path(__file__).with_name("baseline.json")
