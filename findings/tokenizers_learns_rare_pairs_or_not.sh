#!/bin/sh
# tokenizers 0.23.3: its trainer merges pairs that occur once, its ready-made class of the same
# package, with that trainer inside, does not.
#
# Seen: of "ab cd", in which every pair occurs once, BpeTrainer makes three merges, and
# ByteLevelBPETokenizer none: the first has min_frequency 0 by default, the second 2. With large
# texts and small vocabularies both learn the same, so the difference shows where a text is short or
# a vocabulary large: one of them stops below the size that was asked for.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q tokenizers==0.23.3

cat > "$folder/learn.py" <<'PYTHON'
import json

import tokenizers
from tokenizers.implementations import ByteLevelBPETokenizer


def tell(name, tokenizer):
    print(name, ["".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]])


for text in ("ab cd", "ab cd ab"):
    split = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    by_parts = tokenizers.Tokenizer(tokenizers.models.BPE())
    by_parts.pre_tokenizer = split
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=259, initial_alphabet=split.alphabet(), show_progress=False
    )
    by_parts.train_from_iterator([text], trainer)
    ready_made = ByteLevelBPETokenizer()
    ready_made.train_from_iterator([text], vocab_size=259, show_progress=False)
    tell("trainer:", by_parts)
    tell("class:", ready_made)
PYTHON

seen=$("$folder/venv/bin/python" "$folder/learn.py")
echo "$seen"
[ "$seen" = "trainer: ['ab', 'cd', 'Ġcd']
class: []
trainer: ['ab', 'cd', 'Ġab']
class: ['ab']" ]
