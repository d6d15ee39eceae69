"""Errors that a user can mend."""


class InputError(ValueError):
    """Bad input: says what is wrong with which thing, and how to mend it.

    Parameters
    ----------
    subject : object
        The file, folder, option or item at fault, as the user knows it.
    reason : str
        What is wrong with it.
    mend : str
        What the user can do about it.
    """

    def __init__(self, subject: object, reason: str, mend: str) -> None:
        self.subject = str(subject)
        self.reason = reason
        self.mend = mend
        super().__init__(f"{self.subject}: {reason}; {mend}")

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        # Exceptions cross process borders (task runners); the default would call __init__ with one argument.
        return type(self), (self.subject, self.reason, self.mend)


class StoreRefusal(InputError):
    """The store refuses what is asked of it as it is set up: a wrong key, a missing right, no such bucket.

    Nothing is wrong with what was to be read or written, so that an acquisition is not to blame for it.
    """
