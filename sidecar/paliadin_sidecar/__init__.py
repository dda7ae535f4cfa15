"""The daemon on the host: watches for completed turn files and pushes them to a callback.

A turn goes through the rooms in this order: `intake` finds its file and reads it once it is
complete, `outbox` commits it, `delivery` sends it, and `audit` prints what happened. `daemon` runs
them, `host` is what they need of the machine, and `operator` is what somebody types.
"""
