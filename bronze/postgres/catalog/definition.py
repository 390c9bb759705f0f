"""Fingerprints of a relation's definition in the catalog: its types, expressions, query, storage.

``ALTER TYPE … RENAME VALUE``, a new expression of a generated column, a rewrite by ``ALTER TABLE``
or a new query of a view change the values that are read without changing a row. A definition has a
fingerprint of each such aspect. Incremental loads and streams store it, and compare all rows when
it has changed.

The definition of a view includes the views, tables and functions that it depends on. Objects that
a function uses in a body stored as text are not included: PostgreSQL records no dependency.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bronze.postgres.connection.connect import Connection

Definition = Mapping[str, str]
"""The fingerprint of each aspect of a relation, by the name of the aspect."""

STORAGE = "storage"
"""The aspect that a rewrite changes: the files in which the rows are."""
_LABEL = "label "
# Not an aspect: a function that shows the values of a type.
_OUTPUT = "output"

# Of several aspects that differ the first one is reported.
_CHANGED: Mapping[str, str] = {
    "parts": "its partitions have changed",
    "columns": "its columns have changed",
    "types": "a type of its columns has changed",
    "query": "its query has changed",
    "functions": "a function that its values depend on has changed",
    "foreign": "its foreign server or table has changed",
    "policies": "its row-level security has changed",
    "names": "the names of objects that its columns show have changed",
    _LABEL: "labels of an enum have changed",
    STORAGE: "its storage was rewritten",
}

# PostgreSQL's own objects have smaller oids, and do not change; the values of some of its types are
# names of other objects, which do.
_FIRST_USER_OID = 16384
_NAMING = "(t.typname LIKE 'reg%%' OR t.typname = 'aclitem')"

# The aspects of `facts(root, aspect, fact)`, each with its fingerprint.
_FINGERPRINTS = """
SELECT root::int8, aspect,
       hashtextextended(string_agg(fact, chr(10) ORDER BY fact COLLATE "C"), 0)::text
FROM facts GROUP BY root, aspect
"""
# The relations on which each root depends, and the root itself. Arrays are estimated by their
# lengths, so that a few relations are looked up by indexes.
_REACH = "reach(root, oid) AS (SELECT * FROM unnest(%(roots)s::oid[], %(oids)s::oid[]))"

_DEPENDENCIES_OF_VIEWS = """
WITH RECURSIVE reach(root, oid) AS (
    SELECT oid, oid FROM unnest(%(oids)s::oid[]) AS oid
  UNION
    SELECT r.root, next.oid FROM reach r CROSS JOIN LATERAL (
        SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = r.oid
      UNION ALL
        SELECT d.refobjid FROM pg_rewrite w
        JOIN pg_class v ON v.oid = w.ev_class AND v.relkind = 'v'
        JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
            AND d.refclassid = 'pg_class'::regclass
        WHERE w.ev_class = r.oid
    ) AS next(oid)
)
SELECT root::int8, oid::int8 FROM reach
"""

# Every relation has these two aspects; the last columns say which others it may have. A new
# modifier that changes values rewrites the table; varchar and text have equal values.
_COLUMNS_AND_STORAGE = f"""
WITH {_REACH}, naming(oids) AS (
    SELECT ARRAY(SELECT t.oid FROM pg_type t WHERE {_NAMING}
                 UNION ALL SELECT t.typarray FROM pg_type t WHERE {_NAMING})
), columns AS (
    SELECT r.root, a.atttypid >= {_FIRST_USER_OID} OR a.atttypid = ANY(n.oids) AS typed,
           a.attgenerated <> '' AS generated,
           concat_ws(' ', r.oid, a.attnum,
               CASE WHEN a.atttypid = 'varchar'::regtype THEN 'text'::regtype ELSE a.atttypid END
                   ::oid, a.attcollation, a.attgenerated,
               CASE WHEN a.attgenerated <> '' THEN (
                   SELECT hashtextextended(d.adbin::text, 0) FROM pg_attrdef d
                   WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum) END) AS fact
    FROM reach r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
    CROSS JOIN naming n
), relations AS (
    SELECT r.root, c.relkind = 'f' OR c.relhasrules OR c.relrowsecurity
               OR c.oid IN (SELECT p.polrelid FROM pg_policy p) AS depending,
           CASE WHEN c.relkind IN ('r', 'm') THEN concat_ws(' ', c.oid, c.relfilenode) END AS fact
    FROM reach r JOIN pg_class c ON c.oid = r.oid
)
SELECT root::int8, 'columns',
       hashtextextended(string_agg(fact, chr(10) ORDER BY fact COLLATE "C"), 0)::text,
       bool_or(typed), bool_or(generated)
FROM columns GROUP BY root
UNION ALL
SELECT root::int8, '{STORAGE}',
       hashtextextended(string_agg(fact, chr(10) ORDER BY fact COLLATE "C"), 0)::text,
       false, bool_or(depending)
FROM relations GROUP BY root
"""  # noqa: S608 - made of constants

_TYPE_ASPECTS = f"""
WITH RECURSIVE {_REACH}, types(root, oid) AS (
    SELECT r.root, a.atttypid FROM reach r
    JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_type e ON e.oid = t.typelem
    WHERE a.atttypid >= {_FIRST_USER_OID} OR {_NAMING} OR {_NAMING.replace("t.", "e.")}
  UNION
    SELECT types.root, next.oid FROM types JOIN pg_type t ON t.oid = types.oid
    CROSS JOIN LATERAL (
        VALUES (t.typbasetype), (t.typelem)
      UNION ALL
        SELECT a.atttypid FROM pg_attribute a
        WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
      UNION ALL
        SELECT g.rngsubtype FROM pg_range g
        WHERE t.oid IN (g.rngtypid, (to_jsonb(g) ->> 'rngmultitypid')::oid)
    ) AS next(oid)
    WHERE next.oid >= {_FIRST_USER_OID} OR EXISTS (
        SELECT FROM pg_type t WHERE t.oid = next.oid AND {_NAMING})
), facts(root, aspect, fact) AS (
    SELECT types.root, 'types', concat_ws(' ', t.oid, t.typtype, t.typbasetype, t.typtypmod,
               t.typelem, t.typoutput::oid, t.typdelim,
               (SELECT string_agg(concat_ws(' ', a.attnum, a.atttypid, a.atttypmod), ','
                                  ORDER BY a.attnum)
                FROM pg_attribute a
                WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped),
               (SELECT g.rngsubtype FROM pg_range g WHERE g.rngtypid = t.oid),
               (SELECT e.extversion FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
                WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid
                  AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'))
    FROM types JOIN pg_type t ON t.oid = types.oid
  UNION ALL
    SELECT types.root, '{_LABEL}' || e.oid, e.enumlabel::text
    FROM types JOIN pg_enum e ON e.enumtypid = types.oid
  UNION ALL
    SELECT r.root, 'names', '' FROM (
        SELECT DISTINCT types.root FROM types JOIN pg_type t ON t.oid = types.oid WHERE {_NAMING}
    ) AS r
)
{_FINGERPRINTS}
UNION ALL
SELECT DISTINCT types.root::int8, '{_OUTPUT}', t.typoutput::oid::text
FROM types JOIN pg_type t ON t.oid = types.oid WHERE t.typoutput::oid >= {_FIRST_USER_OID}
"""  # noqa: S608 - made of constants

_DEPENDENCY_ASPECTS = f"""
WITH RECURSIVE {_REACH}, expressions AS (
    SELECT r.root, d.oid, d.adrelid, d.adnum
    FROM reach r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attgenerated <> ''
    JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
), functions(root, oid) AS (
    SELECT x.root, d.refobjid FROM expressions x
    JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = x.oid
        AND d.refclassid = 'pg_proc'::regclass
  UNION
    -- PostgreSQL 14 and earlier.
    SELECT x.root, d.refobjid FROM expressions x
    JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = x.adrelid
        AND d.objsubid = x.adnum AND d.refclassid = 'pg_proc'::regclass
  UNION
    SELECT r.root, d.refobjid FROM reach r JOIN pg_rewrite w ON w.ev_class = r.oid
    JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
        AND d.refclassid = 'pg_proc'::regclass
  UNION
    SELECT r.root, d.refobjid FROM reach r JOIN pg_policy p ON p.polrelid = r.oid
    JOIN pg_depend d ON d.classid = 'pg_policy'::regclass AND d.objid = p.oid
        AND d.refclassid = 'pg_proc'::regclass
  UNION
    SELECT * FROM unnest(%(typed)s::oid[], %(outputs)s::oid[])
), called(root, oid) AS (
    SELECT root, oid FROM functions
  UNION
    SELECT called.root, d.refobjid FROM called
    JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = called.oid
        AND d.refclassid = 'pg_proc'::regclass
), facts(root, aspect, fact) AS (
    SELECT r.root, 'query', concat_ws(' ', w.ev_class, hashtextextended(w.ev_action::text, 0))
    FROM reach r JOIN pg_rewrite w ON w.ev_class = r.oid AND w.ev_type = '1'
  UNION ALL
    SELECT called.root, 'functions', concat_ws(' ', p.oid, hashtextextended(p.prosrc, 0), p.probin,
               hashtextextended(to_jsonb(p) ->> 'prosqlbody', 0), p.proconfig)
    FROM called JOIN pg_proc p ON p.oid = called.oid
  UNION ALL
    SELECT r.root, 'foreign', concat_ws(' ', f.ftrelid, f.ftserver, f.ftoptions, s.srvoptions)
    FROM reach r JOIN pg_foreign_table f ON f.ftrelid = r.oid
    JOIN pg_foreign_server s ON s.oid = f.ftserver
  UNION ALL
    SELECT r.root, 'policies', concat_ws(' ', c.oid, c.relforcerowsecurity, p.oid, p.polcmd,
               p.polpermissive, p.polroles, hashtextextended(p.polqual::text, 0))
    FROM reach r JOIN pg_class c ON c.oid = r.oid AND c.relrowsecurity
    LEFT JOIN pg_policy p ON p.polrelid = c.oid
)
{_FINGERPRINTS}
"""  # noqa: S608 - made of constants

# The search_path of our sessions makes PostgreSQL qualify each of these names by its schema.
_NAMES = """
SELECT hashtextextended(string_agg(fact, chr(10) ORDER BY fact COLLATE "C"), 0)::text FROM (
    SELECT concat_ws(' ', 'c', c.oid, c.relnamespace, c.relname) FROM pg_class c
    WHERE c.relpersistence <> 't' AND c.relkind NOT IN ('t', 'i', 'I')
  UNION ALL SELECT concat_ws(' ', 'n', n.oid, n.nspname) FROM pg_namespace n
            WHERE n.nspname NOT LIKE 'pg\\_t%'
  UNION ALL SELECT concat_ws(' ', 't', t.oid, t.typnamespace, t.typname) FROM pg_type t
            WHERE t.typtype NOT IN ('c') AND t.typelem = 0
  UNION ALL SELECT concat_ws(' ', 'p', p.oid, p.pronamespace, p.proname, p.proargtypes)
            FROM pg_proc p
  UNION ALL SELECT concat_ws(' ', 'o', o.oid, o.oprnamespace, o.oprname) FROM pg_operator o
  UNION ALL SELECT concat_ws(' ', 's', s.oid, s.cfgnamespace, s.cfgname) FROM pg_ts_config s
  UNION ALL SELECT concat_ws(' ', 'd', d.oid, d.dictnamespace, d.dictname) FROM pg_ts_dict d
  UNION ALL SELECT concat_ws(' ', 'l', l.oid, l.collnamespace, l.collname) FROM pg_collation l
  UNION ALL SELECT concat_ws(' ', 'r', r.oid, r.rolname) FROM pg_roles r
) AS facts(fact)
"""


def definitions(
    connection: Connection, trees: Mapping[int, Sequence[int]], views: Sequence[int] = ()
) -> dict[int, dict[str, str]]:
    """The definitions of relations by their oids. Needs no privileges beyond CONNECT.

    Most relations need one query; those with types of their own, functions, views, policies or
    foreign servers one or two more, which are for all of them together.

    Args:
        connection: in a transaction with one snapshot.
        trees: the relations by oid, each with the oids of itself and its partitions or children.
        views: the oids of those that are views.

    Raises:
        psycopg.Error
    """
    reach = {oid: tuple(tree) for oid, tree in trees.items()}
    if views:
        reach |= _reach_of_views(connection, views)
    fingerprints: dict[int, dict[str, str]] = {oid: {} for oid in trees}
    typed, depending = set(), set()
    for root, aspect, fingerprint, is_typed, depends in _rows(
        connection, _COLUMNS_AND_STORAGE, _pairs(reach, reach)
    ):
        typed |= {root} if is_typed else set()
        depending |= {root} if depends else set()
        if fingerprint is not None:
            fingerprints[root][aspect] = fingerprint
    outputs: list[tuple[int, int]] = []
    if typed:
        for root, aspect, value in _rows(connection, _TYPE_ASPECTS, _pairs(reach, typed)):
            if aspect == _OUTPUT:
                outputs.append((root, int(value)))
            else:
                fingerprints[root][aspect] = value
    if depending or outputs:
        arguments = {
            **_pairs(reach, depending),
            "typed": [root for root, _ in outputs],
            "outputs": [function for _, function in outputs],
        }
        for root, aspect, value in _rows(connection, _DEPENDENCY_ASPECTS, arguments):
            fingerprints[root][aspect] = value
    naming = [aspects for aspects in fingerprints.values() if "names" in aspects]
    if naming:
        ((names,),) = _rows(connection, _NAMES, {})
        for aspects in naming:
            aspects["names"] = names
    return fingerprints


def _reach_of_views(connection: Connection, views: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """The relations that each view depends on, itself included."""
    reach: dict[int, tuple[int, ...]] = {}
    for root, oid in _rows(connection, _DEPENDENCIES_OF_VIEWS, {"oids": list(views)}):
        reach[root] = (*reach.get(root, ()), oid)
    return reach


def _pairs(reach: Mapping[int, Sequence[int]], roots: Collection[int]) -> dict[str, list[int]]:
    """The arguments of `_REACH`."""
    pairs = [(root, oid) for root in sorted(roots) for oid in reach[root]]
    return {"roots": [root for root, _ in pairs], "oids": [oid for _, oid in pairs]}


def _rows(connection: Connection, query: Any, arguments: Mapping[str, Any]) -> list[Any]:
    return connection.execute(query, arguments or None).fetchall()


def definition_change(known: Definition, now: Definition, *, storage: bool) -> str:
    """What has changed in a relation's definition, as a clause of a sentence; "" if nothing has.

    A new label of an enum is not a change: no row had it.

    Args:
        known: the stored definition.
        now: the current definition.
        storage: whether a rewrite of the relation counts as a change.
    """
    differing = {
        _LABEL if aspect.startswith(_LABEL) else aspect
        for aspect in {**known, **now}
        if known.get(aspect) != now.get(aspect)
        and (storage or aspect != STORAGE)
        and not (aspect.startswith(_LABEL) and aspect not in known)
    }
    return next((clause for aspect, clause in _CHANGED.items() if aspect in differing), "")
