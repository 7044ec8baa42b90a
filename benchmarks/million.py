"""A large catalogue for benchmarks: real titles, multiplied by changing numbers, brands and words."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

_NUMBER = re.compile(r"\d+(?:[./]\d+)*")


def multiplied(titles: Sequence[str], count: int, *, seed: int = 0) -> list[str]:
    """Return `count` distinct texts: the titles themselves, then variations of titles drawn at random.

    A variation has one to three changes: a number becomes one that another title has, the first word (as a rule the
    brand) becomes another title's, a word is dropped, or the last words of another title are added.
    """
    rng = random.Random(seed)
    distinct = list(dict.fromkeys(title for title in titles if title.strip()))
    numbers = sorted({number for title in distinct for number in _NUMBER.findall(title)}) or ["1"]
    found = dict.fromkeys(distinct[:count])
    while len(found) < count:
        text = rng.choice(distinct)
        for _ in range(rng.randint(1, 3)):
            text = _changed(text, rng, distinct, numbers)
        found.setdefault(text)
    return list(found)


def _changed(text: str, rng: random.Random, titles: Sequence[str], numbers: Sequence[str]) -> str:
    words = text.split()
    places = [n for n, word in enumerate(words) if _NUMBER.search(word)]
    kind = rng.random()
    if kind < 0.4 and places:
        place = rng.choice(places)
        words[place] = _NUMBER.sub(rng.choice(numbers), words[place], count=1)
    elif kind < 0.65:
        words[0] = rng.choice(titles).split()[0]
    elif kind < 0.85 and len(words) > 4:
        del words[rng.randrange(1, len(words))]
    else:
        words += rng.choice(titles).split()[-rng.randint(1, 3) :]
    return " ".join(words)
