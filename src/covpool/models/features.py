"""What the stages of a backbone give."""

from __future__ import annotations

from typing import NamedTuple


class Stage(NamedTuple):
    """One stage of a backbone.

    Attributes:
        name: Its name, as ``freeze`` takes it.
        channels: Channels of its maps.
        reduction: Side of the image over that of its maps.
    """

    name: str
    channels: int
    reduction: int


class FeatureInfo(tuple[Stage, ...]):
    """The stages that a network gives, in its order; each is a :class:`Stage`."""

    def channels(self) -> list[int]:
        """Channels of every map."""
        return [stage.channels for stage in self]

    def reduction(self) -> list[int]:
        """Reduction of every map."""
        return [stage.reduction for stage in self]

    def module_name(self) -> list[str]:
        """Name of every stage."""
        return [stage.name for stage in self]
