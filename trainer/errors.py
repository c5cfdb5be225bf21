"""The one error that a user can mend."""


class BadInput(ValueError):  # noqa: N818 - reads as what it is where it is raised
    """Bad input: one clear sentence that names the file, row or field and what to do. Exit code 2."""
