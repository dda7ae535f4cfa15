"""Defines what the sidecar and a receiver must agree on, without any I/O.

`ids` names turns, `callback` shapes the bytes of a push, `schema` describes them to
others, `signature` proves where they come from, `trailer` reads the end of an answer,
`trace` says where an exception came from.
"""
