"""One base for every error that Plumb raises on purpose, and the sentence the user reads.

Each message names the field, the value and the remedy. Pages and commands catch `PlumbError` and show
`str(error)`; anything else is a bug and keeps its traceback.
"""


class PlumbError(Exception):
    """An error whose text is written for the person who reads it."""


class UserError(PlumbError):
    """Something the user gave cannot be used: a value, a file, a name."""


class NotFound(PlumbError):
    """What was asked for by id or name is not there."""


class Conflict(PlumbError):
    """The thing changed in the meantime, or a name is taken: nothing was written."""


class DatabaseBusy(PlumbError):
    """Another process held the database's write lock for longer than the timeout."""


class DatabaseTooNew(PlumbError):
    """The database was written by a newer Plumb than this one."""


class Forbidden(PlumbError):
    """Whoever asks may not do this; the text names the role that may, and who can give it."""
