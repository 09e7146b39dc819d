#!/bin/sh
# lm-eval 0.4.13 with transformers 5.24.0: where a tokenizer puts its start token before a text,
# bits per byte also pay for that token, predicted after another one.
#
# Seen: a model that takes all 8 tokens for equally likely costs ln 8 for each, so the sum tells how
# many were scored. For a text of two tokens, loglikelihood_rolling scores three: the start token
# that the tokenizer adds is taken for text, and lm-eval puts the same token before it, as context. A
# model has hardly seen it there, so the score of short documents is worse. add_bos_token=False scores
# two.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 2> "$folder/pip"
"$folder/venv/bin/pip" install -q lm-eval==0.4.13 transformers==5.24.0 accelerate==1.15.0 2> "$folder/pip"

cat > "$folder/score.py" <<'PYTHON'
import math

import tokenizers
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

vocabulary = {letter: i for i, letter in enumerate("abcdefg")} | {"<s>": 7}
split = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
split.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", None, [("<s>", 7)])
tokenizer = PreTrainedTokenizerFast(tokenizer_object=split, bos_token="<s>", eos_token="<s>")
sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 8}
heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 32}
model = Qwen3ForCausalLM(Qwen3Config(vocab_size=8, **sizes, **heads)).eval()
torch.nn.init.zeros_(model.lm_head.weight)
for options in ({}, {"add_bos_token": False}):
    scorer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, **options)
    (nats,) = scorer.loglikelihood_rolling([Instance("", {}, ("ab",), 0)], True)
    print(options, "tokens scored:", round(-nats / math.log(8)))
PYTHON

seen=$("$folder/venv/bin/python" "$folder/score.py" 2> "$folder/warnings")
echo "$seen"
[ "$seen" = "{} tokens scored: 3
{'add_bos_token': False} tokens scored: 2" ]
