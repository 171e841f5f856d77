"""Sentences, words and languages, as IFEval's rules count them (pure; every rule takes time linear in the text).

IFEval counts sentences with NLTK's Punkt, whose trained data is not on PyPI as a package of its own. The rule here
is Punkt's, with lists in place of what it learnt: a full stop, ? or ! ends a sentence where a space and a word, or
a bracket, quote or mark follows; but a full stop does not after an abbreviation or an initial, nor after a number
or dots where the next word is in lower case. docs/log.md tells how often both count the same.
"""

from __future__ import annotations

import re
import threading
from functools import cache
from typing import Any

_END = re.compile(r"[.?!](?=([)\";}\]*:@'({\[‘’“”«»?!])|\s+(\S+))")
_CLOSING = re.compile(r"[\"')\]}]+(?=\s|--|$)")
_OPENING = "\"'([{*_#“‘«—-"
_INITIAL = re.compile(r"[^\W\d]")
_NUMBER = re.compile(r"-?[\d.,]*\d[\d.,]*")
_LOOK_BACK = 40  # characters: longer ones are no abbreviation

# Titles; forms of companies; months and days; what stands in references and addresses; states. Not those that are
# words, too, and often end a sentence (sun, no, mass, miss); nor etc, al, e.g and i.e, which Punkt never learnt.
_KNOWN = """
mr mrs ms dr prof rev hon gen col lt capt cpt sgt maj adm sen rep gov pres st messrs jr sr ph.d
inc corp ltd co bros cos jan feb mar apr jun jul aug sep sept oct nov dec tue tues wed thu thur thurs fri
vs viz approx nos vol pp ed eds fig figs dept est ext avg ft mt ave blvd rd hwy apt
ala ariz ark calif colo conn fla ga ind kan ky md mich minn mont neb nev okla pa tenn tex va vt wis wyo
"""
_BEGINNING = """
the this that these those there he she it we you they i his her its our their my your in on at for from with
as if when while after before although though because since but and however so then thus still yet both some
many most all each one what who why how where instead meanwhile moreover nevertheless indeed finally also
another
"""
_ABBREVIATIONS, _STARTERS = frozenset(_KNOWN.split()), frozenset(_BEGINNING.split())
_LETTERS = re.compile(r"(?!e\.g|i\.e)(?:[^\W\d]\.)+[^\W\d]")  # U.S, J.K


def count_sentences(text: str) -> int:
    """How many sentences a text has; 0 where it has none."""
    found, start = 0, 0
    for match in _END.finditer(text):
        if match[0] == "." and not _stops(text[max(0, match.start() - _LOOK_BACK) : match.start()], match[2]):
            continue
        found += _holds(text, start, match.end())
        start = match.end()
    return found + _holds(text, start, len(text))


def _holds(text: str, start: int, end: int) -> int:
    """1 where this piece is a sentence, 0 where it only closes the one before."""
    piece = text[start:end].strip()
    closing = _CLOSING.match(piece) if start else None
    return int(bool(piece[closing.end() :].strip() if closing else piece))


def _stops(before: str, following: str | None) -> bool:
    """Whether a full stop ends a sentence. `before`: the text up to it; `following`: what comes after a space."""
    last = before.split()[-1] if before and not before[-1].isspace() else ""
    word = last.lstrip(_OPENING).lower()
    if following is None:
        return not word.endswith(".")
    following_word = following.rstrip(".,;:!?\"')]}*_")
    lower = following_word[:1].islower()
    if not word or word.endswith("."):  # dots
        return not lower and following_word.lower() in _STARTERS
    if _NUMBER.fullmatch(word):
        return not lower
    if _INITIAL.fullmatch(word):
        return not lower and (not following_word[:1].isupper() or following_word.lower() in _STARTERS)
    if word in _ABBREVIATIONS or word.split("-")[-1] in _ABBREVIATIONS or _LETTERS.fullmatch(word):
        return following_word[:1].isupper() and following_word.lower() in _STARTERS
    return True


_WORD = re.compile(r"\w+")


def count_words(text: str) -> int:
    """Runs of letters, digits and underscores, as IFEval counts words."""
    return len(_WORD.findall(text))


# What NLTK's word_tokenize parts words at (the Treebank's rules), as far as capitals go.
_APART = re.compile(r"[\s«»“”‘’„`\"\[\](){}<>;@#$%&?!*‒–—―]|--+|\.{2,}|[:,](?!\d)")
_CLITIC = re.compile(r"(?<=[^'])('S|'M|'D|'LL|'RE|'VE|N'T)$", re.IGNORECASE)
_TWO_IN_ONE = frozenset({"CANNOT", "GIMME", "GONNA", "GOTTA", "LEMME", "WANNA"})


def count_capital_words(text: str) -> int:
    """Words whose letters are all capitals; a hyphened word is one, DON'T and IT'S are two, I'm is one."""
    found = 0
    for word in _APART.split(text):
        part = _CLITIC.search(word)
        if part:
            found += word[: part.start()].isupper() + part[0].isupper()
        elif word.isupper():
            found += 2 if word in _TWO_IN_ONE else 1
    return found


_DETECTING = threading.Lock()


@cache
def _detector() -> Any:
    """langdetect, seeded: by itself it draws anew each time, and short texts change their language."""
    import langdetect  # slow to load, and not asked for by most evaluations

    langdetect.DetectorFactory.seed = 0
    return langdetect


def language_of(text: str) -> str | None:
    """The language by its ISO 639-1 code, as langdetect guesses it; None where there is nothing to go by."""
    with _DETECTING:  # it loads its profiles at the first call
        detector = _detector()
        try:
            return str(detector.detect(text))
        except detector.LangDetectException:
            return None
