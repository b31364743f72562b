"""The one exception that a user is meant to read."""


class AnamorphError(ValueError):
    """Bad input: the message says what was given, what was expected and what to do.

    The command line prints the message as one paragraph and exits with code 2.
    """
