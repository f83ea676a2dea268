"""Signals for the programs that tests start."""

import signal


def hears_sigint() -> None:
    """A `preexec_fn`: a shell's background jobs, and all below them, are born deaf to SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
