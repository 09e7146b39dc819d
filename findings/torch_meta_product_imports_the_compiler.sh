#!/bin/sh
# torch 2.13.0: the first product on the device "meta", where nothing is computed, imports torch's
# compiler and sympy: more than 700 modules.
#
# Seen: a sum on meta imports nothing, a product imports torch._inductor and sympy, and takes seconds;
# the same product on the CPU imports nothing. So a check of shapes that allocates no memory, or a
# model whose constructor computes a constant under torch.device("meta"), makes a program slow to
# start. Where only the weights are to be without data, empty(..., device="meta") for these alone
# keeps all other tensors real.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy

cat > "$folder/imported.py" <<'PYTHON'
import sys

import torch

x = torch.ones(4, device=sys.argv[1])
before = set(sys.modules)
x.sum() if sys.argv[2] == "sum" else x * 2
new = set(sys.modules) - before
print(*sys.argv[1:], "many" if len(new) > 700 else len(new), {"sympy", "torch._inductor"} <= new)
PYTHON

seen=$(for case in "cpu product" "meta sum" "meta product"; do
    "$folder/venv/bin/python" "$folder/imported.py" $case
done)
echo "$seen"
[ "$seen" = "cpu product 0 False
meta sum 0 False
meta product many True" ]
