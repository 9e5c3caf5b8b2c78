"""The console script ``ran``, and ``python -m ran``."""

import sys

from .extras import MissingExtraError, needed_by


def main() -> None:
    """Runs the command line, or says in one line what it needs."""
    try:
        with needed_by("ran"):
            from .cli import main as run

            run()
    except MissingExtraError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
