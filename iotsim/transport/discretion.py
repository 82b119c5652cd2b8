"""Errors whose traceback shows no secret, even where somebody prints its local variables."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any, ParamSpec, TypeVar

from iotsim.errors import IotsimError

STORE_KEY_ENV = "IOTSIM_STORE_KEY"

P = ParamSpec("P")
R = TypeVar("R")


def discreet(call: Callable[P, R]) -> Callable[P, R]:
    """Return a call that takes secrets, and whose errors hold none of its frames; or a coroutine.

    Of an error of ours only the text is left: it says all. What else may be raised, a mistake of
    iotsim's or of the caller's, keeps its traceback.
    """
    if iscoroutinefunction(call):
        later: Callable[P, R] = _discreet_later(call)
        return later

    @wraps(call)
    def guarded(*given: P.args, **options: P.kwargs) -> R:
        try:
            return call(*given, **options)
        except IotsimError as error:
            given, options = (), {}  # type: ignore[assignment]  # this frame stays in the traceback
            error.__context__ = None
            raise error.with_traceback(None) from None
        except BaseException:  # such as a TypeError for an option that there is not
            given, options = (), {}  # type: ignore[assignment]
            raise

    return guarded


def _discreet_later(call: Callable[..., Any]) -> Any:
    @wraps(call)
    async def guarded(*given: Any, **options: Any) -> Any:
        try:
            return await call(*given, **options)
        except IotsimError as error:
            given, options = (), {}
            error.__context__ = None
            raise error.with_traceback(None) from None
        except BaseException:
            given, options = (), {}
            raise

    return guarded


def environment_for_children() -> dict[str, str]:
    """Return the environment without what only we should know."""
    return {name: value for name, value in os.environ.items() if name != STORE_KEY_ENV}


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
