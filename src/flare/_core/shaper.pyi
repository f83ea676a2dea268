from typing import Final

MAX_RATE: Final[int]
MAX_BURST: Final[int]

class Bucket:
    """Tokens for bytes: `rate` a second (0: no limit), of which `burst` may be saved up.

    A burst of 0 stands for a quarter of a second, and 64 KiB at least. One bucket may be shared by splices of
    any engines and threads.
    """

    def __init__(self, rate: int, burst: int = 0) -> None:
        """Raises UsageError for a rate or burst that is negative or above MAX_RATE or MAX_BURST."""

    def change(self, rate: int, burst: int = 0) -> None:
        """From now on; those that wait hear of it within a second. Raises UsageError as the constructor."""

    @property
    def rate(self) -> int: ...
    @property
    def burst(self) -> int: ...
    @property
    def available(self) -> int:
        """Bytes that may go at once."""

    @property
    def full(self) -> bool:
        """Nobody drew from it for as long as the burst takes to fill: a new one would be the same."""

    @property
    def waiting(self) -> int:
        """How many ways of splices wait for it now."""

    @property
    def turn(self) -> int:
        """Bytes that one of those who share it may send before another has its turn."""

    @property
    def owed_ns(self) -> int:
        """Nanoseconds until all that was spent so far is there, by the rate of now."""

    def spend(self, n: int) -> int:
        """Take n bytes, there or not; returns how many nanoseconds it takes until they are."""
