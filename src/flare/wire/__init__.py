"""What travels: addresses, identities, envelopes and messages. No I/O."""
