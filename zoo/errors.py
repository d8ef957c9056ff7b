"""The one exception that a user's own input can cause."""


class UserError(Exception):
    """Something the user gave is wrong: the message says what, where, and what to do.

    The command line prints it in one line and exits with code 2; from Python it is raised as is.
    """
