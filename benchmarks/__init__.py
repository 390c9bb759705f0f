"""What bronze costs, beside what people use today and beside a reference.

Everything runs on one machine against an embedded PostgreSQL on made-up data::

    pip install 'bronze[bench]'
    python -m benchmarks.load                                # three sizes, and a wide table
    python -m benchmarks.load --rows 10000 --wide-rows 10000 --runs 1
    python -m benchmarks.load --rows 10000 20000000 --wide-rows --runs 1 --without dlt-default
    python -m benchmarks.startup
    python -m benchmarks.tables
    python -m benchmarks.verify
    python -m benchmarks.quality
    python -m benchmarks.anomaly
    python -m benchmarks.stream catchup
    python -m benchmarks.stream rates --rows 1000000 10000000 --rate 1000
    python -m benchmarks.merge --rows 2000000
    python -m benchmarks.layout
    python -m benchmarks.forget
    python -m benchmarks.serve
    python -m benchmarks.backup --rows 2000000 20000000

`nox -s bench` runs `load`, in an environment of its own; what comes after ``--`` are its options,
or another one's name and options: ``nox -s bench -- stream catchup``. Run it on a machine that does
nothing else.

Commands of bronze are measured in one way, `benchmarks.command`: as installed, with their defaults,
whole processes from their start to their end.

`load` takes ``order_details`` of the demo (9 columns) and ``wide`` (40 columns of mixed types, see
`benchmarks.wide`) into a new, empty lake, beside other tools (`benchmarks.contestants`):

wall s        seconds from the start of the process to its end
CPU s         user and system seconds of the process; PostgreSQL's own are not in it
PostgreSQL s  CPU seconds of PostgreSQL meanwhile
peak MB       the most memory that the process had resident at once
written MB    what it wrote in all: data, logs, governance, and files that it deleted again
table MB      the Parquet files that are the table at the end
wall a M      seconds for a million rows, by the difference to the smallest table of the kind, in
CPU a M       which the start of the process and all imports fall out; of wall clock, and of CPU
content       whether the table holds what the source holds; the columns which differ, and in how
              many rows (see `benchmarks.content`); looked at after the first round

``bronze`` and ``dlt-…`` write Delta tables, bronze's with metadata, two hashes a row, governance
tables and checks; ``naive`` writes a Delta table by hand; ``duckdb`` and ``duckdb-hash`` write one
Parquet file. ``limit`` is no tool but a reference, see `benchmarks.contestants.limit`.

`tables` has many small tables, beside dlt; `verify` proves a load, also where a row differs;
`quality` and `anomaly` load with rules and with scores, and `anomaly` counts the planted outliers
that it finds; `stream` has changes of a live source.

`merge` changes rows of a large table, beside deltalake's MERGE; `layout` clusters a table that
grows daily, beside deltalake's Z-order; `forget` erases a person in two ways. None of the three
needs a source. With 20 million rows deltalake's MERGE of a source in which nothing changed takes
more memory than many machines have: leave it out with ``--cases`` and ``--only``.

`startup` runs commands over ten small tables, in which little but the start of the command is
measured, and shows what of it each library takes to import.

`serve` has the service: what it takes while nothing is due, with many tables and many records, and
how soon it begins what is due, shows its pages, tells people, and streams beside a load.
"""
