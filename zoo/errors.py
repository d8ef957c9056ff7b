"""The one exception that a user's own input can cause."""

LENGTH = 560  # characters that a message has at most, to which the command's name is added


class UserError(Exception):
    """Something the user gave is wrong: the message says what, where, and what to do.

    The command line prints it in one line and exits with code 2; from Python it is raised as is.
    A message that quotes too much of the input is cut in its middle.
    """

    def __init__(self, message: object = "") -> None:
        text = " ".join(str(message).split())
        if len(text) > LENGTH:
            half = LENGTH // 2 - 1
            text = f"{text[:half]}…{text[-half:]}"
        super().__init__(text)
