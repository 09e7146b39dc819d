"""Text as all versions understand it: what ends a document, and what is not well-formed."""

END_OF_TEXT = "<|endoftext|>"


def well_formed(text: str) -> str:
    """`text` with each lone surrogate, which UTF-8 cannot hold, replaced by U+FFFD.

    A high surrogate before a low one becomes the character the two stand for; tiktoken does the
    same with both.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def utf8(text: str | bytes) -> bytes:
    """The UTF-8 of `text`, which may be that already; a lone surrogate counts as U+FFFD."""
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return well_formed(text).encode("utf-8")
