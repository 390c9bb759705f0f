"""Fingerprints of a relation's definition in the catalog: its types, expressions, query, storage.

``ALTER TYPE … RENAME VALUE``, a new expression of a generated column, a rewrite by ``ALTER TABLE``
or a new query of a view change the values that are read without changing a row. A definition has a
fingerprint of each such aspect. Incremental loads and streams store it, and compare all rows when
it has changed.

The definition of a view includes the views, tables and functions that it depends on. Objects that
a function uses in a body stored as text are not included: PostgreSQL records no dependency.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bronze.postgres.connection.connect import Connection

Definition = Mapping[str, str]
"""The fingerprint of each aspect of a relation, by the name of the aspect."""

STORAGE = "storage"
"""The aspect that a rewrite changes: the files in which the rows are."""
_LABEL = "label "

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

_ASPECTS = f"""
WITH RECURSIVE reach(root, oid) AS (
    SELECT c.oid, c.oid FROM pg_class c WHERE c.oid = ANY(%(oids)s::oid[])
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
), expressions AS (
    SELECT d.oid, d.adrelid, d.adnum, hashtextextended(d.adbin::text, 0) AS text
    FROM pg_attrdef d
    JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum AND a.attgenerated <> ''
    WHERE d.adrelid IN (SELECT oid FROM reach)
), types(root, oid) AS (
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
), functions(root, oid) AS (
    SELECT r.root, d.refobjid FROM reach r JOIN expressions x ON x.adrelid = r.oid
    JOIN pg_depend d ON d.refclassid = 'pg_proc'::regclass AND (
        (d.classid = 'pg_attrdef'::regclass AND d.objid = x.oid)
        OR (d.classid = 'pg_class'::regclass AND d.objid = x.adrelid AND d.objsubid = x.adnum))
  UNION
    SELECT r.root, d.refobjid FROM reach r JOIN pg_rewrite w ON w.ev_class = r.oid
    JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
        AND d.refclassid = 'pg_proc'::regclass
  UNION
    SELECT r.root, d.refobjid FROM reach r JOIN pg_policy p ON p.polrelid = r.oid
    JOIN pg_depend d ON d.classid = 'pg_policy'::regclass AND d.objid = p.oid
        AND d.refclassid = 'pg_proc'::regclass
  UNION
    SELECT types.root, t.typoutput::oid FROM types JOIN pg_type t ON t.oid = types.oid
    WHERE t.typoutput::oid >= {_FIRST_USER_OID}
), called(root, oid) AS (
    SELECT root, oid FROM functions
  UNION
    SELECT called.root, d.refobjid FROM called
    JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = called.oid
        AND d.refclassid = 'pg_proc'::regclass
), facts(root, aspect, fact) AS (
    -- A new modifier that changes values rewrites the table; varchar and text have equal values.
    SELECT r.root, 'columns', concat_ws(' ', r.oid, a.attnum,
               CASE WHEN a.atttypid = 'varchar'::regtype THEN 'text'::regtype ELSE a.atttypid END
                   ::oid, a.attcollation, a.attgenerated, x.text)
    FROM reach r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN expressions x ON x.adrelid = a.attrelid AND x.adnum = a.attnum
  UNION ALL
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
  UNION ALL
    SELECT r.root, '{STORAGE}', concat_ws(' ', c.oid, c.relfilenode)
    FROM reach r JOIN pg_class c ON c.oid = r.oid AND c.relkind IN ('r', 'm')
  UNION ALL
    SELECT r.root, 'names', '' FROM (
        SELECT DISTINCT types.root FROM types JOIN pg_type t ON t.oid = types.oid WHERE {_NAMING}
    ) AS r
)
SELECT root::int8, aspect,
       hashtextextended(string_agg(fact, chr(10) ORDER BY fact COLLATE "C"), 0)::text
FROM facts GROUP BY root, aspect
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


def definitions(connection: Connection, oids: Sequence[int]) -> dict[int, dict[str, str]]:
    """The definitions of relations by their oids. Needs no privileges beyond CONNECT.

    Raises:
        psycopg.Error
    """
    fingerprints: dict[int, dict[str, str]] = {oid: {} for oid in oids}
    rows: list[Any] = connection.execute(_ASPECTS, {"oids": list(oids)}).fetchall()
    for oid, aspect, fingerprint in rows:
        fingerprints[oid][aspect] = fingerprint
    naming = [aspects for aspects in fingerprints.values() if "names" in aspects]
    if naming:
        names: Any = connection.execute(_NAMES).fetchone()
        for aspects in naming:
            aspects["names"] = names[0]
    return fingerprints


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
