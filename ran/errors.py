"""The one exception for what a user can put right."""


class UserError(ValueError):
    """Bad input: names the thing, what was expected and what came, in one line.

    The command line prints the message without a traceback and exits with code 2.
    """


class DefaultsWarning(UserWarning):
    """Says what was taken for something that nobody gave.

    The command line prints the message as one line on standard error.
    """
