"""Expression texts made of the grammar's own tokens: each is parsed or refused in one line.

    python benchmarks/fuzz_expressions.py [--count 10000] [--seed 0]

Half of the texts are random tokens; the others are built by the grammar's rules and then, mostly, damaged in a place or
two. Status 1 and one line for each text that ends in another error than `ExpressionError`, in a message of several
lines, in a vector that is not finite or leaves its ranges, in a name that does not parse to the same expression, in a
file name that a file system does not take, or that one of the two readers accepts and the other refuses.
"""

from __future__ import annotations

import argparse
import collections
import sys

import numpy as np

from genaffect_jax.errors import ExpressionError
from genaffect_jax.expressions.action_units import CHANNELS, LOWEST, SIDED_UNITS, WIDTH
from genaffect_jax.expressions.grammar import check_expressions, parse_expressions
from genaffect_jax.expressions.vocabulary import vocabulary
from genaffect_jax.io.output import one_line

MARKS = [",", ";", ":", "*", "+", "=", "/", " ", "  ", "\t", "\n", '"']
NUMBERS = [
    "0",
    "1",
    "0.5",
    ".5",
    "2",
    "2.0001",
    "-1",
    "+0.3",
    "1e-3",
    "1e400",
    "-0",
    "5.",
    "00",
    "9" * 400,
    "0x1",
    "1_0",
]
NUMBERS += ["nan", "inf", "1e", "--1", "1.5.2", "\u0663", "\u00bd", "1" + "0" * 20]
WORDS = list(vocabulary())
UNITS = [f"AU{unit}" for unit in SIDED_UNITS] + list(CHANNELS)
FACES = [
    "neutral",
    "all",
    "NEUTRAL",
    "Joy",
    "afraid",
    "AU",
    "AU999",
    "joy2",
    "_",
    "jo\u0443",
    "\u0130",
    "\ufb01sh",
    "\u200bjoy",
]
GROUPS = ["joy/*", "zest/*", "sadness/sadness/*", "joy/joy/*", "nothing/*", "*/joy", "all/*", "joy/ *"]
FILES = [
    "a.png",
    '"a b.png"',
    '""',
    '"',
    "../x.jpg",
    "a.PNG",
    "\u00e9.webp",
    ".png",
    '"[red].png"',
    '"\x1b[31m.png"',
    "x" * 300 + ".png",
]
TOKENS = [*MARKS * 6, *NUMBERS * 2, *FACES * 2, *GROUPS, *FILES]


def pick(rng: np.random.Generator, pool: list[str]) -> str:
    """One of them."""
    return pool[int(rng.integers(len(pool)))]


def tokens(rng: np.random.Generator) -> str:
    """Up to 20 tokens in any order; now and then thousands."""
    count = int(rng.integers(0, 21)) if rng.random() < 0.995 else int(rng.integers(1000, 5000))
    pools = (TOKENS, WORDS, UNITS)
    return "".join(pick(rng, pools[int(rng.choice(3, p=[0.6, 0.2, 0.2]))]) for _ in range(count))


def settings(rng: np.random.Generator) -> str:
    """Channels with values that are mostly allowed."""
    named = [f"{pick(rng, UNITS)}={rng.random():.3g}" for _ in range(int(rng.integers(1, 6)))]
    return ",".join(named)


def blend(rng: np.random.Generator) -> str:
    """Terms, with weights on either side."""
    terms = []
    for _ in range(int(rng.integers(1, 5))):
        kind, word, weight = rng.random(), pick(rng, WORDS), f"{2 * rng.random():.4g}"
        terms.append(
            settings(rng)
            if kind < 0.2
            else f"{word}:{weight}"
            if kind < 0.5
            else f"{weight}*{word}"
            if kind < 0.8
            else word
        )
    return " + ".join(terms)


def request(rng: np.random.Generator) -> str:
    """A text by the rules, in which up to two places may be damaged."""
    items = [pick(rng, GROUPS[:3]) if rng.random() < 0.1 else blend(rng) for _ in range(int(rng.integers(1, 5)))]
    text = pick(rng, [",", ";", "; ", ", "]).join(items)
    for _ in range(int(rng.integers(0, 3))):
        place = int(rng.integers(len(text) + 1))
        cut = int(rng.integers(0, 4))
        text = text[:place] + (pick(rng, TOKENS) if rng.random() < 0.7 else "") + text[place + cut :]
    return text


def fault_of(text: str) -> tuple[str, str | None]:
    """`parsed` or `refused`, and what is wrong with that, if anything is."""
    checked = True
    try:
        check_expressions(text)
    except ExpressionError as e:
        checked = False
        if len(one_line(str(e))) > 1000:
            return "refused", f"a message of {len(str(e))} characters"
    except Exception as e:
        return "refused", f"{type(e).__name__}: {e}"
    try:
        found = parse_expressions(text)
    except ExpressionError as e:
        # The space of action units knows no images; everything else was checked before.
        return "refused", None if not checked or "image" in str(e) else f"was accepted before: {e}"
    except Exception as e:
        return "refused", f"{type(e).__name__}: {e}"
    if not checked:
        return "parsed", "was refused before"
    for expression in found:
        vector = expression.vector
        if vector.shape != (WIDTH,) or not np.isfinite(vector).all():
            return "parsed", f"{expression.name}: vector {vector}"
        if (vector < LOWEST - 1e-6).any() or (vector > 1 + 1e-6).any():
            return "parsed", f"{expression.name}: a channel outside its range"
        again = parse_expressions(expression.name)
        if len(again) != 1 or again[0].name != expression.name or not np.array_equal(again[0].vector, vector):
            return "parsed", f"{expression.name}: the name is another expression"
        if not 0 < len(expression.slug.encode()) <= 200:
            return "parsed", f"{expression.name}: file name {expression.slug!r}"
    return "parsed", None


def run(count: int, seed: int) -> tuple[collections.Counter[str], list[str]]:
    """Tries `count` texts; returns how many were parsed and refused, and one line for each fault."""
    rng = np.random.default_rng(seed)
    outcomes: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    for trial in range(count):
        text = tokens(rng) if trial % 2 else request(rng)
        outcome, fault = fault_of(text)
        outcomes[outcome] += 1
        if fault is not None:
            faults.append(one_line(f"trial {trial}, {text[:200]!r}: {fault}"))
    return outcomes, faults


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10000, help="texts to try")
    parser.add_argument("--seed", type=int, default=0, help="of the random texts")
    arguments = parser.parse_args()
    outcomes, faults = run(arguments.count, arguments.seed)
    print("\n".join(faults[:50]))
    print(f"{outcomes.total()} texts ({dict(outcomes)}): {len(faults)} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
