"""Text as all versions understand it: how documents end, and what is well-formed."""

END_OF_TEXT = "<|endoftext|>"


def well_formed(text: str) -> str:
    """`text` with each lone surrogate, which UTF-8 cannot encode, replaced by U+FFFD.

    A high surrogate followed by a low one becomes the character that the pair stands for. tiktoken
    does the same in both cases.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def utf8(text: str | bytes) -> bytes:
    """`text` as UTF-8 (bytes are returned as is); a lone surrogate is encoded as U+FFFD."""
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return well_formed(text).encode("utf-8")
