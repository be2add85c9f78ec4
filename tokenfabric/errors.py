"""The one exception that reaches the user as a line of text instead of a traceback."""


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, the value, the limit and the remedy.

    The command line prints it after ``tokenfabric: error:`` and exits with code 2.
    """
