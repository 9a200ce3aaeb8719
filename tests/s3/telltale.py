"""What can be got out of an exception by whoever has it."""

from __future__ import annotations

import pickle
import traceback

from aiockpt.s3.scrub import chain


def told(error: BaseException) -> str:
    """Everything that can be got out of an exception and its causes by printing and pickling."""
    parts = traceback.format_exception(error)
    for one in chain(error):
        parts += [str(one), repr(one), repr(one.__dict__), repr(one.args)]
        parts += [repr(vars(value)) for value in vars(one).values() if hasattr(value, "__dict__")]
        try:
            parts.append(pickle.dumps(one).decode("latin-1"))
        except (TypeError, AttributeError, pickle.PicklingError):
            continue  # what cannot be pickled tells nobody
    return "\n".join(parts)
