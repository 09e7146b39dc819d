#!/bin/sh
# torch 2.13.0: FlopCounterMode counts no FLOPs for fused attention on a CPU, nor for the chunked
# linear_cross_entropy, though both are matrix products.
#
# Seen: attention over (1, 2, 64, 16) is 524,288 FLOPs when written out, and so it is by
# scaled_dot_product_attention on the device "meta", which takes it apart into products; on a CPU it
# is 0. A linear layer with its loss, forward and backward, is 614,400, and with `options`, which
# only save memory, 0. So a model's FLOPs fall when it is made faster, and a share of the peak
# computed from them falls, too. sdpa_kernel(SDPBackend.MATH) around the count helps for attention.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy

cat > "$folder/count.py" <<'PYTHON'
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def flops(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def attention():
    return F.scaled_dot_product_attention(q, q, q)


def loss(**options):
    return F.linear_cross_entropy(x, weight, targets, **options).backward()


q = torch.randn(1, 2, 64, 16)
print("written out:", flops(lambda: (q @ q.mT).softmax(-1) @ q))
print("on a CPU:", flops(attention))
with sdpa_kernel(SDPBackend.MATH):
    print("on a CPU, by products:", flops(attention))
q = q.to("meta")
print("on meta:", flops(attention))
x, weight = torch.randn(64, 16, requires_grad=True), torch.randn(100, 16, requires_grad=True)
targets = torch.zeros(64, dtype=torch.long)
print("loss:", flops(loss))
print("loss in chunks:", flops(lambda: loss(options=torch.nn.LinearCrossEntropyOptions())))
PYTHON

seen=$("$folder/venv/bin/python" "$folder/count.py")
echo "$seen"
[ "$seen" = "written out: 524288
on a CPU: 0
on a CPU, by products: 524288
on meta: 524288
loss: 614400
loss in chunks: 0" ]
