"""The queries of the toolshed catalogue: wishes put into the words, units and spellings that shoppers type."""

from __future__ import annotations

from collections.abc import Sequence

from nestling.judgments.toolshed_products import ATTRIBUTES, Dice, Product, Vocabulary

# Shares of queries, or of the words in them, that are written this way.
MISSPELLED = 0.2
SHUFFLED = 0.35
NICKNAME = 0.3
PLAIN_WORD = 0.2
# How often shoppers name each attribute, relative to each other.
NAMED = {
    "brand": 5, "feature": 4, "power": 5, "size": 8, "material": 5, "colour": 6, "finish": 6, "kind": 7, "pack": 1,
}  # fmt: skip
SOUNDS = (("ph", "f"), ("ck", "k"), ("ei", "ie"), ("ie", "ei"), ("er", "or"), ("au", "o"), ("sh", "ch"), ("c", "k"))


def wishes_of(dice: Dice, product: Product) -> list[str]:
    """Return the product's attributes shuffled, those that shoppers name most likely to come first."""
    urn = [name for name in ATTRIBUTES if name in product.has for _ in range(NAMED[name])]
    wishes: list[str] = []
    while urn:
        wishes.append(dice.pick(urn))
        urn = [name for name in urn if name != wishes[-1]]
    return wishes


def phrase(dice: Dice, words: Vocabulary, product: Product, wishes: Sequence[str]) -> str:
    """Return what a shopper types who wants the product's type with these of its attributes."""
    terms = {name: _term(dice, words, product, name) for name in ATTRIBUTES if name in wishes}
    what = _type_words(dice, words, product)
    order = list(terms)
    if dice.chance(SHUFFLED):
        order = dice.sample(order, len(order))
    cut = dice.below(len(order) + 1) if dice.chance(SHUFFLED) or what.startswith("something") else len(order)
    front, back = [terms[name] for name in order[:cut]], [terms[name] for name in order[cut:]]
    if back and order[cut] in ("feature", "colour", "finish") and dice.chance(0.4):
        back.insert(0, dice.pick(("w/", "with", "in", "-")))
    text = " ".join([*front, what, *back])
    if dice.chance(0.06):
        text += f" for {dice.pick(words.texts['uses'][words.types[product.type]['dept']])}"
    if dice.chance(MISSPELLED):
        text = _misspelled(dice, text)
    return text.title() if dice.chance(0.04) else text


def _term(dice: Dice, words: Vocabulary, product: Product, attribute: str) -> str:
    value = product.has[attribute].lower()
    if attribute == "brand":
        return value[:4] if dice.chance(NICKNAME) else value
    return value if dice.chance(PLAIN_WORD) else dice.pick(words.ways(product, attribute))


def _type_words(dice: Dice, words: Vocabulary, product: Product) -> str:
    entry = words.types[product.type]
    way = dice.below(20)
    if way < 2:
        return str(dice.pick(entry["need"]))
    if way < 4:
        return str(entry["range"]).lower()
    name = str(dice.pick(entry["noun"])).lower() if way < 9 else str(dice.pick(entry["ask"]))
    return f"{name}s" if dice.chance(0.15) and not name.endswith("s") else name


def _misspelled(dice: Dice, text: str) -> str:
    """Return the text with one slip in one of its longer words: swapped, lost, doubled or written by ear."""
    parts = text.split(" ")
    long = [i for i, part in enumerate(parts) if len(part) >= 5 and part.isalpha()]
    if not long:
        return text
    at = dice.pick(long)
    word = parts[at]
    i = 1 + dice.below(len(word) - 2)
    by_ear = [pair for pair in SOUNDS if pair[0] in word[1:]]
    slip = dice.below(4 if by_ear else 3)
    if slip == 0:
        parts[at] = word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    elif slip == 1:
        parts[at] = word[:i] + word[i + 1 :]
    elif slip == 2:
        parts[at] = word[:i] + word[i] + word[i:]
    else:
        parts[at] = word[0] + word[1:].replace(*dice.pick(by_ear), 1)
    return " ".join(parts)
