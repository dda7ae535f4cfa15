"""What an app remembers of its turns in a PostgreSQL, for all of its processes on all machines.

`conninfo` reads the connection string and `schema` makes the tables; `database` has the
connections, `store` what is done with them, `listening` the hints and `pruning` the end of rows.
Only what the extra `[postgresql]` installs is needed, and only where such a store is opened.
"""
