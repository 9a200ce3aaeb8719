"""Exit codes: what scripts can rely on. Pure.

====  ==================================================================================================
code  meaning
====  ==================================================================================================
0     done, and where the command asks a question the answer is yes
1     the answer is no: ``verify`` found damage, ``diff`` found differences
2     the command line makes no sense, or a setting that cannot work (no credentials, an unknown profile)
3     there is no such bucket, checkpoint, object or file
4     the service refuses the credentials, or the local disk the access
5     anything else failed: service, network, disk, metadata that is damaged or refused
130   Ctrl-C
====  ==================================================================================================
"""

from __future__ import annotations

from aiockpt.errors import AiockptError, ConfigError

YES, NO, USAGE, NOT_FOUND, DENIED, FAILED, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130

#: The first that fits decides.
_CODES: tuple[tuple[type[Exception], int], ...] = (
    (ConfigError, USAGE),
    (FileNotFoundError, NOT_FOUND),
    (PermissionError, DENIED),
)

#: What is reported in one line; anything else is a bug, whose traceback we want to see.
EXPECTED = (AiockptError, OSError)


def exit_code(error: Exception) -> int:
    """The exit code for a failure."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)


def describe(error: Exception) -> str:
    """A failure in one line."""
    return " ".join(str(error).split()) or type(error).__name__
