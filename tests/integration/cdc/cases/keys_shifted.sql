-- Rows share a deferrable key for a while: shifts, swaps and cycles.
-- config: {"key": ["id"]}
-- also: {"removed": {"on_delete": "remove"}}
-- quiet: true

-- stream
CREATE TABLE {t} (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text, big text);
ALTER TABLE {t} REPLICA IDENTITY FULL;
ALTER TABLE {t} ALTER big SET STORAGE EXTERNAL;
INSERT INTO {t} SELECT g, 'v' || g, repeat(md5(g::text), 200) FROM generate_series(1, 20) g;

-- stream
UPDATE {t} SET id = id + 1;
-- commit
UPDATE {t} SET id = 5 - id WHERE id IN (2, 3);
UPDATE {t} SET v = v || '!' WHERE id < 5;
-- commit
-- A key that is left, marked, and taken again.
DELETE FROM {t} WHERE id = 21;
UPDATE {t} SET id = 21 WHERE id = 20;
-- commit
-- A row that comes before another one of its key goes.
INSERT INTO {t} VALUES (7, 'new', 'n');
DELETE FROM {t} WHERE id = 7 AND v <> 'new';
-- commit
UPDATE {t} SET id = 1 + id % 21;

-- stream
UPDATE {t} SET id = id + 1;
-- commit
UPDATE {t} SET id = 5 - id WHERE id IN (2, 3);
UPDATE {t} SET v = v || '!' WHERE id < 5;
-- commit
-- A key that is left, marked, and taken again.
DELETE FROM {t} WHERE id = 21;
UPDATE {t} SET id = 21 WHERE id = 20;
-- commit
-- A row that comes before another one of its key goes.
INSERT INTO {t} VALUES (7, 'new', 'n');
DELETE FROM {t} WHERE id = 7 AND v <> 'new';
-- commit
UPDATE {t} SET id = 1 + id % 21;
-- commit
UPDATE {t} SET id = CASE id WHEN 4 THEN 5 WHEN 5 THEN 6 ELSE 4 END WHERE id IN (4, 5, 6);
