#!/bin/sh
# tokenizers 0.23.3: the id of an added token in tokenizer.json counts only if the vocabulary of the
# model has that token, too; otherwise it gets the next free id, without a word.
#
# Seen: a file with a vocabulary of two tokens and an added token of id 1000 gives that token the id
# 2, and writes 2 when it is saved again. With the token in the model's vocabulary at 1000, the id
# stays. So a file whose special tokens lie after a gap (rows of an embedding that are kept free, as
# many models have them) loads, encodes, and picks rows that were never trained.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q tokenizers==0.23.3

cat > "$folder/added.py" <<'PYTHON'
import json

import tokenizers

plain = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, [])).to_str())
token = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
plain["added_tokens"] = [{"id": 1000, "content": "<|end|>", "special": True, **token}]
for where in ("added", "added, and in the vocabulary"):
    loaded = tokenizers.Tokenizer.from_str(json.dumps(plain))
    again = json.loads(loaded.to_str())["added_tokens"][0]["id"]
    print(f"{where}: {loaded.encode('ab<|end|>').ids}, saved as {again}")
    plain["model"]["vocab"]["<|end|>"] = 1000
PYTHON

seen=$("$folder/venv/bin/python" "$folder/added.py")
echo "$seen"
[ "$seen" = "added: [0, 1, 2], saved as 2
added, and in the vocabulary: [0, 1, 1000], saved as 1000" ]
