#!/bin/sh
# torch 2.13.0: what an optimizer remembers of a bfloat16 parameter comes back as bfloat16, whatever
# it was, unless its name is "step".
#
# Seen: an optimizer of one's own keeps, for a bfloat16 parameter, a float32 average and a whole
# number of tokens. state_dict holds both as they are, load_state_dict makes both bfloat16: 1.001
# becomes 1.0 and 1,234,567 becomes 1,236,992. The same number under the name "step" is kept. So a
# run that is resumed goes on with other numbers than it was saved with, and nothing says so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy

cat > "$folder/state.py" <<'PYTHON'
import torch


class Counting(torch.optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {})


weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
saved, loaded = Counting([weight]), Counting([weight])
count = torch.tensor([1_234_567])
saved.state[weight] = {"mean": torch.tensor([1.001]), "tokens": count, "step": count}
loaded.load_state_dict(saved.state_dict())
for name, value in loaded.state[weight].items():
    print(name, saved.state[weight][name].dtype, "->", value.dtype, f"{value.item():.3f}")
PYTHON

seen=$("$folder/venv/bin/python" "$folder/state.py")
echo "$seen"
[ "$seen" = "mean torch.float32 -> torch.bfloat16 1.000
tokens torch.int64 -> torch.bfloat16 1236992.000
step torch.int64 -> torch.int64 1234567.000" ]
