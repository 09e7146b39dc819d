"""A results file with numbers that a hand can check, as compare.py would write it."""


def run(version: str, seed: int, bits: float, **values) -> dict:
    """A run whose 1,000 bytes of validation text are 500 tokens and 50 words."""
    length = 64
    return {
        "version": version,
        "seed": seed,
        "corpus": {"name": "toy", "sha256": "ab" * 32, "train_bytes": 9000, "val_bytes": 1000},
        "parameters": 1234,
        "vocab_size": 300,
        "steps": 40,
        "seconds": 2.0 + seed,
        "train_bytes": 6000,
        "val_loss": bits * 2 * 0.6931471805599453,  # two bytes a token
        "bits_per_byte": bits,
        "scored_bytes": 1000,
        "torch": "2.13.0",
        "python": "3.11.7",
        "threads": 2,
        "dtype": "float32",
        "commit": "0123456789abcdef",
        "last_loss": bits,
        "curve": [[20 * s, float(s), bits + 2 - s] for s in (0, 1)],
        "rates": [[step, 0.1 / step] for step in (10, 20, 40)],
        "beyond": {
            "reads": length,
            "lengths": [[t, bits * t, 1000] for t in (1, 2, 4, 8)],
            "why": "",
        },
    } | values


def results() -> dict:
    """v1 with 3 and 5 bits per byte, which does not read further, and v2 with 1, 2 and 6."""
    stays = {"reads": 64, "lengths": [], "why": "only 64 positions were learned"}
    return {
        "seconds": 2.0,
        "bytes": 0,
        "validation_words": 50,
        "runs": [
            *(run("v1_char_transformer", i, b, beyond=stays) for i, b in enumerate((3.0, 5.0))),
            *(run("v2_bpe_rope", i, b) for i, b in enumerate((1.0, 2.0, 6.0))),
        ],
        "exhibits": {
            "v1_char_transformer": {"samples": {"A <b>": "A <b> cat"}, "tokens": list("A cat\n")},
            "v2_bpe_rope": {
                "samples": {"A <b>": "A <b> dog & $1"},
                "tokens": ["A", " cat", "\n"],
                "map": [
                    [token, float(i % 3), float(i * i)]
                    for i, token in enumerate([" the", "ing", "(", "$", "$$", "\n", "<", "é"])
                ],
            },
        },
    }


def sweep() -> dict:
    """A learning rate that wins, one that is 50% worse, and one at which both runs diverged: one
    ended above ln 300, as if all tokens were equally likely, the other at no number."""
    points = []
    for factor, bits in ((0.1, (3.0, 3.0)), (1, (1.5, 2.5)), (10, (9.0, None))):
        runs = [run("v2_bpe_rope", i, b, last_loss=b) for i, b in enumerate(bits) if b]
        runs += [{"diverged": "error: the loss is nan at step 3"}] * bits.count(None)
        points.append(
            {
                "what": "learning_rate",
                "value": 0.01 * factor,
                "factor": factor,
                "options": {"data": "toy", "steps": 40},
                "runs": runs,
            }
        )
    return {"version": "v2_bpe_rope", "bytes": 6000, "seconds": 0, "points": points}


def ablations() -> dict:
    """v4 with 2 and 3 bits per byte; worse, better and diverged without a part."""
    bits = {"": (2.0, 3.0), "gelu": (1.9, 2.9), "clipping": (2.0, 9.0), "rope": (2.5, 3.1)}
    points = []
    for what, of_seeds in bits.items():
        values = {"seconds": 5.0, "parameters": 1357} if what == "rope" else {}
        runs = [run("v4_modern", i, b, last_loss=b, **values) for i, b in enumerate(of_seeds)]
        points.append({"what": what, "options": {"data": "toy", "steps": 40}, "runs": runs})
    return {"version": "v4_modern", "bytes": 6000, "seconds": 0, "points": points}


def climb() -> dict:
    """Steps from v3 to v4: 0 to 2 at equal time, of which the last diverged once, 0 and 1 at equal
    text."""
    bits = {
        "seconds": [(2.0, 3.0), (1.9, 2.5), (1.8, 9.0)],
        "bytes": [(2.5, 2.5), (2.75, 2.75)],
    }
    names = ["climb_0_v3", "climb_1_tokenizer", "climb_2_norm"]
    runs = []
    for unit, of_steps in bits.items():
        for name, of_seeds in zip(names, of_steps):
            for seed, value in enumerate(of_seeds):
                dtype = "float32" if name == names[0] else "bfloat16"
                values = {"budget": unit, "dtype": dtype, "last_loss": value}
                runs.append(run(name, seed, value, **values))
    return {"corpus": runs[0]["corpus"], "seconds": 2.0, "bytes": 6000.0, "runs": runs}


def to_v4() -> dict:
    """`results`, with v3 and v4 on top."""
    whole = results()
    for version in ("v3_alibi", "v4_modern"):
        whole["runs"].append(run(version, 0, 2.0))
        whole["exhibits"][version] = {"samples": {"A <b>": "A <b> fish"}, "tokens": ["A", " fish"]}
    return whole
