"""What the page tells of each step up the ladder: why, by which lines, and what they are worth."""

from collections.abc import Iterable

from benchmarks import ablations, climb
from benchmarks.common import idea, plus_minus, sections_of, source
from benchmarks.report_diffs import side_by_side

LONG = 90  # lines: a section that adds more is folded, even if it carries the idea
SHORT = 3  # lines: a section that removes no more has its lines in one column

# Three sentences for each version, and the numbers of the sections that carry its ideas.
LESSONS = {
    "v1_char_transformer": (
        "v0 looks up which characters follow the last one, and forgets all others. v1 lets each "
        "character look back at up to 64 and take from them what helps: that is attention, here. A "
        "query is compared with the keys of all characters before it, and their values are added "
        "up, each weighted by how well its key fits.",
        (6,),
    ),
    "v2_bpe_rope": (
        "With characters, most of the window and of the work is spent on spelling. v2's tokens are "
        "runs of bytes that are frequent, so that the same window holds two and a half times as "
        "much text (section 2). To tell attention where a token stands, v2 turns queries and keys "
        "by an angle that grows with the position, so that a score depends on the distance alone.",
        (2, 5),
    ),
    "v3_alibi": (
        "v3 puts two other ideas in the places of v2's. ALiBi tells positions by a penalty on the "
        "score, the distance times a slope of the head's own, which also works in windows longer "
        "than those of the training. Its merges stay within English words, and tokens that only "
        "served to build longer ones, the scaffolds, get no id (section 2).",
        (5,),
    ),
    "v4_modern": (
        "v4 has what today's models have, in nearly every section. A diff of nearly all tells "
        "nothing, so here it is one idea at a time. Each step is a whole program on top of the one "
        "below, composed of sections of both files.",
        (),
    ),
}

# The section whose worth an ablation measures.
ABLATED = {
    **dict.fromkeys(("words", "scaffolds", "bytes", "half_vocabulary", "double_vocabulary"), 2),
    **dict.fromkeys(("alibi", "rope", "learned_positions"), 5),
    **dict.fromkeys(("muon", "caution", "schedule", "clipping"), 9),
    **dict.fromkeys(("gelu", "relu2"), 7),
    **{"zeros": 8, "counts": 8, "qk_norm": 6, "layer_norm": 4},
}


# ---- steps ----


def first_lines(parts: dict[str, str]) -> dict[str, int]:
    """The number of the line in its file at which the text of each section begins."""
    firsts, line = {}, 1
    for name, text in parts.items():
        firsts[name] = line + (name != "Header")  # behind its banner
        line = firsts[name] + text.count("\n")
    return firsts


def changed_sections(
    before: str, after: str, keys: Iterable[int], worth: dict[str, list[str]]
) -> dict[str, list]:
    """Of two programs, the sections that differ, each with its diff and what it is worth, those
    numbered in `keys` in front; and the names of those that are the same."""
    old, new = sections_of(before), sections_of(after)
    starts, changed = (first_lines(old), first_lines(new)), []
    for name in new:
        if old[name] == new[name]:
            continue
        first = starts[0][name], starts[1][name]
        rows = side_by_side(old[name].rstrip(), new[name].rstrip(), first)
        flat = [row for row in rows if row["kind"] == "change"]
        removed, added = (sum(len(row[side]) for row in flat) for side in ("old", "new"))
        is_key = name.partition(".")[0] in map(str, keys)
        changed.append(
            {
                "name": name,
                "rows": rows,
                "removed": removed,
                "added": added,
                "is_key": is_key,
                "is_open": is_key and added <= LONG,
                "alone": removed <= SHORT,
                "worth": worth.get(name.partition(".")[0], []),
            }
        )
    same = [name for name in new if old[name] == new[name]]
    return {"changed": sorted(changed, key=lambda each: not each["is_key"]), "same": same}


def step(before: str, after: str, worth: dict[str, list[str]] | None = None) -> dict:
    """What changes from one version to the next: why, and a diff for each section that differs."""
    lesson, keys = LESSONS.get(after, ("", ()))
    changes = changed_sections(source(before), source(after), keys, worth or {})
    return {"before": before, "after": after, "idea": idea(after), "lesson": lesson} | changes


def keys(of: climb.Step) -> list[int]:
    """The numbers of the sections that carry a step's idea."""
    new = [f"def {name}(" for name in of.functions]
    defined = (
        int(name.partition(".")[0])
        for name, text in sections_of(source(climb.V4)).items()
        if any(define in text for define in new)
    )
    return [*of.sections[:1], *defined]


def climbed_steps(results: dict | None, worth: dict[str, list[str]] | None = None) -> list[dict]:
    """The single ideas from v3 to v4: the diff of each, and what it bought, if it was measured."""
    programs = [climb.compose(number) for number in range(len(climb.STEPS))]
    rows = climb.summarize(results) if results else [{}] * len(programs)
    return [
        {"number": number, "idea": of.idea, "bought": row and climb.bought(row)}
        | changed_sections(programs[number - 1], programs[number], keys(of), worth or {})
        for number, (of, row) in enumerate(zip(climb.STEPS, rows))
        if number
    ]


def worths(results: dict | None) -> dict[str, list[str]]:
    """What the parts of a version are worth by its ablations, by the number of their section."""
    worth, rows = {}, ablations.summarize(results)[1:] if results else []
    numbers = {(a.part, a.instead): ABLATED[name] for name, a in ablations.ABLATIONS.items()}
    for row in rows:
        cost = f"diverged, {row['diverged']}"
        if not row["diverged"]:
            more = "more" if row["cost"] > 0 else "fewer"
            cost = f"{abs(row['cost']):.3f}{plus_minus(row['cost_spread'])} {more}"
        number = numbers[row["without"], row["instead"]]
        worth.setdefault(str(number), []).append(f"{row['without']} → {row['instead']}: {cost}")
    return worth
