"""How an entrant looks in every plot: the same everywhere, told apart by the colour-blind too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """A colour, a marker and a line."""

    colour: str
    marker: str
    line: str = "-"


#: Okabe and Ito's palette; what does less than the case asks, and so is a floor, is grey and dashed.
LOOKS = {
    "llmdd": Look("#0072B2", "o"),
    "dictionaries": Look("#E69F00", "s"),
    "reference model": Look("#CC79A7", "D"),
    "vLLM BlockPool": Look("#009E73", "^"),
    "NIXL": Look("#D55E00", "^"),
    "NIXL, merged": Look("#CC79A7", "D"),
    "NIXL, writing": Look("#882255", "P"),
    "Mooncake": Look("#009E73", "v"),
    "shared memory + pipe": Look("#E69F00", "s"),
    "sockets": Look("#E69F00", "s"),
    "recomputed": Look("#882255", "X"),
    "dict": Look("#777777", "x", "--"),
    "empty call": Look("#777777", "x", "--"),
    "memcpy": Look("#777777", "x", "--"),
    "round trip": Look("#777777", "x", "--"),
}

#: For entrants that are not among those, in the order in which a plot has them: ways to use llmdd itself.
OTHERS = (
    Look("#56B4E9", "P", "-."),
    Look("#E69F00", "s", "-."),
    Look("#117733", "*", "-."),
    Look("#332288", "h", "-."),
)


def looks(names: list[str]) -> dict[str, Look]:
    """The look of each entrant of one plot."""
    unknown = [name for name in names if name not in LOOKS]
    others = {name: OTHERS[number % len(OTHERS)] for number, name in enumerate(unknown)}
    return {name: LOOKS.get(name) or others[name] for name in names}
