r"""How a text is split into words before byte-pair encoding, which never crosses them.

A split is a pattern of the `regex` package, or the name of one of those here. They are as OpenAI
(tiktoken), Meta and Qwen published them; all take a text apart without a rest. Beside GPT-2's:

    gpt4    cl100k_base: a blank or a sign joins the letters after it, three digits are a word, line
            ends stay together; blanks at a text's end are one word, whatever lines they end
    llama3  the same but for blanks at the end; Hugging Face's files of cl100k_base have it, too
    qwen    Qwen 2 and 3: the same, and each digit is a word
    gpt4o   o200k_base: a word also begins where a capital follows a small letter, and keeps its 's
"""

import regex

from shared.files import UserError

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|"
BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
HIGH, LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
BEGIN, END = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
SPLITS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt4": WORDS + r"\p{N}{1,3}" + SIGNS + r"\s+(?![\s\S])|" + BLANKS,
    "gpt4o": f"{BEGIN}{HIGH}*{LOW}+{END}{BEGIN}{HIGH}+{LOW}*{END}"
    + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
    + BLANKS,
    "llama3": WORDS + r"\p{N}{1,3}" + SIGNS + BLANKS,
    "qwen": WORDS + r"\p{N}" + SIGNS + BLANKS,
}
SECONDS, PER_CHARACTER = 5.0, 2e-5  # a hundred times what the patterns above take


class StrangersPattern:
    """A pattern that came with a file. Some texts may keep it busy for ages, of others it may leave
    something out, after a word of nothing: UserError then."""

    def __init__(self, pattern: str) -> None:
        self.pattern = regex.compile(pattern)

    def findall(self, text: str) -> list[str]:
        """The words of `text`."""
        try:
            words = self.pattern.findall(text, timeout=SECONDS + PER_CHARACTER * len(text))
        except TimeoutError:
            raise UserError(
                f"the tokenizer's split takes too long on this text ({self.pattern.pattern[:60]}): "
                "use another tokenizer"
            ) from None
        if sum(map(len, words)) < len(text):
            raise UserError(
                f"this split ({self.pattern.pattern[:50]}) leaves out some of this text: "
                "use another tokenizer"
            )
        return words
