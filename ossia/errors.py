"""The error a user can cause: one clear line that says what is wrong, where, and what to do."""


class OssiaError(ValueError):
    """Bad input. The command line prints its message after `error:` and exits with code 2."""
