"""A talk with a model of an endpoint, question by question."""

from __future__ import annotations

from collections.abc import Callable

from jobs.gpu.decoding import Sampling
from jobs.gpu.talks import Said, Talk, left_out
from jobs.runs import RunFolder
from jobs.settings import Settings
from storage.errors import UserError
from storage.speakers import Speaker

#: Requests to endpoints at once: a server that batches has work, one that doesn't is not swamped.
OUTSIDE_AT_ONCE = 8


def converse(
    settings: Settings,
    run: RunFolder,
    speaker: Speaker,
    talk: Talk,
    sampling: Sampling,
    tell: Callable[[Talk, Said], None],
    check: Callable[[], None],
    note: Callable[[str], None],
) -> Talk:
    """Answer all open questions of a talk; one that can't be asked gets a note, and the talk has failed.

    Args:
        tell: is told each answer at once, before it is among the talk's.
        check: is called while waiting; what it raises ends the work.

    Raises:
        OutsideError: the endpoint answers nobody.
    """
    from jobs.outside import ask, with_images

    while talk.open:
        check()
        try:
            found = ask(
                settings,
                speaker,
                with_images(run, talk.asked()),
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=sampling.seed,
                max_tokens=sampling.max_new_tokens,
                check=check,
            )
        except UserError as error:  # it says nothing about other prompts
            talk.failed = True
            note(left_out(talk, speaker.spelling, str(error)))
            continue
        said = Said(found.text, found.finish, found.tokens)
        tell(talk, said)
        talk.answers.append(said)
    return talk
