"""What an app remembers of its turns: in memory, in SQLite, or in PostgreSQL.

`protocol` says what a store is; `memory`, `sqlite` and `postgresql` are the three there are,
`selection` opens the one that is named, and `pruning` prunes any of them.
"""
