"""What was asked, to be asked otherwise: a question with its images, and a conversation cut from a question on."""

from __future__ import annotations

from dataclasses import dataclass

from storage import chat_edits
from storage.chats import get_conversation, text_of
from storage.errors import NotFound
from storage.images import get_images, image_path
from workbench.context import Context


@dataclass(frozen=True)
class Question:
    """A question as it can be edited.

    Attributes:
        files: paths of its images; the same file sent again is the same image.
    """

    text: str
    files: list[str]


def question(context: Context, user: str, conversation_id: int, turn_id: int) -> Question:
    """Raises NotFound where there is no such question of this user."""
    with context.database() as db:
        found = next(
            (
                turn
                for turn in get_conversation(db, conversation_id, user).turns
                if turn.id == turn_id and turn.role == "user"
            ),
            None,
        )
        if found is None:
            raise NotFound("This question is not there any more; open the conversation again.")
        sha256s = [part["image"] for part in found.content if part["type"] == "image"]
        images = get_images(db, sha256s)
    return Question(text_of(found.content), [str(image_path(context.folder, images[one])) for one in sha256s])


def cut_from(context: Context, user: str, conversation_id: int, turn_id: int) -> None:
    """Delete a question with all that follows, and the votes on it; undoable.

    Raises:
        NotFound: there is no such question of this user.
        UserError: the conversation is a contest's.
        Conflict: others have voted on what would go.
    """
    with context.database() as db:
        chat_edits.cut_from(db, user, conversation_id, turn_id)
