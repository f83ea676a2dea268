"""The flare command."""
