-- Keys move over partitions with REPLICA IDENTITY FULL, with equal rows.
-- config: {"key": ["id"]}
-- quiet: true

-- stream
CREATE TABLE {t} (id int, d int, v text) PARTITION BY LIST (d);
CREATE TABLE {t}_1 PARTITION OF {t} FOR VALUES IN (1);
CREATE TABLE {t}_2 PARTITION OF {t} FOR VALUES IN (2);
ALTER TABLE {t}_1 REPLICA IDENTITY FULL;
ALTER TABLE {t}_2 REPLICA IDENTITY FULL;
INSERT INTO {t} SELECT g, 1 + g % 2, 'v' || g FROM generate_series(1, 20) g;

-- stream
UPDATE {t} SET id = id + 1;
-- commit
UPDATE {t} SET d = 3 - d, id = 2 + id % 20;

-- stream
INSERT INTO {t} VALUES (9, 1, 'v'), (9, 1, 'v');
DELETE FROM {t} WHERE id = 9;
INSERT INTO {t} VALUES (9, 2, 'v');
