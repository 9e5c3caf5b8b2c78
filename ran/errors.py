"""The one exception for what a user can put right."""


class UserError(ValueError):
    """Bad input: names the thing, what was expected and what came, in one line.

    The command line prints the message without a traceback and exits with code 2.
    """
