"""Whether an answer follows an instruction: the 25 types of IFEval (pure).

Zhou et al. 2023 (arXiv 2311.07911), table 4, and google-research/instruction_following_eval, whose choices are
kept even where another reading is as good (what counts as a paragraph, a highlight, a word). Three things
differ: sentences are counted without NLTK (ifeval_text.py); languages are detected with a fixed seed; and where
a sign that is no letter is to be counted (# or !, two prompts), it is, whereas the official check draws a
letter at random. Keywords are taken literally, which for the official file is the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from jobs.benchmarks.ifeval_text import count_capital_words, count_sentences, count_words, language_of

Arguments = Mapping[str, Any]
Rule = Callable[[str, Arguments], bool]

_OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def _compared(number: int, relation: Any, wanted: Any) -> bool:
    if relation not in ("at least", "less than"):
        raise ValueError(f"the relation {relation!r}; it must be 'at least' or 'less than'")
    return number >= int(wanted) if relation == "at least" else number < int(wanted)


# keywords ----------------------------------------------------------------------------------------------------


def _existence(answer: str, given: Arguments) -> bool:
    return all(re.search(re.escape(word), answer, re.IGNORECASE) for word in given["keywords"])


def _frequency(answer: str, given: Arguments) -> bool:
    found = len(re.findall(re.escape(given["keyword"].strip()), answer, re.IGNORECASE))
    return _compared(found, given["relation"], given["frequency"])


def _forbidden(answer: str, given: Arguments) -> bool:
    words = given["forbidden_words"]
    return not any(re.search(rf"\b{re.escape(word)}\b", answer, re.IGNORECASE) for word in words)


def _letters(answer: str, given: Arguments) -> bool:
    found = answer.lower().count(given["letter"].strip().lower())
    return _compared(found, given["let_relation"], given["let_frequency"])


# language and case -------------------------------------------------------------------------------------------


def _language(answer: str, given: Arguments) -> bool:
    return language_of(answer) in (given["language"], None)  # what has no language at all is let pass, as there


def _capital(answer: str, given: Arguments) -> bool:
    return answer.isupper() and language_of(answer) in ("en", None)


def _lowercase(answer: str, given: Arguments) -> bool:
    return answer.islower() and language_of(answer) in ("en", None)


def _capital_words(answer: str, given: Arguments) -> bool:
    return _compared(count_capital_words(answer), given["capital_relation"], given["capital_frequency"])


# lengths -----------------------------------------------------------------------------------------------------


def _sentences(answer: str, given: Arguments) -> bool:
    return _compared(count_sentences(answer), given["relation"], given["num_sentences"])


def _words(answer: str, given: Arguments) -> bool:
    return _compared(count_words(answer), given["relation"], given["num_words"])


def _paragraphs(answer: str, given: Arguments) -> bool:
    """Parts between `***`; an empty one may stand at the ends alone."""
    parts = [part.strip() for part in answer.split("***")]
    if not all(parts[1:-1]):
        return False
    return sum(map(bool, parts)) == int(given["num_paragraphs"])


def _first_word(answer: str, given: Arguments) -> bool:
    """Parts between empty lines: their number, and the first word of one of them."""
    parts = answer.split("\n\n")
    number = sum(bool(part.strip()) for part in parts)
    place = int(given["nth_paragraph"])
    words = parts[place - 1].split() if place <= number else []
    if not words:
        return False
    word = re.split(r"[.,?!'\"]", words[0].lstrip("'").lstrip('"').lower(), maxsplit=1)[0]
    return number == int(given["num_paragraphs"]) and word == str(given["first_word"]).lower()


# content and form --------------------------------------------------------------------------------------------


def _placeholders(answer: str, given: Arguments) -> bool:
    """[…] within a line."""
    found = 0
    for line in answer.split("\n"):
        place = line.find("[")
        while place >= 0 and (end := line.find("]", place)) >= 0:
            found += 1
            place = line.find("[", end)
    return found >= int(given["num_placeholders"])


_POSTSCRIPTS = {"P.P.S": re.compile(r"p\.\s?p\.\s?s"), "P.S.": re.compile(r"p\.\s?s\.")}


def _postscript(answer: str, given: Arguments) -> bool:
    marker = given["postscript_marker"].strip()
    pattern = _POSTSCRIPTS.get(marker) or re.compile(re.escape(marker.lower()))
    return bool(pattern.search(answer.lower()))


_BULLETS = (re.compile(r"^[^\S\n]*\*[^*].*$", re.MULTILINE), re.compile(r"^[^\S\n]*-.*$", re.MULTILINE))


def _bullets(answer: str, given: Arguments) -> bool:
    return sum(len(pattern.findall(answer)) for pattern in _BULLETS) == int(given["num_bullets"])


def _constrained(answer: str, given: Arguments) -> bool:
    return any(option in answer for option in _OPTIONS)


_ONE_STAR, _TWO_STARS = re.compile(r"\*([^\n*]*)\*"), re.compile(r"\*\*([^\n*]*)\*\*")


def _highlights(answer: str, given: Arguments) -> bool:
    """*…* and **…** that hold something; the official patterns see the inside of the latter but once."""
    found = sum(bool(inside.strip()) for pattern in (_ONE_STAR, _TWO_STARS) for inside in pattern.findall(answer))
    return found >= int(given["num_highlights"])


def _sections(answer: str, given: Arguments) -> bool:
    """The splitter with a number: Section 1, SECTION 2."""
    found = len(re.findall(re.escape(given["section_spliter"].strip()) + r"\s?\d+", answer))
    return found >= int(given["num_sections"])


def _json(answer: str, given: Arguments) -> bool:
    text = answer.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(answer: str, given: Arguments) -> bool:
    """<<…>> within a line."""
    for line in answer.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if start >= 0 and start + 2 < end and line[start:end].lstrip("<").rstrip(">").strip():
            return True
    return False


def _two_responses(answer: str, given: Arguments) -> bool:
    """Two parts that differ, with ****** between them."""
    parts = [part.strip() for part in answer.split("******")]
    held = [part for part in parts if part]
    return all(parts[1:-1]) and len(held) == 2 and held[0] != held[1]


def _repeats(answer: str, given: Arguments) -> bool:
    return answer.strip().lower().startswith(given["prompt_to_repeat"].strip().lower())


def _ends(answer: str, given: Arguments) -> bool:
    return answer.strip().strip('"').lower().endswith(given["end_phrase"].strip().lower())


def _no_comma(answer: str, given: Arguments) -> bool:
    return "," not in answer


def _quoted(answer: str, given: Arguments) -> bool:
    text = answer.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


#: By the name that the official file gives each type, with the names of its arguments.
RULES: dict[str, tuple[Rule, tuple[str, ...]]] = {
    "keywords:existence": (_existence, ("keywords",)),
    "keywords:frequency": (_frequency, ("keyword", "frequency", "relation")),
    "keywords:forbidden_words": (_forbidden, ("forbidden_words",)),
    "keywords:letter_frequency": (_letters, ("letter", "let_frequency", "let_relation")),
    "language:response_language": (_language, ("language",)),
    "length_constraints:number_sentences": (_sentences, ("num_sentences", "relation")),
    "length_constraints:number_paragraphs": (_paragraphs, ("num_paragraphs",)),
    "length_constraints:number_words": (_words, ("num_words", "relation")),
    "length_constraints:nth_paragraph_first_word": (
        _first_word,
        ("num_paragraphs", "nth_paragraph", "first_word"),
    ),
    "detectable_content:number_placeholders": (_placeholders, ("num_placeholders",)),
    "detectable_content:postscript": (_postscript, ("postscript_marker",)),
    "detectable_format:number_bullet_lists": (_bullets, ("num_bullets",)),
    "detectable_format:constrained_response": (_constrained, ()),
    "detectable_format:number_highlighted_sections": (_highlights, ("num_highlights",)),
    "detectable_format:multiple_sections": (_sections, ("section_spliter", "num_sections")),
    "detectable_format:json_format": (_json, ()),
    "detectable_format:title": (_title, ()),
    "combination:two_responses": (_two_responses, ()),
    "combination:repeat_prompt": (_repeats, ("prompt_to_repeat",)),
    "startend:end_checker": (_ends, ("end_phrase",)),
    "change_case:capital_word_frequency": (_capital_words, ("capital_frequency", "capital_relation")),
    "change_case:english_capital": (_capital, ()),
    "change_case:english_lowercase": (_lowercase, ()),
    "punctuation:no_comma": (_no_comma, ()),
    "startend:quotation": (_quoted, ()),
}


def follows(answer: str, instruction: str, given: Arguments) -> bool:
    """Strictly: the answer as it is; an empty one follows nothing.

    Raises:
        KeyError: there is no such instruction, or it lacks an argument.
    """
    return bool(answer.strip()) and RULES[instruction][0](answer, given)


def follows_loosely(answer: str, instruction: str, given: Arguments) -> bool:
    """Whether the answer follows once asterisks are taken out, or its first or last line, or several of these."""
    return any(follows(one, instruction, given) for one in variants(answer))


def variants(answer: str) -> tuple[str, ...]:
    """The eight texts that count loosely, the answer itself first."""
    rows = answer.split("\n")
    cut = ["\n".join(part).strip() for part in (rows[1:], rows[:-1], rows[1:-1])]
    plain = (answer, *cut)
    return tuple(dict.fromkeys((*plain, *(one.replace("*", "") for one in plain))))
