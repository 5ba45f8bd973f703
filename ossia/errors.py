"""The error a user can cause: one clear line that says what is wrong, where, and what to do."""

_LONGEST = 1000  # characters of a message


class OssiaError(ValueError):
    """Bad input. The command line prints its message after `error:` and exits with code 2. A
    message that quotes more of a file than a line can hold is cut.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shortened(message, _LONGEST))


class Busy(OssiaError):
    """What is asked for can be had, but not now: others are being served. Trying again helps."""


class DeviceLost(OssiaError):
    """A GPU that computes no more in this process. The command line exits with code 1."""


def brief(error: object, most: int = 300) -> str:
    """An error's text on one line, without the end of a long one; its kind if it has no text."""
    text = " ".join(str(error)[: 4 * most].split()) or type(error).__name__
    return shortened(text, most)


def shortened(text: str, most: int = 80) -> str:
    """The text for a message, without the end of a long one."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
