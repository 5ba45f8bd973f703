"""The error a user can cause: one clear line that says what is wrong, where, and what to do."""


class OssiaError(ValueError):
    """Bad input. The command line prints its message after `error:` and exits with code 2."""


def brief(error: object, most: int = 300) -> str:
    """An error's text on one line, without the end of a long one; its kind if it has no text."""
    text = " ".join(str(error)[: 4 * most].split()) or type(error).__name__
    return text if len(text) <= most else f"{text[: most - 3]}..."
