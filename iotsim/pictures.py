"""`result.plot`: the readings when it is called, and other pictures by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from iotsim.registry import door

if TYPE_CHECKING:
    from iotsim.result import Result
    from iotsim.units import Duration


class Pictures:
    """Draws a result with matplotlib: call it for the readings, or choose another picture.

    Parameters
    ----------
    result : Result
    """

    __slots__ = ("_result",)

    def __init__(self, result: Result) -> None:
        self._result = result

    def __call__(self, fields: Iterable[str] | str | None = None, **options: Any) -> Any:
        """Draw the readings over time, faults shaded; returns the Axes, one per field.

        Parameters
        ----------
        fields : str or iterable of str, optional
            What to draw; every field if not given.
        **options
            `device_type`, `last`, `ax`, `figsize`, `color`; see `iotsim.plots.plot_result`.
        """
        return door("plot")(self._result, fields, **options)

    def heatmap(
        self, field: str | None = None, *, device_type: str | None = None,
        last: Duration | None = None, ax: Any = None, figsize: tuple[float, float] | None = None,
    ) -> Any:
        """Draw a field as colours, devices over time; returns the Axes.

        Many devices share a row, and many readings a column: the picture says how many, and a cell
        is their mean, or their most frequent state.

        Parameters
        ----------
        field : str, optional
            The first that can be drawn if not given.
        device_type : str, optional
            Only devices of this type.
        last : duration, optional
            Only the last stretch of simulated time.
        ax : Axes, optional
            Where to draw.
        figsize : (float, float), optional
            Width and height in inches.
        """
        return door("plot_heatmap")(self._result, field, device_type=device_type, last=last,
                                    ax=ax, figsize=figsize)

    def faults(self, *, ax: Any = None, figsize: tuple[float, float] | None = None) -> Any:
        """Draw which fault was active when, on how many devices; returns the Axes.

        A bar is as high as the share of its devices that still have the fault. Beside it stands
        which share of their readings it changed or withheld (`hit`), as far as they are held.

        Parameters
        ----------
        ax : Axes, optional
            Where to draw.
        figsize : (float, float), optional
            Width and height in inches.
        """
        return door("plot_faults")(self._result, ax=ax, figsize=figsize)

    def __repr__(self) -> str:
        return f"<pictures of {self._result.name!r}: plot(), plot.heatmap(), plot.faults()>"
