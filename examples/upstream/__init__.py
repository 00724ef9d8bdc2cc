"""A sample upstream: an honest small HTTP status stream for the demo, the tests and the docs.

It speaks the manners of Twitter v1.1 ``statuses/filter`` and of the X API v2 filtered stream, and
keeps a ledger of every status it wrote, so that a client can be shown to have lost nothing. Run
it with ``python -m upstream``.
"""
