"""Errors whose traceback shows no secret, even where somebody prints its local variables."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from iotsim.errors import IotsimError

P = ParamSpec("P")
R = TypeVar("R")


def discreet(call: Callable[P, R]) -> Callable[P, R]:
    """Return a call that takes secrets, and whose errors hold none of its frames.

    Of an error of ours only the text is left: it says all. What else may be raised, a mistake of
    iotsim's or of the caller's, keeps its traceback.
    """

    @wraps(call)
    def guarded(*given: P.args, **options: P.kwargs) -> R:
        try:
            return call(*given, **options)
        except IotsimError as error:
            given, options = (), {}  # type: ignore[assignment]  # this frame stays in the traceback
            error.__context__ = None
            raise error.with_traceback(None) from None

    return guarded


class Hidden(dict[str, Any]):
    """A dict that shows its keys alone.

    Examples
    --------
    >>> Hidden(password="s3cret")
    <password>
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{', '.join(self)}>"
