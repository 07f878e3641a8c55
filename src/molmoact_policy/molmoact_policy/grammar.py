"""Every reply a checkpoint can write, as an automaton over its tokens.

The one description of a reply is what training writes: `prompts.reply_template` with the texts of `format_depth`,
`format_trace` and `format_actions`. Here the values in those texts are left open (places), and what stands between two
places is learned as tokens by tokenising whole replies in which every place takes every one of its values. Text on both
sides of a place changes how it is tokenised, so a value is learned together with its neighbourhood: up to where, in
the text before and after it, a token ends whatever the values around are (a cut).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from molmoact_policy.actions import SYMBOLS, format_actions
from molmoact_policy.embodiment import ROW
from molmoact_policy.errors import CheckpointError
from molmoact_policy.processor import Processor
from molmoact_policy.prompts import WORDINGS, format_depth, format_trace, reply_template
from molmoact_policy.reply import DEPTH_CODES, DEPTH_TOKENS, MAX_TRACE_POINTS, TRACE_RANGE

HOLE = "\x00"
MAX_ROWS = 16  # of a reply whose number of rows is not known
NO_CHOICE = -1

VALUES: dict[str, tuple[str, ...]] = {
    "start": ("",),
    "depth": tuple(f"<DEPTH_{code}>" for code in range(DEPTH_CODES)),
    "trace": tuple(str(number) for number in range(TRACE_RANGE + 1)),
    "action": SYMBOLS,
}


class Place(NamedTuple):
    """Where a reply holds a value: depth code `row`, coordinate `column` of point `row` of trace `block`, or column of
    an action row (block 1: of the only row, written without the outer brackets)."""

    part: str  # a key of VALUES
    wording: int = 0
    block: int = 0
    row: int = 0
    column: int = 0


START = Place("start")


class Exit(NamedTuple):
    """Text after a place up to the cut, and where it leads: the next place, or the end of the reply (None)."""

    head: str
    following: Place | None


class Choice(NamedTuple):
    """The value at a place, as an index into VALUES of its part, and which of the place's exits is taken."""

    value: int
    exit: int


class State(NamedTuple):
    """At which place (an index into `Grammar.places`) and how far into its tokens (a node of its trie)."""

    place: int
    node: int


@dataclass(frozen=True)
class Skeleton:
    """A reply with its values left open: literals[0], place 0, literals[1], ..., literals[-1]."""

    literals: list[str]
    places: list[Place]

    @cached_property
    def edges(self) -> list[tuple[tuple[str, str, str], Place | None]]:
        """What stands before, in and after each literal, and the place that follows it."""
        following = [*self.places, None]
        return [
            (_edge(place, literal, after), after)
            for place, literal, after in zip([START, *self.places], self.literals, following, strict=True)
        ]

    def fill(self, values: Sequence[str]) -> tuple[str, list[int]]:
        """The text with these values, and where in it each literal begins."""
        parts = [self.literals[0]]
        for value, literal in zip(values, self.literals[1:], strict=True):
            parts += [value, literal]
        starts = [0, *accumulate(map(len, parts))]
        return "".join(parts), starts[:-1:2]


class Trie:
    """The token sequences of one place's choices. Raises ValueError when two are the same.

    One may begin with another: at its end it is then open which of the two it is.
    """

    def __init__(self, tokens: dict[Choice, tuple[int, ...]]) -> None:
        self.tokens = tokens
        self.children: list[dict[int, int]] = [{}]
        self.prefix: list[tuple[int, ...]] = [()]
        self.leaf: list[Choice | None] = [None]
        self.some_choice: list[Choice] = []  # below each node: what to guess when nothing better is known
        for choice, sequence in tokens.items():
            self._add(choice, sequence)
        below: dict[int, Choice] = {}
        for choice, sequence in tokens.items():
            node = 0
            below.setdefault(node, choice)
            for token in sequence:
                node = self.children[node][token]
                below.setdefault(node, choice)
        self.some_choice = [below[node] for node in range(len(self.children))]
        self.nodes = {choice: self._path(sequence) for choice, sequence in tokens.items()}

    def guess(self, node: int, exit: int) -> Choice:
        """A choice below a node, with this exit if there is one."""
        choice = self.some_choice[node]
        preferred = choice._replace(exit=exit)
        begun = self.prefix[node]
        return preferred if self.tokens[preferred][: len(begun)] == begun else choice

    def is_open(self, node: int) -> bool:
        """Whether a choice ends here and another goes on."""
        return self.leaf[node] is not None and bool(self.children[node])

    def _add(self, choice: Choice, sequence: tuple[int, ...]) -> None:
        node = 0
        for token in sequence:
            if token not in self.children[node]:
                self.children[node][token] = len(self.children)
                self.children.append({})
                self.prefix.append((*self.prefix[node], token))
                self.leaf.append(None)
            node = self.children[node][token]
        if self.leaf[node] is not None or not sequence:
            raise ValueError(f"{choice} and {self.leaf[node]} have the same tokens, {list(sequence)}")
        self.leaf[node] = choice

    def _path(self, sequence: tuple[int, ...]) -> list[int]:
        """The nodes before each token of the sequence."""
        nodes = [0]
        for token in sequence[:-1]:
            nodes.append(self.children[nodes[-1]][token])
        return nodes


class Grammar:
    """The automaton. `places` are all places in the order of a reply; states follow one another by `step`.

    end: the state after EOS. Only where more than one token may follow is there a choice; see `legal`.
    """

    def __init__(self, processor: Processor, dimensions: int, *, rows: int | None, steered: bool) -> None:
        """dimensions: of an action row; rows: of every reply, None when any number up to MAX_ROWS may come.

        Raises CheckpointError when the processor's tokenizer joins values with their neighbours in a way that one
        automaton cannot follow.
        """
        self._skeletons = list(_skeletons(dimensions, rows, steered))
        self.places, exits, self._tails = _graph(self._skeletons)
        self.index = {place: number for number, place in enumerate(self.places)}
        learned = _Tokenisation(processor, list(_samples(dimensions, rows, steered)))
        self.end = State(len(self.places), 0)
        self.exits: list[list[int]] = []
        self.tries: list[Trie] = []
        tries: dict[tuple[str, str, tuple[str, ...]], Trie] = {}
        for place in self.places:
            ways = [learned.exit(place, literal, following) for literal, following in exits[place]]
            self.exits.append([self.end.place if way.following is None else self.index[way.following] for way in ways])
            key = (place.part, learned.tail(self._tails[place], place), tuple(map(_head_key, ways)))
            if key not in tries:
                tries[key] = _build_trie(learned, key)
            self.tries.append(tries[key])
        self._number_choices(list(tries.values()))

    def _number_choices(self, tries: list[Trie]) -> None:
        """`legal_sets`: the distinct sets of ids there are to choose from. For each trie's node, and for each state in
        which a choice is open, which of them it is.
        """
        numbers: dict[tuple[int, ...], int] = {}

        def number(ids: Iterable[int]) -> int:
            key = tuple(sorted(ids))
            return NO_CHOICE if len(key) < 2 else numbers.setdefault(key, len(numbers))

        by_node = {id(trie): [number(children) for children in trie.children] for trie in tries}
        self._node_sets = [by_node[id(trie)] for trie in self.tries]
        by_choice = {
            id(trie): {choice: [by_node[id(trie)][node] for node in nodes] for choice, nodes in trie.nodes.items()}
            for trie in tries
        }
        self._sets = [by_choice[id(trie)] for trie in self.tries]
        self._open_sets: dict[State, int] = {}
        open_nodes = {id(trie): [node for node in range(len(trie.children)) if trie.is_open(node)] for trie in tries}
        for place, trie in enumerate(self.tries):
            for node in open_nodes[id(trie)]:
                following = self._leave(State(place, node))
                here, there = trie.children[node], {} if following == self.end else self._root(following)
                if following == self.end or here.keys() & there.keys():
                    raise CheckpointError(
                        f"tokenizer: after {self.places[place].part} values two ways on begin with the same tokens"
                    )
                self._open_sets[State(place, node)] = number([*here, *there])
        self.legal_sets: list[tuple[int, ...]] = list(numbers)

    def _leave(self, state: State) -> State:
        """To where the choice leads that ends here."""
        leaf = self.tries[state.place].leaf[state.node]
        assert leaf is not None
        return State(self.exits[state.place][leaf.exit], 0)

    def _root(self, state: State) -> dict[int, int]:
        return self.tries[state.place].children[0]

    @property
    def start(self) -> State:
        return State(0, 0)

    @cached_property
    def ids(self) -> list[int]:
        """All ids that are ever to be chosen from, ascending."""
        return sorted({number for ids in self.legal_sets for number in ids})

    def legal(self, state: State) -> list[int]:
        """The ids that may follow, ascending; none at the end."""
        if state == self.end:
            return []
        ids = set(self.tries[state.place].children[state.node])
        if state in self._open_sets:
            ids |= self._root(self._leave(state)).keys()
        return sorted(ids)

    def step(self, state: State, token: int) -> State | None:
        """The state after one more token; None when it may not follow."""
        return self._step(state, token, [])

    def read(self, ids: Sequence[int]) -> list[tuple[int, Choice]] | None:
        """What is chosen at each place of a whole reply; None for ids that are none."""
        state: State | None = self.start
        choices: list[tuple[int, Choice]] = []
        for token in ids:
            if state is None:
                return None
            state = self._step(state, token, choices)
        return choices if state == self.end else None

    def first_rows(self, values: NDArray[np.int64]) -> dict[int, Choice]:
        """The choices that write these values [k, D] in the first action rows, in whichever form."""
        return {
            number: Choice(int(values[place.row, place.column]), 0)
            for number, place in enumerate(self.places)
            if place.part == "action" and place.row < len(values)
        }

    def _step(self, state: State, token: int, made: list[tuple[int, Choice]]) -> State | None:
        """`step`; the choices that it ends are added to `made`."""
        if state == self.end:
            return None
        place, trie = state.place, self.tries[state.place]
        node = trie.children[state.node].get(token)
        if node is None:
            leaf = trie.leaf[state.node]
            if leaf is None:
                return None
            made.append((place, leaf))
            return self._step(self._leave(state), token, made)
        leaf = trie.leaf[node]
        following = State(place, node)
        if leaf is None or trie.children[node]:
            return following
        made.append((place, leaf))
        return self._leave(following)

    def set_of(self, state: State) -> int:
        """Which of `legal_sets` is to be chosen from; NO_CHOICE at the end and where one token only may follow."""
        if state == self.end:
            return NO_CHOICE
        return self._open_sets.get(state, self._node_sets[state.place][state.node])

    def spell(
        self, state: State, choices: Sequence[Choice], limit: int, decided: Container[int] = frozenset()
    ) -> Spelled:
        """Tokens from a state on, with the given choice at every place; where the state already excludes it, another
        that it allows.

        limit: how many at most, from the first on that is open to choice. decided: places of which none is.
        """
        spelled, forced, reached = Spelled([], [], []), 0, state
        while state != self.end and len(spelled.ids) - forced < limit:
            place, node = state
            trie = self.tries[place]
            choice, skipped = choices[place], len(trie.prefix[node])
            if trie.tokens[choice][:skipped] != trie.prefix[node]:
                choice = trie.guess(node, choice.exit)
            spelled.segments.append((place, choice, skipped, len(spelled.ids)))
            tokens, sets = trie.tokens[choice][skipped:], self._sets[place][choice][skipped:]
            if self._open_sets:
                sets, reached = self._sets_along(reached, tokens)
            spelled.ids += tokens
            spelled.sets += [NO_CHOICE] * len(tokens) if place in decided else sets
            while forced < len(spelled.sets) and spelled.sets[forced] == NO_CHOICE:
                forced += 1
            state = State(self.exits[place][choice.exit], 0)
        return spelled.cut(forced + limit)

    def _sets_along(self, state: State, ids: Sequence[int]) -> tuple[list[int], State]:
        sets = []
        for token in ids:
            sets.append(self.set_of(state))
            following = self.step(state, token)
            assert following is not None
            state = following
        return sets, state

    def refine(self, choices: list[Choice], spelled: Spelled, predicted: Sequence[int]) -> None:
        """Replaces the choices that were spelled by those the model would make, one place at a time.

        predicted: what the model would write in the place of each spelled token. Where its token differs, the first
        such in a place decides: those after it were predicted for another beginning.
        """
        for place, choice, skipped, start in spelled.segments:
            trie = self.tries[place]
            tokens, nodes = trie.tokens[choice], trie.nodes[choice]
            for i in range(skipped, min(len(tokens), skipped + len(predicted) - start)):
                token = predicted[start + i - skipped]
                if token != tokens[i]:
                    node = trie.children[nodes[i]].get(token)
                    ended = trie.leaf[nodes[i]]  # if the token belongs to the next place already
                    choices[place] = trie.guess(node, choice.exit) if node is not None else ended or choice
                    break
            else:
                choices[place] = choice


@dataclass
class Spelled:
    """Guessed tokens, for each the set it is chosen from, and the place, choice, tokens of the choice that came before,
    and first index of every part."""

    ids: list[int]
    sets: list[int]
    segments: list[tuple[int, Choice, int, int]]

    def cut(self, limit: int) -> Spelled:
        """The first `limit` tokens."""
        return Spelled(self.ids[:limit], self.sets[:limit], self.segments)


class _Tokenisation:
    """What tokenising samples tells: where literals may be cut, and the tokens between cuts."""

    def __init__(self, processor: Processor, skeletons: list[Skeleton]) -> None:
        samples = [sample for skeleton in skeletons for sample in _tokenise(processor, skeleton)]
        self._cuts = _find_cuts(samples)
        self.tokens: dict[tuple[str, str, str], dict[int, tuple[int, ...]]] = {}
        for sample in samples:
            self._learn(sample)

    def exit(self, place: Place, literal: str, following: Place | None) -> Exit:
        return Exit(literal[: self._cuts[_edge(place, literal, following)]], following)

    def tail(self, incoming: tuple[Place, str] | None, place: Place) -> str:
        if incoming is None:
            return ""
        before, literal = incoming
        return literal[self._cuts[_edge(before, literal, place)] :]

    def _learn(self, sample: _Sample) -> None:
        tail, first = "", 0
        for value, (edge, following), start in zip(
            [0, *sample.values], sample.skeleton.edges, sample.literal_starts, strict=True
        ):
            part, literal, _ = edge
            cut = self._cuts[edge]
            last = len(sample.ids) if following is None else bisect_left(sample.starts, start + cut)
            tokens = tuple(sample.ids[first:last])
            known = self.tokens.setdefault((part, tail, _head_key(Exit(literal[:cut], following))), {})
            if known.setdefault(value, tokens) != tokens:
                raise CheckpointError(
                    f"tokenizer: {tail}{VALUES[part][value]}{literal[:cut]} has other tokens in another reply"
                )
            tail, first = literal[cut:], last


@dataclass(frozen=True)
class _Sample:
    skeleton: Skeleton
    values: list[int]  # by place
    literal_starts: list[int]
    ids: list[int]
    starts: list[int]  # the first character of each id
    inside: NDArray[np.bool_]  # for every position in the text, whether it lies within a token


def _tokenise(processor: Processor, skeleton: Skeleton) -> Iterator[_Sample]:
    """As many replies as make every place take every value, each beside others than in the reply before."""
    sizes = np.array([len(VALUES[place.part]) for place in skeleton.places])
    generator = np.random.default_rng(0)
    first, step = generator.integers(0, 256, len(sizes)), 1 + 2 * generator.integers(0, 128, len(sizes))
    for number in range(sizes.max()):
        values = ((first + number * step) % sizes).tolist()
        texts = [VALUES[place.part][value] for place, value in zip(skeleton.places, values, strict=True)]
        text, literal_starts = skeleton.fill(texts)
        ids, spans = processor.reply_tokens(text)
        inside = np.zeros(len(text) + 1, np.bool_)
        for start, end in spans:
            inside[start + 1 : end] = True
        yield _Sample(skeleton, values, literal_starts, ids, [start for start, _ in spans], inside)


def _find_cuts(samples: list[_Sample]) -> dict[tuple[str, str, str], int]:
    """For each kind of edge the last position in its literal that no sample has inside a token."""
    closed: dict[tuple[str, str, str], NDArray[np.bool_]] = {}
    for sample in samples:
        for (edge, _), start in zip(sample.skeleton.edges, sample.literal_starts, strict=True):
            inside = sample.inside[start : start + len(edge[1]) + 1]
            closed[edge] = closed[edge] | inside if edge in closed else inside
    for (_, literal, _), inside in closed.items():
        if inside.all():
            raise CheckpointError(f"tokenizer: {literal!r} is joined with what stands before and after it")
    return {edge: int(np.flatnonzero(~inside)[-1]) for edge, inside in closed.items()}


def _edge(place: Place, literal: str, following: Place | None) -> tuple[str, str, str]:
    return place.part, literal, "" if following is None else following.part


def _head_key(way: Exit) -> str:
    """Before the end the same text has one more token."""
    return way.head + HOLE if way.following is None else way.head


def _build_trie(learned: _Tokenisation, key: tuple[str, str, tuple[str, ...]]) -> Trie:
    part, tail, heads = key
    tokens = {
        Choice(value, number): sequence
        for number, head in enumerate(heads)
        for value, sequence in sorted(learned.tokens[part, tail, head].items())
    }
    try:
        return Trie(tokens)
    except ValueError as error:
        raise CheckpointError(f"tokenizer: {part} values after {tail!r}: {error}") from error


def _graph(
    skeletons: list[Skeleton],
) -> tuple[list[Place], dict[Place, list[tuple[str, Place | None]]], dict[Place, tuple[Place, str] | None]]:
    """All places, for each the literals that may follow and where they lead, and the (only) way that leads to it."""
    exits: dict[Place, dict[tuple[str, Place | None], None]] = {}
    incoming: dict[Place, tuple[Place, str] | None] = {START: None}
    for skeleton in skeletons:
        places = [START, *skeleton.places]
        for i, (place, literal) in enumerate(zip(places, skeleton.literals, strict=True)):
            following = places[i + 1] if i + 1 < len(places) else None
            exits.setdefault(place, {})[literal, following] = None
            if following is not None:
                incoming.setdefault(following, (place, literal))
    return list(exits), {place: list(ways) for place, ways in exits.items()}, incoming


def _templates(dimensions: int, steered: bool) -> list[str]:
    arms = dimensions // ROW
    return list(dict.fromkeys(reply_template(steered, arms=arms, wording=wording) for wording in WORDINGS))


def _skeletons(dimensions: int, rows: int | None, steered: bool) -> Iterator[Skeleton]:
    """Replies in whose parts, one part at a time, all that varies has varied."""
    counts = range(MAX_ROWS, 0, -1) if rows is None else (rows,)
    flat = rows is None or rows == 1
    for wording, template in enumerate(_templates(dimensions, steered)):
        for points in (range(MAX_TRACE_POINTS, 0, -1)) if not steered else (0,):
            yield _skeleton(template, wording, dimensions, points, counts[0], flat=False)
        for count in counts[1:]:
            yield _skeleton(template, wording, dimensions, MAX_TRACE_POINTS, count, flat=False)
        if flat:
            for points in (range(MAX_TRACE_POINTS, 0, -1)) if not steered else (0,):
                yield _skeleton(template, wording, dimensions, points, 1, flat=True)


def _samples(dimensions: int, rows: int | None, steered: bool) -> Iterator[Skeleton]:
    """Few that hold every kind of neighbourhood: three codes and two rows have the joints of any number."""
    for wording, template in enumerate(_templates(dimensions, steered)):
        yield _skeleton(template, wording, dimensions, MAX_TRACE_POINTS, min(rows or 2, 2), flat=False, codes=3)
        if rows is None or rows == 1:
            yield _skeleton(template, wording, dimensions, MAX_TRACE_POINTS, 1, flat=True, codes=3)


def _skeleton(
    template: str, wording: int, dimensions: int, points: int, rows: int, *, flat: bool, codes: int = DEPTH_TOKENS
) -> Skeleton:
    """A reply with `points` points in every trace and `rows` action rows, as training would write it."""
    depth = format_depth([HOLE] * codes).replace(f"<DEPTH_{HOLE}>", HOLE)  # type: ignore[list-item]
    trace = format_trace([(HOLE, HOLE)] * points)  # type: ignore[list-item]
    chunk = np.zeros(dimensions if flat else (rows, dimensions), int)
    action = format_actions(chunk).replace(SYMBOLS[0], HOLE)
    text = template.format(depth=depth, trace=trace, left_trace=trace, right_trace=trace, action=action)
    traces = template.count("trace}")
    places = [Place("depth", wording, 0, cell) for cell in range(codes if "{depth}" in template else 0)]
    places += [
        Place("trace", wording, block, point, axis)
        for block in range(traces)
        for point in range(points)
        for axis in range(2)
    ]
    places += [Place("action", wording, int(flat), row, column) for row in range(rows) for column in range(dimensions)]
    return Skeleton(text.split(HOLE), places)
