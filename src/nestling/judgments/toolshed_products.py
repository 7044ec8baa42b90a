"""The products of the toolshed catalogue: its vocabulary, its dice, and how a title and a description are written."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from importlib import resources
from typing import Any, TypeVar

import yaml

# What a product can have, in the order in which shoppers and titles name it.
ATTRIBUTES = ("brand", "feature", "power", "size", "material", "colour", "finish", "kind", "pack")
# These are always in the title; of the others a long list is cut, and the description alone tells the rest.
TITLE_ALWAYS = ("brand", "kind")
TITLE_OTHERS = 4
# Slots of a title that frame another one.
FRAMED = {
    "-shade": ("shade", "- {}"),
    "-size": ("size", "- {}"),
    "with_feature": ("feature", "with {}"),
    "(pack)": ("pack", "({})"),
}
FEW_SHADES = 4

T = TypeVar("T")


class Dice:
    """Random numbers that are the same on every machine: only `Random.random`, whose stream Python promises to keep."""

    def __init__(self, seed: int) -> None:
        self._roll = random.Random(seed).random

    def below(self, n: int) -> int:
        """Return one of 0 to n - 1."""
        return int(self._roll() * n)

    def chance(self, share: float) -> bool:
        """Return True in this share of calls."""
        return self._roll() < share

    def pick(self, items: Sequence[T]) -> T:
        """Return one of the items."""
        return items[self.below(len(items))]

    def sample(self, items: Sequence[T], n: int) -> list[T]:
        """Return `n` of the items (all, if there are fewer), shuffled."""
        pool = list(items)
        return [pool.pop(self.below(len(pool))) for _ in range(min(n, len(pool)))]

    def noise(self) -> float:
        """Return a bell-shaped number from -1.5 to 1.5 with deviation 0.5: a sum of uniforms, so free of libm."""
        return self._roll() + self._roll() + self._roll() - 1.5


@dataclass(frozen=True)
class Vocabulary:
    """The words of toolshed.yaml (`texts`, the whole file), with every size and power spelled out."""

    types: Mapping[str, Mapping[str, Any]]
    options: Mapping[str, Mapping[str, list[str]]]
    """Attribute, then set name, to the values as titles write them."""
    asks: dict[str, list[str]]
    """A value as titles write it to the ways in which shoppers ask for it."""
    metric: dict[str, str]
    texts: Mapping[str, Any]

    @classmethod
    def load(cls) -> Vocabulary:
        """Read the vocabulary that comes with the package."""
        text = resources.files("nestling.judgments").joinpath("toolshed.yaml").read_text(encoding="utf-8")
        raw = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        sets = raw["sets"]
        options: dict[str, dict[str, list[str]]] = {name: dict(sets[name]) for name in ("material", "pack")}
        for name, shades in (("colour", raw["colours"]), ("finish", raw["finishes"])):
            options[name] = {"all": list(shades), "few": list(shades)[:FEW_SHADES]}
        asks = {**raw["colours"], **raw["finishes"], **raw["materials"], **raw["features"]}
        words = cls(raw["types"], options, asks, {}, raw)
        for name in ("size", "power"):
            options[name] = {}
            for group, measures in sets[name].items():
                ((unit, numbers),) = measures.items()
                options[name][group] = [words._measure(str(number), raw["units"][unit]) for number in numbers]
        for packs in options["pack"].values():
            asks.update({pack: [pack.lower().replace("-", " "), pack.lower()] for pack in packs})
        return words

    def _measure(self, number: str, forms: Mapping[str, Any]) -> str:
        """Return a measure as titles write it, and keep its other spellings and its metric form."""
        sides = number.split(" x ")
        written: str = " x ".join(forms["title"].format(side) for side in sides)
        ways = [" x ".join(form.format(side) for side in sides) for form in forms["ask"]]
        if len(sides) > 1:
            ways += [number.replace(" ", ""), number]
        elif "/" in number:
            ways.append(forms["ask"][0].format(f"{float(_fraction(number)):g}".removeprefix("0")))
        if "metric" in forms:
            factor, name = forms["metric"]
            amounts = [_fraction(side) * Fraction(str(factor)) for side in sides]
            if name == "mm" and min(amounts) >= 100:
                amounts, name = [amount / 10 for amount in amounts], "cm"
            plain = " x ".join(_rounded(amount) for amount in amounts)
            self.metric[written] = f"{plain} {name}"
            ways += [f"{plain}{name}".replace(" x ", "x"), f"{plain} {name}"]
        self.asks[written] = ways
        return written

    def ways(self, product: Product, attribute: str) -> list[str]:
        """Return the ways in which shoppers name what the product has for this attribute."""
        value = product.has[attribute]
        if attribute == "kind":
            return list(self.types[product.type]["kind"][value])
        return self.asks.get(value, [value.lower()])


def _fraction(number: str) -> Fraction:
    return sum((Fraction(part) for part in number.split("-")), Fraction(0))


def _rounded(amount: Fraction) -> str:
    """Return three digits or so, halves rounded up: exact arithmetic, so that no machine differs."""
    if amount >= 10:
        return str((2 * amount + 1) // 2)
    whole, tenth = divmod((20 * amount + 1) // 2, 10)
    return f"{whole}.{tenth}" if tenth else str(whole)


@dataclass(frozen=True, slots=True)
class Product:
    """One article of the catalogue; `has` maps an attribute's name to its value and lacks what does not apply."""

    id: str
    type: str
    has: Mapping[str, str]
    title: str = field(compare=False)
    description: str = field(compare=False)


def make_product(dice: Dice, words: Vocabulary, number: int, type_name: str, has: Mapping[str, str]) -> Product:
    """Write the title and the description of a product with these attributes."""
    entry = words.types[type_name]
    # A brand and a type share the letters of the model number, so that part numbers carry meaning.
    model = f"{has['brand'][:2].upper()}{entry['range'][:1]}-{dice.below(900) + 100}{dice.pick('ABKLX')}"
    title = _title(dice, words, entry, has, model)
    description = _description(dice, words, entry, has, model, title)
    return Product(f"p{number:06d}", type_name, has, title, description)


def _title(dice: Dice, words: Vocabulary, entry: Mapping[str, Any], has: Mapping[str, str], model: str) -> str:
    others = [name for name in ATTRIBUTES if name in has and name not in TITLE_ALWAYS]
    named = {*dice.sample(others, TITLE_OTHERS), *TITLE_ALWAYS}
    slots = {name: value for name, value in has.items() if name in named}
    if slots.get("size") in words.metric and dice.chance(0.15):
        slots["size"] = words.metric[slots["size"]]
    shades = [slots[name] for name in ("colour", "finish") if name in slots]
    if shades:
        slots |= {"shade": "/".join(shades), "in_shade": f"in {' and '.join(shades)}"}
    slots |= {slot: form.format(slots[name]) for slot, (name, form) in FRAMED.items() if name in slots}
    slots |= {"by_brand": f"by {has['brand']}", "model": model, "noun": dice.pick(entry["noun"])}
    # Shops like their house names: a quarter of the titles say the range and leave the plain noun out.
    if dice.chance(0.25):
        slots["noun"] = entry["range"]
    elif dice.chance(0.5):
        slots["range"] = entry["range"]
    pattern: str = dice.pick(words.texts["titles"])
    return " ".join(slots[slot] for slot in pattern.split() if slot in slots)


def _description(
    dice: Dice, words: Vocabulary, entry: Mapping[str, Any], has: Mapping[str, str], model: str, title: str
) -> str:
    texts, related = words.texts["descriptions"], words.types[entry["with"]]
    ask = dice.pick(entry["ask"])
    slots = {
        **has,
        "feature": has.get("feature", entry["range"]),
        "gain": dice.pick(words.asks[has["feature"]]) if "feature" in has else "dependable",
        "title": title,
        "model": model,
        "ask": ask,
        "a": "an" if ask[0] in "aeiou" else "a",
        "noun": dice.pick(entry["noun"]).lower(),
        "range": entry["range"],
        "need": dice.pick(entry["need"]),
        "use": dice.pick(words.texts["uses"][entry["dept"]]),
        "kindask": dice.pick(entry["kind"][has["kind"]]),
        "related": f"{related['range']} {related['noun'][0].lower()}",
        "years": dice.pick(("1", "2", "3", "5", "10")),
    }
    facts = [dice.pick(forms).format(has[name]) for name, forms in words.texts["facts"].items() if name in has]
    sentences = [dice.pick(texts["open"]), *dice.sample(texts["middle"], 2 + dice.below(3))]
    sentences += dice.sample(texts["close"], 1 + dice.below(3))
    lines = [sentence.format(**slots) for sentence in sentences]
    stated = "; ".join(facts)
    lines.insert(1 + dice.below(2), f"{stated[:1].upper()}{stated[1:]}. Brand {has['brand']}, type {has['kind']}.")
    if "feature" in has:
        lines.append(f"With {has['feature']}.")
    return " ".join(lines)
