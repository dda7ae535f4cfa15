from __future__ import annotations

from hypothesis import settings

# A busy machine is no fault of the code: how long one example takes decides nothing.
settings.register_profile("paliadin", deadline=None)
settings.load_profile("paliadin")
