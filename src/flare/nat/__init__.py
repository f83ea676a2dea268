"""Judgement: observed addresses, relays held, how to punch."""
