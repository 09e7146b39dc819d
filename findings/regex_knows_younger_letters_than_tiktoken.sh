#!/bin/sh
# regex 2026.11.19, tiktoken 0.14.0, tokenizers 0.23.3: one pattern, one vocabulary, other ids.
#
# Seen: `\p{L}` matches 158,172 characters in regex and 141,028 in tokenizers; U+323B0, a Chinese
# character of Unicode 17, is among the 17,144 others. So GPT-2's pattern takes "<U+4E00><U+323B0>"
# for one word in regex, and for two in tiktoken and tokenizers, where a merge across the two cannot
# happen. Whoever learns merges or checks ids with one of them and serves with another gets other
# ids for such text, without an error: both decode to it.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q regex==2026.11.19 tiktoken==0.14.0 tokenizers==0.23.3

cat > "$folder/words.py" <<'PYTHON'
import regex
import tiktoken
import tokenizers

PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
text = "\u4e00\U000323b0"
data = text.encode("utf-8")
print("regex:", len(regex.findall(PATTERN, text)), "word")
split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated")
print("tokenizers:", len(split.pre_tokenize_str(text)), "words")
ranks = {bytes([byte]): byte for byte in range(256)}
for end in range(2, len(data) + 1):  # so that each beginning of the text is a token
    ranks[data[:end]] = 254 + end
encoding = tiktoken.Encoding("a", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
print("tiktoken:", encoding.encode(text), "where one word is", [ranks[data]])
everything = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
letters = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"\p{L}"), "removed")
others = sum(len(part) for part, _ in letters.pre_tokenize_str("".join(everything)))
print("letters:", len(regex.findall(r"\p{L}", "".join(everything))), len(everything) - others)
PYTHON

seen=$("$folder/venv/bin/python" "$folder/words.py")
echo "$seen"
[ "$seen" = "regex: 1 word
tokenizers: 2 words
tiktoken: [257, 240, 178, 142, 176] where one word is [261]
letters: 158172 141028" ]
