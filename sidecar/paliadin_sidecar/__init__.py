"""The daemon on the host: watches for completed turn files and pushes them to a callback.

A turn meets the modules in this order: `watch` notices a name, `turnfile` opens it,
`settle` decides whether it is complete, `outbox` keeps it, `policy` says when it is sent,
`deliver` sends it, `audit` tells. `intake`, `dispatch` and `service` carry values between
these stages, which never import each other; `cli` is what an operator types.
"""
