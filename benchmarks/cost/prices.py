"""What an hour of a machine costs: a dated table with its sources (prices.json), and what a user adds to it.

A price is a range, from the cheapest offer of its source to the dearest; a price that the user gives is one number. No
price is ever made up: a machine without one has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from pydantic import ConfigDict

from sovit.errors import ConfigError
from sovit.jsonio import STRICT, from_dict, read_json

SCHEMA_VERSION: Final = 1
_MOST_USD: Final = 1_000_000  # for an hour
PUBLISHED: Final = Path(__file__).with_name("prices.json")


@dataclass(frozen=True)
class Range:
    """US dollars for an hour, from the lowest offer to the highest; both the same where there is one price."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Price:
    """A machine's price. `names` are what drivers and systems call it; "" for a date, terms or url nobody gave."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    machine: str
    names: tuple[str, ...]
    usd_per_hour: Range
    source: str
    date: str = ""
    terms: str = ""
    url: str = ""

    def is_of(self, names: Sequence[str]) -> bool:
        """Whether this is the price of a machine that goes by these names."""
        return any(same_name(one, other) for one in names for other in self.names)


@dataclass(frozen=True, kw_only=True)
class _File:
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    schema_version: int
    prices: tuple[Price, ...]


def read_prices(path: Path = PUBLISHED) -> tuple[Price, ...]:
    """The prices in a file. Raises `ConfigError` for a file that is none, and for a price that makes no sense."""
    file = from_dict(_File, read_json(path), str(path))
    if file.schema_version != SCHEMA_VERSION:
        raise ConfigError(f"{path} has schema_version {file.schema_version}, known is {SCHEMA_VERSION}.")
    seen: set[str] = set()
    for price in file.prices:
        low, high = price.usd_per_hour.low, price.usd_per_hour.high
        if not 0 < low <= high <= _MOST_USD:
            raise ConfigError(
                f"{path}: the price of {price.machine}, {low} to {high}, must be a range above 0, and at most "
                f"{_MOST_USD:,}."
            )
        if not price.names or not price.source.strip():
            raise ConfigError(f"{path}: the price of {price.machine} must say whose it is (names) and its source.")
        if price.url and not price.url.startswith(("https://", "http://")):
            raise ConfigError(f"{path}: the url of {price.machine} must begin with https:// or http://.")
        names = {_folded(name) for name in price.names}
        if seen & names:
            raise ConfigError(f"{path} has two prices of {min(seen & names)}.")
        seen |= names
    return file.prices


def parse_price(text: str) -> Price:
    """`NAME=USD_PER_HOUR` from the command line."""
    name, equals, number = text.rpartition("=")
    name = name.strip()
    try:
        usd = float(number)
    except ValueError:
        usd = math.nan
    if not (equals and name and 0 < usd <= _MOST_USD):
        raise ConfigError(f"--price {text!r} must be NAME=USD_PER_HOUR with a number above 0, as in 'AMD EPYC=0.10'.")
    return Price(machine=name, names=(name,), usd_per_hour=Range(usd, usd), source="given by the user")


def price_of(names: Sequence[str], prices: Sequence[Price]) -> Price | None:
    """The first price of a machine that goes by these names."""
    return next((price for price in prices if price.is_of(names)), None)


def same_name(one: str, other: str) -> bool:
    """Whether two names are the same machine's: spaces and case do not matter."""
    return _folded(one) == _folded(other)


def _folded(name: str) -> str:
    return " ".join(name.split()).casefold()
