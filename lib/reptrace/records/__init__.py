"""Tables of results with provenance: atomic, resumable, each measured once."""
