#!/bin/sh
# transformers 5.24.0 with tokenizers 0.23.3: config.json of a model beside a tokenizer.json changes
# how numbers are split.
#
# Seen: a tokenizer.json that keeps "34" whole does so when AutoTokenizer loads it alone. With a
# Qwen3 model's config.json beside it and no `tokenizer_class` in tokenizer_config.json, it becomes a
# Qwen2Tokenizer, which cuts each digit off, whatever the file says: the vocabulary is read from it,
# the split is not. Nothing warns. `"tokenizer_class": "PreTrainedTokenizerFast"` keeps it as it is.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.24.0 tokenizers==0.23.3 2> "$folder/pip"

cat > "$folder/load.py" <<'PYTHON'
import json
import sys
from pathlib import Path

from tokenizers.implementations import ByteLevelBPETokenizer
from transformers import AutoTokenizer, Qwen3Config

folder = Path(sys.argv[1])
tokenizer = ByteLevelBPETokenizer()
tokenizer.train_from_iterator(["12 34 cat"] * 9, vocab_size=270, show_progress=False)


def show(what):
    loaded = AutoTokenizer.from_pretrained(folder)
    print(what, type(loaded).__name__, loaded.tokenize("12 34 cat"))


folder.mkdir()
tokenizer.save(str(folder / "tokenizer.json"))
show("alone:")
Qwen3Config().save_pretrained(folder)
show("with config.json:")
said = {"tokenizer_class": "PreTrainedTokenizerFast"}
(folder / "tokenizer_config.json").write_text(json.dumps(said))
show("and told so:")
PYTHON

seen=$("$folder/venv/bin/python" "$folder/load.py" "$folder/model" 2> "$folder/warnings")
echo "$seen"
[ "$seen" = "alone: TokenizersBackend ['12', 'Ġ34', 'Ġcat']
with config.json: Qwen2Tokenizer ['1', '2', 'Ġ', '3', '4', 'Ġcat']
and told so: TokenizersBackend ['12', 'Ġ34', 'Ġcat']" ]
