"""Text from outside, made harmless, names from outside, held against lists, and counts in words.

Text is reduced to what informs: words of the Latin script in lower case, each once. What else a
text may hold costs tokens, imitates markup or pushes the model towards an answer, so it does not
pass: other scripts, symbols, digits alone, letters alone, repetition. The labels are upper-case
letters: no text can hold one. A desk whose news come in another script changes `harmless` and the
prompt's version.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

WORD_CHARACTERS = 20
"""Longer words are cut: few are, and a text without spaces is no word."""
_APOSTROPHES = re.compile("['\u2018\u2019\u02bc`]")
_WORD = re.compile(r"[a-z0-9]+")
_REPEATED = re.compile(r"(.+?)\1{2,}")
_UNSEEN = {"Cf", "Mn", "Me"}
"""Unicode categories that change how a text looks and not what it says: they go without a gap."""

PATTERNS = (
    "bullish_engulfing",
    "bearish_engulfing",
    "engulfing",
    "hammer",
    "inverted_hammer",
    "hanging_man",
    "shooting_star",
    "morning_star",
    "evening_star",
    "piercing",
    "dark_cloud_cover",
    "harami",
    "doji",
    "dragonfly_doji",
    "gravestone_doji",
    "marubozu",
    "three_white_soldiers",
    "three_black_crows",
    "tweezer_bottom",
    "tweezer_top",
    "double_bottom",
    "double_top",
    "triple_bottom",
    "triple_top",
    "head_and_shoulders",
    "inverse_head_and_shoulders",
    "cup_handle",
    "cup_and_handle",
    "rounding_bottom",
    "flag",
    "bull_flag",
    "bear_flag",
    "pennant",
    "triangle_wedge",
    "triangle",
    "ascending_triangle",
    "descending_triangle",
    "symmetrical_triangle",
    "wedge",
    "rising_wedge",
    "falling_wedge",
    "channel",
    "breakout",
)
"""Patterns that a prompt names outside of its text part."""
_PATTERN_OF = {name.replace("_", ""): name for name in PATTERNS}

_COINS = """
    BTC ETH BNB SOL XRP ADA DOGE AVAX DOT LINK BCH LTC TRX MATIC POL UNI ATOM ETC XLM NEAR
    APT ARB OP SUI INJ FIL ICP HBAR VET ALGO AAVE GRT RUNE FTM SAND MANA AXS EOS XTZ THETA
    EGLD KAVA CHZ ENJ ZEC DASH XMR NEO IOTA CRV MKR SNX COMP LDO STX TIA SEI PEPE SHIB WIF
    BONK FLOKI JUP TON KAS FET WLD ENA ONDO 1INCH BAT ZRX QTUM ONT WAVES KSM GALA IMX DYDX
    BLUR PNUT PENGU
"""
COINS = frozenset(_COINS.split())
"""Coins that a prompt names; any other is `OTHER_COIN`."""
OTHER_COIN = "coin"
QUOTES = ("USDT", "USDC", "FDUSD", "BUSD", "USD", "EUR", "GBP", "TRY", "BRL", "BTC", "ETH", "BNB")
"""What pairs are quoted in that are written in one word; the first that fits."""


@lru_cache(maxsize=256)
def harmless(text: str | None, limit: int) -> str:
    """The words of a text from outside, at most `limit` characters; empty when nothing is left.

    Compatibility forms are made plain first (NFKD, so that a fullwidth letter is a letter), then
    what is unseen goes, and then all but words. Making harmless what is harmless changes nothing.
    """
    if not text:
        return ""
    plain = "".join(
        character
        for character in unicodedata.normalize("NFKD", text)
        if unicodedata.category(character) not in _UNSEEN
    )
    words = _WORD.findall(_APOSTROPHES.sub("", plain).lower())
    said = dict.fromkeys(kept for word in words if (kept := _said_once(word)))
    return _fitting(said, limit)


@lru_cache(maxsize=1024)
def coin_of(symbol: str) -> str:
    """The coin of a pair, whatever it is quoted in, when it is one of `COINS`."""
    coin, _ = parts_of(symbol)
    return coin if coin in COINS else OTHER_COIN


def parts_of(symbol: str) -> tuple[str, str]:
    """Coin and quote of a pair in capitals: of BTC/USDT:USDT, btc-usdt and BTCUSDT BTC and USDT.
    Written in one word with a quote that is none of `QUOTES`, it is all coin."""
    base, slash, quoted = symbol.upper().partition("/")
    quote = "" if slash else next((name for name in QUOTES if base.endswith(name)), "")
    return base.removesuffix(quote).rstrip("-_"), quoted.partition(":")[0] or quote


@lru_cache(maxsize=1024)
def pattern_of(name: str | None) -> tuple[str, str]:
    """What of a pattern's name is of `PATTERNS`, however it is spelt, and the rest, which is text.
    Several names are separated by commas."""
    parts = [part.strip() for part in (name or "").split(",")]
    keys = [re.sub(r"[\s_-]", "", part).lower() for part in parts]
    patterns = [_PATTERN_OF[key] for key in keys if key in _PATTERN_OF]
    rest = [part for part, key in zip(parts, keys, strict=True) if key not in _PATTERN_OF]
    return " ".join(dict.fromkeys(patterns)), ", ".join(rest)


def _said_once(word: str) -> str:
    """A word without repetition; empty when that leaves less than two different letters."""
    word = word[:WORD_CHARACTERS]
    while (shorter := _REPEATED.sub(r"\1", word)) != word:
        word = shorter
    letters = {character for character in word if character.isalpha()}
    return word if len(letters) > 1 else ""


def _fitting(words: dict[str, None], limit: int) -> str:
    """As many of the words as fit, in their order."""
    text = ""
    for word in words:
        longer = f"{text} {word}".lstrip()
        if len(longer) > limit:
            break
        text = longer
    return text


def counted(number: int, thing: str, things: str = "") -> str:
    """`1 row`, `2,000 rows`: `things` where the plural is more than an s, as in "orders were"."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"
