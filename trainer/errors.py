"""The errors that a user can mend."""


class BadInput(ValueError):  # noqa: N818 - reads as what it is where it is raised
    """Bad input: one clear sentence that names the file, row or field and what to do. Exit code 2."""


class NotHere(BadInput):
    """What a file names rightly but this machine does not have yet: raw data, a model of a hub that does not answer.

    A run cannot begin without it; a check of the file can end well.
    """
