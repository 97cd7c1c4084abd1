"""Sequence models under the contract of `core.sequence_model`, one file each, found by the registry as those of `core` are."""
