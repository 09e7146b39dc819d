"""The page's diffs: two texts of Python side by side, with marks on the words that changed."""

import difflib
import re
from collections.abc import Iterator
from itertools import accumulate, groupby

import markupsafe
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

CONTEXT_LINES = 3  # unchanged lines shown around a change; the others are folded
ALIKE = 0.6  # share of words in common from which a line is taken to have become another
WORD = re.compile(r"\w+|[^\w\s]")
Columns = set[int]  # of a line: where its characters have changed


def words(line: str) -> list[str]:
    return WORD.findall(line)


def changed_words(old: list[str], new: list[str]) -> tuple[list[Columns], list[Columns]]:
    """Of each line of a changed block, the columns of the words that differ from the line of the
    other side that it became or was; none of lines that came or went as a whole."""
    columns, start = ([set() for _ in old], [set() for _ in new]), 0
    for i, line in enumerate(old):
        if not words(line):
            continue
        matcher, best = difflib.SequenceMatcher(b=words(line), autojunk=False), (ALIKE, 0)
        for j in range(start, len(new)):
            matcher.set_seq1(words(new[j]))
            if matcher.quick_ratio() > best[0]:
                best = max(best, (matcher.ratio(), -j))
        if best[0] == ALIKE:
            continue
        j, start = -best[1], -best[1] + 1
        matcher.set_seq1(words(new[j]))
        for kind, *spans in matcher.get_opcodes():
            if kind != "equal":
                columns[1][j] |= columns_of(new[j], *spans[:2])
                columns[0][i] |= columns_of(line, *spans[2:])
    return columns


def columns_of(line: str, first: int, last: int) -> Columns:
    """The columns of the words of `line` from number `first` to before `last`."""
    some = list(WORD.finditer(line))[first:last]
    return set(range(some[0].start(), some[-1].end())) if some else set()


class Lexer(PythonLexer):
    """Of Python; characters at the `marked` places are tokens of their own. Their types are called
    Changed, which pygments puts at the end of their classes: `n n-Changed`."""

    def __init__(self, marked: set[int]) -> None:
        super().__init__(stripnl=False)
        self.marked = marked

    def get_tokens_unprocessed(self, text: str) -> Iterator[tuple[int, object, str]]:
        for start, kind, value in super().get_tokens_unprocessed(text):
            places = range(start, start + len(value))
            for is_marked, run in groupby(places, self.marked.__contains__):
                run = list(run)
                yield run[0], kind.Changed if is_marked else kind, text[run[0] : run[-1] + 1]


def code_lines(text: str, marked: dict[int, Columns] | None = None) -> list[markupsafe.Markup]:
    """Each line of Python as HTML, highlighted as part of the whole `text`, with the `marked`
    columns of lines, by number from 0."""
    starts = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]
    places = {starts[n] + column for n, columns in (marked or {}).items() for column in columns}
    html = highlight(text, Lexer(places), HtmlFormatter(nowrap=True))
    return [markupsafe.Markup(line) for line in html.split("\n")]


def side_by_side(old: str, new: str, first: tuple[int, int] = (1, 1)) -> list[dict]:
    """Rows of a diff: {"kind": "same" | "change", "old": lines, "new": lines} with a line on each
    side or a block of changed ones, each a pair of its number, from `first` on, and its HTML; or,
    for a run of unchanged lines, {"kind": "fold", "rows": [...]}."""
    plain = old.splitlines(), new.splitlines()
    blocks = difflib.SequenceMatcher(None, *plain, autojunk=False).get_opcodes()
    marked = {}, {}
    for _, a, b, c, d in blocks:
        for side, at, columns in zip(marked, (a, c), changed_words(plain[0][a:b], plain[1][c:d])):
            side.update(enumerate(columns, at))
    old_lines, new_lines = (
        list(enumerate(code_lines(text, side), number))
        for text, side, number in zip((old, new), marked, first)
    )
    rows = []
    for number, (kind, a, b, c, d) in enumerate(blocks):
        if kind != "equal":
            rows.append({"kind": "change", "old": old_lines[a:b], "new": new_lines[c:d]})
            continue
        pairs = zip(old_lines[a:b], new_lines[c:d])
        same = [{"kind": "same", "old": [left], "new": [right]} for left, right in pairs]
        head = CONTEXT_LINES if number else 0
        tail = CONTEXT_LINES if number < len(blocks) - 1 else 0
        if len(same) <= head + tail + 1:
            rows += same
        else:
            middle = same[head : len(same) - tail]
            rows += [*same[:head], {"kind": "fold", "rows": middle}, *same[len(same) - tail :]]
    return rows
