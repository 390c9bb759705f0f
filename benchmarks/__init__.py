"""What bronze costs, beside what people use today and beside the least that is possible.

Everything runs on one machine against an embedded PostgreSQL on made-up data::

    pip install 'bronze[bench]'
    python -m benchmarks.load                                # about 2,000,000 and 500,000 rows
    python -m benchmarks.load --rows 50000 --wide-rows 20000 --runs 1
    python -m benchmarks.load --table wide --only bronze naive --json wide.json
    python -m benchmarks.startup
    python -m benchmarks.memory --rows 2000000 20000000
    python -m benchmarks.merge --rows 2000000
    python -m benchmarks.stream catchup
    python -m benchmarks.stream rates --rows 1000000 10000000 --rate 1000
    python -m benchmarks.layout
    python -m benchmarks.verify
    python -m benchmarks.anomaly

`nox -s bench` runs `load`, in an environment of its own; what comes after ``--`` are its options,
or another one's name and options: ``nox -s bench -- stream catchup``.

`load` takes two tables into a new, empty lake: ``order_details`` of the demo (9 columns), and
``wide`` (40 columns of mixed types, see `benchmarks.wide`). Every contestant in
`benchmarks.contestants` is a process of its own, started anew for each round; the rounds are
interleaved (A B C A B C), and the table shows medians. Only one process works at a time, so run it
on a machine that does nothing else.

work      seconds from the first connection to the committed table, imports left out
process   seconds of the whole process, the interpreter's start and all imports included
CPU       user and system seconds of the process and its children; PostgreSQL's own are not in it
peak      the most memory that the process and its children had resident at once
query     the longest time that one query on the source was seen to run (looked at every 50 ms)
MB        the Parquet files of the table
content   whether the table holds what the source holds; the columns which differ (see
          `benchmarks.content`). It is looked at after the first round.

The line ``limit`` is no tool but a bound: one ``COPY … TO STDOUT (FORMAT binary)`` thrown away,
plus encoding the same rows, which already lie in memory as Arrow, as Parquet files on two threads.
Its CPU seconds are those of these two steps, and it has no peak.

`memory` loads ``order_details`` of several sizes and shows how much memory bronze took for each.

`verify` loads ``order_details`` and proves it, in turn, with and without a row that differs; its
CPU seconds have PostgreSQL's in them.

`merge` changes rows of a large table, beside deltalake's MERGE; `layout` clusters a table that
grows daily, beside deltalake's Z-order. Neither needs a source. With 20 million rows deltalake's
MERGE of a source in which nothing changed takes more memory than many machines have: leave it out
with ``--cases`` and ``--only``.

`anomaly` takes the demo's tables with anomaly scores: how many of the planted outliers are found,
and how much longer a first load takes than without.

`startup` runs commands over ten small tables, in which little but the start of the command is
measured, and shows what of it each library takes to import.
"""
