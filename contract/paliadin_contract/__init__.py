"""What the sidecar and a receiver must agree on.

`ids` names turns, `callback` shapes the bytes of a push, `signature` proves where
they come from, `trailer` reads the end of an answer, `trace` tells where an
exception came from. Nothing here does I/O.
"""
