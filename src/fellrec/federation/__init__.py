"""Rounds: clients train, the coordinator mixes, every client gets its own adapter back."""
