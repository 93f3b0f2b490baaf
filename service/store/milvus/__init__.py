"""The store over a Milvus server: for more documents, or more services, than one machine holds.

    store.py         the Store: collections, writes, reads
    ranking.py       from a query to hits in order
    migrations.py    a collection embedded by another encoder beside it, and the change-over
    sides.py         under which names the two are, and how they are exchanged
    overlap.py       how differently the two answer
    pages.py         rows in the order of writing, which Milvus does not know
    tally.py         documents per language
    expressions.py   a Selection as a Milvus filter; no character of a caller's is in one
    terms.py         metadata as terms and bounds, which such filters ask for
    rows.py          what a collection is in Milvus: its names, fields, limits, and stamp
    connection.py    the one place that knows pymilvus, and what its errors mean

Nothing imports pymilvus before a store is made. What differs from the embedded store stands in
docs/milvus.md.
"""
